//! Domains: an address space with an owner, its tables, and the units that it reaches.

#![expect(
    unsafe_code,
    reason = "makes the one table whose guards are all of one quiescence"
)]

mod uid;

use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;
use core::sync::atomic::AtomicU64 as MachineU64;

use hv_core::platform::Cpus;
use hv_core::sync::Mutex;
use hv_core::{
    Iova, IovaRange, KernelPaging, OutOfMemory, Owner, OwnerId, PageCount, PageSize, Perms,
    PhysRange, Shared, TryLock, UserManaged,
};
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan, HwDomainId, LeafNeeds, Snoop, UnitIndex};
use crate::capability::Unmet;
use crate::depth::shallowest;
use crate::dma::DmaState;
use crate::flush::{FlushError, Receipt};
use crate::format::{Format, Level, RootPointer, RootTables};
use crate::group::{Blocked, Group, Inner};
use crate::handle::PlatformHandle;
use crate::ids::{IdLease, Users};
use crate::iova::{IovaAlign, IovaAllocator, SpaceError};
use crate::order::FlushOrder;
use crate::pinned::PinnedRegion;
use crate::quiesce::Guard;
use crate::range::{Free, Range, TableFrames};
use crate::reach::Reach;
use crate::reclaim::RECLAIM_FROM;
use crate::request::{DomainRequest, NO_NESTING, NO_PASIDS, UserDomain, whole_space};
use crate::reserved::ReservedRegion;
use crate::shape::{Pages, Paging, ParentPaging, Shape, Stages};
use crate::states::HeldBy;
use crate::system::System;
use crate::table::{Geometry, Mapping, Table, TableError, Translation};

pub use uid::DomainUid;

/// What an embedder asks of a new domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// How many address bits the domain needs at least. The shallowest table that has them is
    /// built.
    pub address_bits: u8,
    /// The largest page that mappings may use, if the unit has it.
    pub largest_page: PageSize,
}

impl Default for DomainConfig {
    /// 39 bits (512 GiB), pages as large as the unit has them. A unit may have fewer bits:
    /// [`Iommu::unit_caps`](crate::Iommu::unit_caps) tells.
    fn default() -> Self {
        Self {
            address_bits: 39,
            largest_page: PageSize::LARGEST,
        }
    }
}

/// Why a domain could not be made. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DomainError {
    /// No table depth of the unit has that many bits.
    #[error("the unit translates at most {found} address bits, {needed} are needed")]
    TooManyBits {
        /// What was asked for.
        needed: u8,
        /// What the unit has.
        found: u8,
    },
    /// The group's unit cannot do what was asked for.
    #[error("{unit} cannot serve such a domain: {unmet}")]
    Unmet {
        /// The unit.
        unit: UnitIndex,
        /// What it lacks.
        unmet: Unmet,
    },
    /// A guest's domain where its unit has no second stage.
    #[error("a guest's addresses are translated by a second stage, which {unit} does not have")]
    NoSecondStage {
        /// The unit.
        unit: UnitIndex,
    },
    /// All domain ids of the hardware are taken.
    #[error("all domain ids are taken")]
    NoDomainId,
    /// Firmware's region of a device cannot be kept free for it: it overlaps another one or an interrupt window,
    /// or is beyond the addresses asked for.
    #[error("the domain cannot hold {region}: {why}")]
    Region {
        /// The region.
        region: ReservedRegion,
        /// Why not.
        why: SpaceError,
    },
    /// Firmware's region of a device is where the unit reaches no memory.
    #[error("the unit cannot reach the memory of {region}")]
    RegionUnreachable {
        /// The region.
        region: ReservedRegion,
    },
    /// Where a device's messages go is no place that takes them, or the platform does not know.
    #[error(
        "the platform does not say that {region} takes interrupt messages: see `MemoryMap::takes_messages`"
    )]
    NoDoorbell {
        /// The region.
        region: ReservedRegion,
    },
    /// Firmware's region of a device is not firmware's, or the platform does not know: it may be anybody's.
    #[error("the platform does not say that the memory of {region} is firmware's")]
    RegionNotFirmwares {
        /// The region.
        region: ReservedRegion,
    },
    /// The root table needs a frame.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The control path's heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// What is fixed when a domain is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DomainCaps {
    pub(crate) level: Level,
    pub(crate) root_tables: RootTables,
    /// Its tables are second-stage ones.
    pub(crate) second_stage: bool,
    pub(crate) largest_page: PageSize,
    pub(crate) coherent: bool,
    pub(crate) write_only: bool,
    pub(crate) phys_bits: u8,
    pub(crate) last: Iova,
    pub(crate) live_resize: bool,
    /// Users' own first stages may stand on it.
    pub(crate) nested: bool,
    /// Units note in its leaves what devices write.
    pub(crate) dirty: bool,
    /// Its leaves make what devices send snoop.
    pub(crate) snoop: Snoop,
}

impl DomainCaps {
    /// What its leaves are made for.
    pub(crate) const fn leaves(&self) -> LeafNeeds {
        LeafNeeds {
            snoop: self.snoop,
            dirty: self.dirty,
        }
    }
}

/// The part of a domain that its ranges, pending values and attachments share.
pub struct DomainCore<B: Backend> {
    pub(crate) uid: DomainUid,
    pub(crate) owner: OwnerId,
    pub(crate) id: HwDomainId,
    pub(crate) caps: DomainCaps,
    pub(crate) table: Table<B::Format, PlatformHandle<B>>,
    /// Regions of firmware and doorbells that are mapped, from before anything can be attached.
    pub(crate) regions: Mutex<Vec<ReservedRegion>>,
    /// Counts values of the DMA API that are alive, too: devices, buffers, mappings.
    pub(crate) space: IovaAllocator,
    pub(crate) reach: Reach,
    /// Flushes begun so far.
    pub(crate) flushes: FlushOrder,
    /// Groups whose entries may still name this domain.
    pub(crate) attachments: Users,
    /// Nested domains that stand on this one.
    pub(crate) children: Users,
    /// Whether the devices that it was made for are coherent with the CPU's caches.
    pub(crate) was_for_coherent: bool,
    /// Bounce pages, and what waits for a deferred flush.
    pub(crate) dma: DmaState,
    /// From how many table pages on unmaps help to reclaim empty ones.
    pub(crate) reclaim_from: MachineU64,
    /// Held by the one unmap that helps.
    pub(crate) assist: TryLock<()>,
    pub(crate) system: Shared<System<B>>,
}

impl<B: Backend> DomainCore<B> {
    #[inline]
    pub(crate) fn pin(&self) -> Guard<'_> {
        self.system.pin()
    }

    /// Takes a free range of this length that starts at a multiple of `align` and whose last address is at most
    /// `limit`.
    ///
    /// # Errors
    /// [`SpaceError`]; nothing was taken then.
    #[inline]
    pub(crate) fn alloc_iova(
        &self,
        pages: PageCount,
        align: impl Into<IovaAlign>,
        limit: Iova,
    ) -> Result<IovaRange, SpaceError> {
        let cpus = self.system.backend.platform();
        let smallest = IovaAlign::of_shift(B::Format::PAGE_SHIFT);
        self.space
            .alloc(cpus, pages, align.into().max(smallest), limit)
    }

    /// Takes back what `alloc_iova` gave, whole.
    #[inline]
    pub(crate) fn free_iova(&self, range: IovaRange) {
        // Room for it was made when it went out.
        if let Err(error) = self.release_iova(range) {
            self.report_taken(range, error);
        }
    }

    #[cold]
    pub(crate) fn report_taken(&self, range: IovaRange, error: SpaceError) {
        log::error!("{range} stays taken in {}: {error}", self.uid);
    }

    /// Takes back a range that was taken, or a part of one.
    ///
    /// # Errors
    /// [`SpaceError`]; it stays taken then.
    #[inline]
    pub(crate) fn release_iova(&self, range: IovaRange) -> Result<(), SpaceError> {
        self.space.release(self.system.backend.platform(), range)
    }

    /// What a mapping with these permissions really lets the device do.
    #[inline]
    pub(crate) fn granted(&self, perms: Perms) -> Perms {
        match perms {
            Perms::Write if !self.caps.write_only => Perms::ReadWrite,
            other => other,
        }
    }

    /// Whether the domain may map these frames at all.
    #[inline]
    pub(crate) fn reaches(&self, frames: &PhysRange) -> bool {
        frames
            .last()
            .as_u64()
            .checked_shr(self.caps.phys_bits.into())
            .unwrap_or(0)
            == 0
    }
}

/// What only a domain with tables has, beside what it shares.
pub struct TablesHeld<O: Owner, B: Backend> {
    /// Firmware's regions and doorbells of the group that it was made for.
    pub(crate) pinned: Vec<PinnedRegion<O, B>>,
    pub(crate) lease: IdLease,
    /// The root after `destroy` closed the table and before the grace period was over.
    pub(crate) closed: Option<RootPointer>,
}

/// What devices can be attached to, on two axes. Its *owner* decides what is mapped: [`KernelPaging`] for
/// the hypervisor's own drivers, [`UserManaged`] for a guest. Its *shape* says what requests go through:
/// tables of its own ([`Paging`], [`ParentPaging`]), a user's first stage on a parent
/// ([`Nested`](crate::shape::Nested)), nothing ([`Identity`](crate::shape::Identity)), or that they are
/// refused ([`Blocked`]). A method exists where it makes sense.
///
/// One with tables is made for a group that its owner holds, since what the group's unit can do decides what can be
/// built; it can be made before any device is attached, for one device while another does the DMA, and for an attached
/// group as the one that replaces the present one.
/// There is no way to make one for a bus. Dropping a domain frees nothing and leaves devices attached;
/// `destroy` ends it.
#[must_use = "a dropped domain is lost with all it maps; destroy it"]
pub struct Domain<O: Owner, B: Backend, S: Shape<O, B> = Paging> {
    pub(crate) core: S::Core,
    pub(crate) owner: O::Id,
    pub(crate) held: S::Held,
}

impl<B: Backend> Domain<KernelPaging, B> {
    /// A paging domain for the hypervisor's driver of `group`. What firmware wants mapped for the group's devices
    /// is mapped in it. An attached group serves too, for a domain that replaces the one that it is in.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn paging_domain_alloc(
        group: &Group<B, impl HeldBy<KernelPaging>>,
        request: impl Into<DomainRequest>,
    ) -> Result<Self, DomainError> {
        let cpus = group.system().backend.platform().cpu_count();
        let domain = Self::for_group(&group.inner, (), request.into(), false, cpus)?;
        domain.with_regions(&group.inner)
    }
}

impl<B: Backend> Domain<UserManaged, B> {
    /// A plain paging domain for the guest that holds `group`, managed by the guest or its VMM. Where the group's
    /// interrupt messages go is mapped in it, if units translate those.
    ///
    /// # Errors
    /// [`DomainError`]: [`DomainError::NoSecondStage`] when the group's unit has none.
    pub fn user_domain_alloc(
        group: &Group<B, impl HeldBy<UserManaged>>,
        request: impl Into<DomainRequest>,
    ) -> Result<Self, DomainError> {
        check_second_stage(&group.inner)?;
        let owner = group.state.owner();
        let domain = Self::for_group(&group.inner, owner, request.into(), false, 0)?;
        domain.with_regions(&group.inner)
    }

    /// A domain on which the guest's own first stages can stand, or a plain one where the unit has no such
    /// thing. The answer says which, and what the unit lacks; the caller decides whether that will do.
    ///
    /// # Errors
    /// [`DomainError`], also when the request itself cannot be met: no part of that is left out.
    pub fn user_domain_alloc_or_plain(
        group: &Group<B, impl HeldBy<UserManaged>>,
        request: impl Into<DomainRequest>,
    ) -> Result<UserDomain<B>, DomainError> {
        let request = request.into();
        match Domain::user_parent_alloc(group, request) {
            Ok(domain) => Ok(UserDomain::Parent(domain)),
            Err(DomainError::Unmet { unmet, .. }) if unmet == NO_NESTING => {
                let domain = Self::user_domain_alloc(group, request)?;
                log::warn!("{domain:?} is plain: {unmet}");
                Ok(UserDomain::Plain { domain, unmet })
            }
            Err(error) => Err(error),
        }
    }
}

impl<B: Backend> Domain<UserManaged, B, ParentPaging> {
    /// A paging domain for the guest that holds `group`, on which its own first stages can stand.
    ///
    /// # Errors
    /// [`DomainError`]: [`DomainError::NoSecondStage`] when the group's unit has none, [`DomainError::Unmet`] when it
    /// cannot translate twice.
    pub fn user_parent_alloc(
        group: &Group<B, impl HeldBy<UserManaged>>,
        request: impl Into<DomainRequest>,
    ) -> Result<Self, DomainError> {
        check_second_stage(&group.inner)?;
        let owner = group.state.owner();
        let domain = Self::for_group(&group.inner, owner, request.into(), true, 0)?;
        domain.with_regions(&group.inner)
    }
}

/// Refuses a guest's domain on a unit that has first stages only: those are for whoever programs the unit.
fn check_second_stage<B: Backend>(group: &Inner<B>) -> Result<(), DomainError> {
    match group.caps.second_stage {
        true => Ok(()),
        false => Err(DomainError::NoSecondStage { unit: group.unit }),
    }
}

impl<O: Owner, B: Backend> Domain<O, B, Blocked> {
    /// The domain through which nobody reaches memory, for the owner of `group`. It takes nothing and
    /// needs no end.
    pub fn blocked(group: &Group<B, impl HeldBy<O>>) -> Self {
        Self {
            core: (),
            owner: group.state.owner(),
            held: (),
        }
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> Domain<O, B, S> {
    /// What requests of its devices go through.
    pub const STAGES: Stages = S::STAGES;

    /// The domain's number.
    pub fn uid(&self) -> DomainUid {
        S::anchor(&self.core).uid()
    }

    /// Whose it is.
    pub fn owner(&self) -> O::Id {
        self.owner
    }

    /// Takes exactly `range` of the address space.
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn reserve(&self, range: IovaRange) -> Result<Range<O, B, Free>, SpaceError>
    where
        S: Pages<O, B>,
    {
        let taken = self.core.space.reserve(range);
        let span = taken.map_err(|error| self.why_not(range, error))?;
        Ok(Range::new(self.core.clone(), self.owner, span, Free(())))
    }
}

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// With caches of free addresses for so many CPUs: none for a guest, which chooses its addresses itself.
    fn for_group(
        group: &Inner<B>,
        owner: O::Id,
        request: DomainRequest,
        nested: bool,
        iova_caches: usize,
    ) -> Result<Self, DomainError> {
        let DomainRequest { config, needs } = request;
        let system = &group.system;
        system.sweep();
        let unmet = |unmet| DomainError::Unmet {
            unit: group.unit,
            unmet,
        };
        let unit_caps = match needs.pasids {
            true => {
                let caps = system.backend.pasid_caps(group.unit);
                let guests = matches!(O::owner_id(owner), OwnerId::Vm(_));
                let caps = caps.filter(|caps| caps.second_stage || !guests);
                caps.ok_or_else(|| unmet(NO_PASIDS))?
            }
            false => group.caps,
        };
        if nested && !unit_caps.nested {
            return Err(unmet(NO_NESTING));
        }
        needs.check(&unit_caps).map_err(unmet)?;
        let caps = DomainCaps {
            nested,
            dirty: needs.dirty_tracking,
            snoop: needs.snoop(),
            ..shallowest::<B::Format>(&unit_caps, config)?
        };
        let whole = whole_space(caps.last)?;
        let space = IovaAllocator::new(whole, system.backend.reserved(), iova_caches)?;
        let lease = system.ids.take().ok_or(DomainError::NoDomainId)?;
        let geometry = Geometry {
            root: caps.level,
            root_tables: caps.root_tables,
            largest_leaf: Level::up_to::<B::Format>(caps.largest_page),
            coherent: caps.coherent,
            live_resize: caps.live_resize,
            dirty: caps.dirty,
        };
        let memory = PlatformHandle(system.clone());
        let format = system.backend.format(&unit_caps, caps.leaves());
        // SAFETY: the table stays inside of the domain's core, whose guards, grace periods and reclaim are all
        // of the system's one quiescence, with the backend's one platform as its CPUs.
        let table = unsafe { Table::new(format, geometry, memory) };
        let table = match table {
            Ok(table) => table,
            Err(error) => {
                system.ids.give_back(lease);
                return Err(error.into());
            }
        };
        let core = DomainCore {
            uid: DomainUid::fresh(),
            owner: O::owner_id(owner),
            id: match caps.second_stage {
                true => lease.id(),
                false => lease.id().of_first_stage(),
            },
            caps,
            table,
            regions: Mutex::new(Vec::new()),
            space,
            reach: Reach::new(),
            flushes: FlushOrder::new(),
            attachments: Users::none(),
            children: Users::none(),
            was_for_coherent: group.check_coherent().is_ok(),
            dma: DmaState::new(),
            reclaim_from: MachineU64::new(RECLAIM_FROM),
            assist: TryLock::new(()),
            system: system.clone(),
        };
        let core = match Shared::try_new(core) {
            Ok(core) => core,
            Err((core, error)) => {
                core.table.discard();
                system.ids.give_back(lease);
                return Err(error.into());
            }
        };
        let mut registry = system.registry.lock();
        if registry.domains.try_reserve(1).is_err() {
            drop(registry);
            if let Ok(core) = Shared::try_unwrap(core) {
                core.table.discard();
            }
            system.ids.give_back(lease);
            let bytes = size_of::<Shared<DomainCore<B>>>();
            return Err(OutOfMemory { bytes }.into());
        }
        registry.domains.push(core.clone());
        drop(registry);
        let held = TablesHeld {
            pinned: Vec::new(),
            lease,
            closed: None,
        };
        Ok(Self { core, owner, held })
    }

    /// The id under which units cache the domain's translations.
    pub fn hw_id(&self) -> HwDomainId {
        self.core.id
    }

    /// The level of the root table, the largest leaf and whether walks snoop.
    pub fn geometry(&self) -> Geometry {
        self.core.table.geometry()
    }

    /// Takes a range of this length anywhere in the address space: at a multiple of `align`, and with no address above
    /// `limit`, such as the last one that a device can send. The highest such range, unless a CPU has another at hand.
    /// Without wishes, [`IovaAlign::natural`] serves, and [`Iova::new(u64::MAX)`](Iova::new).
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn allocate_within(
        &self,
        pages: PageCount,
        align: impl Into<IovaAlign>,
        limit: Iova,
    ) -> Result<Range<O, B, Free>, SpaceError> {
        let span = self.core.alloc_iova(pages, align, limit)?;
        Ok(Range::new(self.core.clone(), self.owner, span, Free(())))
    }

    /// How many pages of the address space are in no range. Exact while no call takes or gives any.
    pub fn free_pages(&self) -> u64 {
        self.core.space.free_pages()
    }

    /// Frames for this domain's tables: none yet. To be filled before maps that must not look for any.
    pub fn table_frames(&self) -> TableFrames<'_, B> {
        TableFrames::of(&self.core)
    }

    /// How many pages the domain's tables take, with those that wait to be freed.
    pub fn table_pages(&self) -> u64 {
        self.core.table.table_pages()
    }

    /// Shows every leaf that has a page in `range`, in order, until the visitor breaks off.
    pub fn mappings(
        &self,
        range: IovaRange,
        show: impl FnMut(Mapping) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.core.table.mappings(&self.core.pin(), range, show)
    }

    /// Where a device's access to `at` leads.
    pub fn translate(&self, at: Iova) -> Option<Translation> {
        self.core.table.translate(&self.core.pin(), at)
    }

    /// Has every unit that the domain reaches forget translations of it, walk caches included.
    ///
    /// # Errors
    /// [`FlushError`] when a unit did not complete the flush.
    pub fn flush(&self, span: FlushSpan) -> Result<Receipt, FlushError> {
        self.core.flush(span, FlushDepth::WalkCaches)
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Debug for Domain<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let anchor = S::anchor(&self.core);
        match anchor.entries() {
            Some((id, owner)) => write!(f, "{} of {owner} ({id})", anchor.uid()),
            None => write!(f, "the blocked domain of {}", O::owner_id(self.owner)),
        }
    }
}
