//! What every IOMMU shares: domains, groups, ownership, ranges, tables, flush receipts, faults.
//!
//! From a handler that may interrupt a call into this subsystem on its own CPU, only
//! [`Domain::translate`], [`Domain::mappings`] and the mapping, splitting and unmapping of ranges may be
//! called: the rest takes short locks that the interrupted call may hold. So does mapping on units that have
//! to be told of new mappings (caching mode, write buffers): not from a handler there.
//!
//! Knows no vendor. A backend crate implements [`Backend`] and [`Format`]; an embedder implements
//! the platform traits of `hv-core`.

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

pub use attach::{AttachError, AttachFailed, NeedsNoWitness};
pub use backend::{
    Backend, Binding, FlushDepth, FlushRequest, FlushSpan, FlushTicket, HwDomainId, LeafNeeds,
    LevelSet, Snoop, UnitCaps, UnitError, UnitIndex,
};
pub use bus_master::{StaysOn, turn_off_bus_mastering};
pub use capability::{
    BadRequest, DeviceTlbBackend, IdentityBackend, NestedBackend, PasidBackend, ReplaceBackend,
    Unmet,
};
pub use claims::{ClaimError, GroupTable, Whereabouts};
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
    CutOff, CutOffReason, FaultBudget, FaultClass, FaultEvent, FaultLogs, FaultNotice, FaultReport,
    RawFault, StrayFault,
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
    Confines, Identity, LetsThrough, Nested, Pages, Paging, ParentPaging, Shape, Stages,
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
