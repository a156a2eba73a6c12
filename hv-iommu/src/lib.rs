//! What every IOMMU shares: domains, groups, ownership, ranges, tables, flush receipts, faults.
//!
//! From a handler that may interrupt a call into this subsystem on its own CPU, only
//! [`Domain::translate`], [`Domain::mappings`] and the mapping, splitting and unmapping of ranges may be
//! called: the rest takes short locks that the interrupted call may hold. So does mapping on units that have
//! to be told of new mappings (caching mode, write buffers): not from a handler there.
//!
//! Knows no vendor. A backend crate implements [`Backend`] and [`Format`]; an embedder implements
//! the platform traits of `hv-core`.
//!
//! | I want to | call |
//! |---|---|
//! | bring units up | `discover` and `bring_up` of a backend crate, then [`Iommu::new`] |
//! | keep a device running that firmware uses | `discover_keeping` there, [`Iommu::new_keeping`] with [`FirmwareKept::keep_pinned_devices_running`], [`GroupTable::note_held`] |
//! | have a device, for a driver or a guest | [`AtRest::claimable`], [`Group::claim_for_hypervisor`], [`Group::claim_for_guest`]; several tenants: [`GroupTable::claim_for_guest`] |
//! | make a domain | [`Domain::paging_domain_alloc`], [`Domain::user_domain_alloc`]; for more than its size [`DomainConfig::with`] |
//! | let a device reach it | [`Group::attach`], [`Group::attach_for_guest`] with [`Group::interrupts_isolated`], then [`Group::enable_bus_mastering`] |
//! | share memory with a driver's device | [`Domain::alloc_coherent`] |
//! | lend a device memory | [`Domain::dma_device`], [`DmaDevice::map`], [`DmaDevice::map_scatter`] |
//! | map at an address of my choice | [`Domain::reserve`], [`Range::map`]; from several CPUs [`Range::share`] |
//! | have memory back | [`Range::unmap`], [`PendingUnmap::flush`] |
//! | have a guest's mappings kept | [`AddressSpace::map`], [`AddressSpace::unmap`]; by bytes, for hypercalls: [`front`] |
//! | change pages under DMA | [`Range::split_large_at`], [`Range::merge`], [`Range::protect`], [`Range::settle`] |
//! | know what a device wrote | [`Domain::dirty`], of a domain that was asked for it ([`Needs`]) |
//! | let a guest have a first stage | [`Iommu::user_unit`] says what to show it; [`Domain::user_parent_alloc`], [`Domain::alloc_nested`] |
//! | have forgotten what a guest changed there | [`Domain::invalidate`], of one nested domain or, on the parent, of all; everything of it: [`Domain::forget_first_stages`] |
//! | tell a guest of its own faults | [`RawFault::is_of_users_stage`], then a backend crate's `user_event` |
//! | move an attached device | [`Group::replace_with_gap`], [`Group::replace`] |
//! | reset a device | [`Group::park`] and [`Group::unpark`]; between owners [`Group::release`] and [`Group::reset_members`] |
//! | use PASIDs, a device TLB, no translation | [`Group::open_pasids`] and [`Group::attach_pasid`], [`Group::enable_ats`], [`Group::attach_untranslated`] |
//! | hear of faults | [`Iommu::take_faults`]; when to look: [`Iommu::route_interrupt`] |
//! | get a unit back that stopped | [`Iommu::wedged_units`], [`Iommu::reset_unit`], [`Group::recover`], and flush anew |
//! | follow devices that come and go | [`GroupTable::add_functions`], [`GroupTable::remove_functions`] |
//! | have empty tables back | [`Domain::reclaim`] |
//! | end a domain, or everything | [`Domain::destroy`], [`Iommu::shut_down`] |

#![cfg_attr(not(any(test, hv_loom)), no_std)]

extern crate alloc;

mod anchor;
mod apart;
mod attach;
mod backend;
mod bind;
mod bus_master;
mod capability;
mod claims;
mod coherency;
mod cxl_cache;
mod depth;
mod destroy;
mod device_tlb;
mod dirty;
mod dma;
mod domain;
mod faults;
mod flush;
mod format;
pub mod front;
mod group;
mod handle;
mod identity;
pub mod ids;
mod interrupts;
pub mod iova;
mod isolation;
mod kept;
mod migration;
mod nested;
pub mod order;
mod parked;
mod pasid;
mod pasid_device;
mod pasid_park;
mod pending;
mod pinned;
pub mod queue;
pub mod quiesce;
mod range;
pub mod reach;
mod reclaim;
mod recover;
mod replace;
mod request;
mod rescan;
mod reserved;
mod resize;
mod rest;
pub mod shape;
mod shared_range;
mod space;
mod spec;
mod states;
mod system;
pub mod table;
mod topology;
mod troubles;

pub use attach::{AttachError, AttachFailed, NeedsNoWitness};
pub use backend::{
    Backend, Binding, CommandCode, FlushDepth, FlushRequest, FlushSpan, FlushTicket, HwDomainId,
    LeafNeeds, LevelSet, Snoop, UnitCaps, UnitError, UnitIndex,
};
pub use bus_master::{StaysOn, turn_off_bus_mastering};
pub use capability::{
    BadRequest, DeviceTlbBackend, IdentityBackend, NestedBackend, NotTaken, PasidBackend,
    ReplaceBackend, ReplaceNestedBackend, Unmet,
};
pub use claims::{ClaimError, GroupTable, Whereabouts};
pub use coherency::{Coherency, NotCoherent};
pub use destroy::{DestroyError, DestroyRefusal, Teardown, TeardownStep};
pub use dirty::{BitmapError, DirtyBitmap, DirtyError, DirtyTracking};
pub use dma::{
    Bidirectional, BounceError, BufferRequest, ByteWindow, CoherentBuffer, CpuWrites, DeferError,
    DeferRefusal, DeferredConfig, DeferredError, Direction, DmaConfig, DmaDevice, DmaError,
    DmaMapError, DmaMask, DmaOwner, DmaRefusal, FreeError, FromDevice, PendingError,
    PendingScatter, PendingStream, ScatterError, ScatterFull, ScatterList, ScatterMapping,
    SeenByCpu, Snooping, StreamError, StreamMapping, StreamOnCpu, ToDevice, Trust, TrustRefusal,
    UnmappedInTurn,
};
pub use domain::{Domain, DomainConfig, DomainError, DomainUid};
pub use faults::{
    BadLog, CutOff, CutOffReason, FaultBudget, FaultClass, FaultDetail, FaultEvent, FaultLogs,
    FaultNotice, FaultReport, FaultStage, FaultStep, RawFault, StrayFault,
};
pub use flush::{FlushError, Receipt};
pub use format::{Entry, Format, Level, RootPointer, RootTables};
pub use group::{Attached, AttachedGroup, Blocked, Claimed, Group, GroupId, Wedged};
pub use identity::TrustedDevice;
pub use interrupts::{
    InterruptId, InterruptMessage, InterruptRoute, InterruptSource, MessageData, RouteError,
    RoutedInterrupts,
};
pub use iova::{IovaAlign, SpaceError};
pub use isolation::{InterruptsIsolated, MessageSource, NotIsolated};
pub use kept::{Dormant, KeepError, Keeping, Kept, KeptSetup};
pub use migration::{MadeForABus, iommu_domain_alloc};
pub use nested::{InvalidateError, InvalidateRefusal, NestedError};
pub use parked::{Parked, ParkedGroup, UnparkFailed};
pub use pasid::{
    PasidAttachment, PasidDetachFailed, PasidError, PasidGroup, PasidRefusal, StillOpen, WithPasids,
};
pub use pasid_device::PasidsRefused;
pub use pasid_park::{ParkedPasidGroup, ParkedWithPasids, PasidParkFailed};
pub use pending::{PendingUnmap, RedeemError, RedeemRefusal, Redeemed};
pub use range::{Free, MapError, MapRefusal, Mappable, Mapped, Range, TableFrames};
pub use reclaim::ReclaimError;
pub use replace::{GaplessReplace, ReplaceFailed, Replaced};
pub use request::{CoherentDma, CoherentWalks, DomainRequest, Needs, UserDomain};
pub use rescan::{RescanError, RescanFailed, Rescanned};
pub use reserved::{FirmwareKept, FirmwareOverridden, ReservedKind, ReservedRegion};
pub use resize::{Cut, CutError, CutRefusal};
pub use rest::{AtRest, MembersGone, NeedsReset, Pinned, ResetFailed, ResetMembers, ResetRefusal};
pub use shape::{
    Confines, Identity, LetsThrough, Nested, Pages, Paging, ParentPaging, Shape, Stages, Switches,
};
pub use shared_range::{PendingPage, SharedError, SharedMapError, SharedRange};
pub use space::{
    AddressSpace, AddressSpaceError, BulkPart, Flushed, MappingKind, ReservedFor, SpaceMapping,
    SpaceOwner, SpaceTeardown, TableQuota, Unmapping,
};
pub use states::{ClaimedUnseen, ForGuests, ForTheHypervisor, GivesUp, HeldBy, MaySend};
pub use system::{Config, Iommu, SetupError};
pub use topology::{
    AccessControl, BusRange, FunctionKind, GroupPlan, IsolationError, IsolationFact, PciFunction,
    PhantomBits, VirtualFunctions, group_plans,
};
pub use troubles::UnitTroubles;
