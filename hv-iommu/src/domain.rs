//! Domains: an address space with an owner, its tables, and the units that it reaches.

#![expect(
    unsafe_code,
    reason = "hands the frames of an ended domain back to their owner"
)]

use core::fmt;
use core::sync::atomic::AtomicU64 as MachineU64;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::{AtomicUsize, Ordering, spin_hint};
use hv_core::{
    FrameRun, Iova, IovaRange, KernelPaging, OutOfMemory, Owner, OwnerId, PageCount, PageSize,
    Perms, PhysRange, Shared, UserManaged,
};
use spin::Mutex;
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan, HwDomainId, UnitCaps};
use crate::flush::{FlushError, Receipt};
use crate::format::{Level, RootPointer};
use crate::group::{Claimed, Group};
use crate::handle::PlatformHandle;
use crate::ids::IdLease;
use crate::iova::{IovaSpace, SpaceError};
use crate::order::FlushOrder;
use crate::quiesce::Guard;
use crate::range::{Free, Range};
use crate::reach::Reach;
use crate::system::System;
use crate::table::{Drain, Geometry, Table, TableError, Translation};

/// A domain's number, unique among all subsystems of the program; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DomainUid(u64);

/// The next number. One counter for the whole program, not one per subsystem: else a receipt of one
/// subsystem would open pending values of another. The machine's own atomic, not a modelled one.
static NEXT_UID: MachineU64 = MachineU64::new(1);

impl DomainUid {
    /// A number that no other domain ever has.
    fn fresh() -> Self {
        // ORDERING: Relaxed, only uniqueness counts.
        Self(NEXT_UID.fetch_add(1, Ordering::Relaxed))
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DomainUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}

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
            largest_page: PageSize::Size1G,
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
    /// All domain ids of the hardware are taken.
    #[error("all domain ids are taken")]
    NoDomainId,
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
    pub(crate) largest_page: PageSize,
    pub(crate) coherent: bool,
    pub(crate) write_only: bool,
    pub(crate) phys_bits: u8,
    pub(crate) last: Iova,
}

/// The part of a domain that its ranges, pending values and attachments share.
pub(crate) struct DomainCore<B: Backend> {
    pub(crate) uid: DomainUid,
    pub(crate) owner: OwnerId,
    pub(crate) id: HwDomainId,
    pub(crate) caps: DomainCaps,
    pub(crate) table: Table<B::Format, PlatformHandle<B>>,
    pub(crate) space: Mutex<IovaSpace>,
    pub(crate) reach: Reach,
    /// Flushes begun so far.
    pub(crate) flushes: FlushOrder,
    /// Groups whose entries may still name this domain.
    pub(crate) attachments: AtomicUsize,
    /// Buffers through which the CPU reaches memory that the table holds.
    pub(crate) buffers: AtomicUsize,
    pub(crate) system: Shared<System<B>>,
}

impl<B: Backend> DomainCore<B> {
    #[inline]
    pub(crate) fn pin(&self) -> Guard<'_> {
        self.system.pin()
    }

    /// What a mapping with these permissions really lets the device do.
    pub(crate) fn granted(&self, perms: Perms) -> Perms {
        match perms {
            Perms::Write if !self.caps.write_only => Perms::ReadWrite,
            other => other,
        }
    }

    /// Whether the domain may map these frames at all.
    pub(crate) fn reaches(&self, frames: &PhysRange) -> bool {
        frames
            .last()
            .as_u64()
            .checked_shr(self.caps.phys_bits.into())
            .unwrap_or(0)
            == 0
    }
}

/// An address space that devices can be attached to, with an owner who decides what is mapped:
/// [`KernelPaging`] for the hypervisor's own drivers, [`UserManaged`] for a guest.
///
/// Made for a claimed group, since what the group's unit can do decides what can be built. There
/// is no way to make one for a bus. Dropping a domain frees nothing and leaves devices attached;
/// [`destroy`](Self::destroy) ends it.
#[must_use = "a dropped domain is lost with all it maps; destroy it"]
pub struct Domain<O: Owner, B: Backend> {
    pub(crate) core: Shared<DomainCore<B>>,
    pub(crate) owner: O::Id,
    lease: IdLease,
    /// The root after `destroy` closed the table and before the grace period was over.
    closed: Option<RootPointer>,
}

impl<B: Backend> Domain<KernelPaging, B> {
    /// A paging domain for the hypervisor's driver of `group`.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn paging_domain_alloc(
        group: &Group<B, Claimed<KernelPaging>>,
        config: DomainConfig,
    ) -> Result<Self, DomainError> {
        Self::for_group(group, config)
    }
}

impl<B: Backend> Domain<UserManaged, B> {
    /// A domain for the guest that holds `group`, managed by the guest or its VMM.
    ///
    /// # Errors
    /// [`DomainError`].
    pub fn user_domain_alloc(
        group: &Group<B, Claimed<UserManaged>>,
        config: DomainConfig,
    ) -> Result<Self, DomainError> {
        Self::for_group(group, config)
    }
}

impl<O: Owner, B: Backend> Domain<O, B> {
    fn for_group(group: &Group<B, Claimed<O>>, config: DomainConfig) -> Result<Self, DomainError> {
        let system = group.system();
        system.sweep();
        let unit_caps = group.unit_caps();
        let caps = domain_caps(&unit_caps, config)?;
        let whole = whole_space(caps.last)?;
        let space = IovaSpace::new(whole, system.backend.reserved())?;
        let lease = system.ids.take().ok_or(DomainError::NoDomainId)?;
        let geometry = Geometry {
            root: caps.level,
            largest_leaf: Level::of(caps.largest_page),
            coherent: caps.coherent,
        };
        let memory = PlatformHandle(system.clone());
        let table = match Table::new(system.backend.format(&unit_caps), geometry, memory) {
            Ok(table) => table,
            Err(error) => {
                system.ids.give_back(lease);
                return Err(error.into());
            }
        };
        let owner = group.owner();
        let core = DomainCore {
            uid: DomainUid::fresh(),
            owner: O::owner_id(owner),
            id: lease.id(),
            caps,
            table,
            space: Mutex::new(space),
            reach: Reach::new(),
            flushes: FlushOrder::new(),
            attachments: AtomicUsize::new(0),
            buffers: AtomicUsize::new(0),
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
        Ok(Self {
            core,
            owner,
            lease,
            closed: None,
        })
    }

    /// The domain's number.
    pub fn uid(&self) -> DomainUid {
        self.core.uid
    }

    /// The id under which units cache the domain's translations.
    pub fn hw_id(&self) -> HwDomainId {
        self.core.id
    }

    /// The level of the root table, the largest leaf and whether walks snoop.
    pub fn geometry(&self) -> Geometry {
        self.core.table.geometry()
    }

    /// Takes exactly `range` of the address space.
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn reserve(&self, range: IovaRange) -> Result<Range<O, B, Free>, SpaceError> {
        let span = self.core.space.lock().reserve(range)?;
        Ok(Range::new(self.core.clone(), self.owner, span, Free(())))
    }

    /// How many pages of the address space are in no range.
    pub fn free_pages(&self) -> u64 {
        self.core.space.lock().free_pages()
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

    /// Ends the domain, and gives what hands out all that it mapped.
    ///
    /// Ranges and pending values that still exist become useless, whether they were dropped, forgotten
    /// or kept: what they named comes back here.
    ///
    /// # Errors
    /// The domain, while a group is attached, while a coherent buffer of it is alive, or while a CPU
    /// walks its table for too long. Call again then. A buffer that was forgotten, not dropped, keeps
    /// the domain for good.
    pub fn destroy(mut self) -> Result<Teardown<O, B>, DestroyError<O, B>> {
        // ORDERING: Acquire pairs with the decrement at detach. Attaching needs `&Domain`, so the
        // count cannot grow again.
        let attachments = self.core.attachments.load(Ordering::Acquire);
        if attachments != 0 && !Fault::FreeTablesEarly.is_on() {
            let reason = DestroyRefusal::Attached { attachments };
            return Err(DestroyError {
                domain: self,
                reason,
            });
        }
        // ORDERING: Acquire pairs with the decrement when a buffer goes: the CPU's last access through
        // it has happened. Making buffers needs `&Domain`, so the count cannot grow again.
        let buffers = self.core.buffers.load(Ordering::Acquire);
        if buffers != 0 {
            let reason = DestroyRefusal::BuffersInUse { buffers };
            return Err(DestroyError {
                domain: self,
                reason,
            });
        }
        self.closed = self.closed.or_else(|| self.core.table.close());
        let Some(root) = self.closed else {
            let reason = DestroyRefusal::Ended;
            return Err(DestroyError {
                domain: self,
                reason,
            });
        };
        let system = &self.core.system;
        let epoch = system.quiescence.retire_epoch();
        let clock = system.backend.platform();
        let deadline = clock.now().after(system.wait);
        while !system.quiescence.has_passed(epoch) {
            if clock.now() > deadline {
                let reason = DestroyRefusal::Busy;
                return Err(DestroyError {
                    domain: self,
                    reason,
                });
            }
            spin_hint();
        }
        // SAFETY: the root came from `close` of this domain's table. The grace period is over. No
        // group is attached, and detaching waited for the unit to forget the entry, so no walker
        // reaches the table. `self` is consumed with its root, so there is no second drain.
        let drain = unsafe { Drain::new(root) };
        Ok(Teardown {
            core: self.core,
            owner: self.owner,
            rest: Some((drain, self.lease)),
            tables: 0,
        })
    }
}

/// The shallowest table that serves the request on this unit, and its limits.
fn domain_caps(unit: &UnitCaps, config: DomainConfig) -> Result<DomainCaps, DomainError> {
    let bits = |level: Level| 12 + 9 * level.number();
    let usable = |level: Level| bits(level).min(unit.iova_bits);
    let wanted = unit
        .levels
        .iter()
        .find(|level| usable(*level) >= config.address_bits);
    let Some(level) = wanted else {
        let found = unit.levels.iter().map(usable).max().unwrap_or(0);
        return Err(DomainError::TooManyBits {
            needed: config.address_bits,
            found,
        });
    };
    let last = match 1_u64.checked_shl(usable(level).into()) {
        Some(end) => end - 1,
        None => u64::MAX,
    };
    Ok(DomainCaps {
        level,
        largest_page: unit.largest_page.min(config.largest_page),
        coherent: unit.coherent,
        write_only: unit.write_only,
        phys_bits: unit.phys_bits,
        last: Iova::new(last),
    })
}

/// All addresses up to `last`.
fn whole_space(last: Iova) -> Result<IovaRange, DomainError> {
    let too_few = DomainError::TooManyBits {
        needed: 13,
        found: 12,
    };
    let pages = PageCount::new(last.as_u64() / PageSize::Size4K.bytes() + 1).ok_or(too_few)?;
    IovaRange::new(Iova::new(0), pages).map_err(|_| too_few)
}

/// Why a domain was not destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DestroyRefusal {
    /// Groups are attached, or were wedged while attached.
    #[error("{attachments} groups are attached to the domain or were never cleanly detached")]
    Attached {
        /// How many.
        attachments: usize,
    },
    /// The CPU still reaches memory of the domain through coherent buffers.
    #[error("{buffers} coherent buffers of the domain are still alive; free or drop them first")]
    BuffersInUse {
        /// How many.
        buffers: usize,
    },
    /// A CPU did not leave the domain's table in time.
    #[error("a CPU is still walking the domain's table")]
    Busy,
    /// The domain has ended already.
    #[error("the domain has ended")]
    Ended,
}

/// A domain that could not be destroyed, and why.
pub struct DestroyError<O: Owner, B: Backend> {
    /// The domain.
    pub domain: Domain<O, B>,
    /// Why it was refused.
    pub reason: DestroyRefusal,
}

impl<O: Owner, B: Backend> fmt::Display for DestroyError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.domain.core.uid, self.reason)
    }
}

impl<O: Owner, B: Backend> fmt::Debug for DestroyError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend> core::error::Error for DestroyError<O, B> {}

/// An ended domain. Each step frees tables and hands out one run of frames that was mapped or
/// pending. Leaving off early loses the rest; nothing is freed twice or too early.
#[must_use = "frames and tables come back only by going through it"]
pub struct Teardown<O: Owner, B: Backend> {
    core: Shared<DomainCore<B>>,
    owner: O::Id,
    rest: Option<(Drain, IdLease)>,
    tables: u64,
}

impl<O: Owner, B: Backend> Teardown<O, B> {
    /// How many table pages were freed so far.
    pub fn tables_freed(&self) -> u64 {
        self.rest
            .as_ref()
            .map_or(self.tables, |(drain, _)| drain.tables_freed())
    }
}

impl<O: Owner, B: Backend> fmt::Debug for Teardown<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables_freed();
        write!(f, "end of {}, {tables} tables freed", self.core.uid)
    }
}

impl<O: Owner, B: Backend> Iterator for Teardown<O, B> {
    type Item = FrameRun<O::Memory>;

    fn next(&mut self) -> Option<Self::Item> {
        let (drain, _) = self.rest.as_mut()?;
        if let Some(range) = drain.step(&self.core.table) {
            // SAFETY: the table's entry was the record of a run of this owner that moved into it
            // at map. The drain shows each entry once and the table has ended, so this run is the
            // only one for these frames (for a guest: the one that carries their pins).
            return Some(unsafe { FrameRun::from_raw(range, self.owner) });
        }
        self.tables = drain.tables_freed();
        let (_, lease) = self.rest.take()?;
        // The id is free again with the last table: no group is attached, and each detach waited
        // for the unit to forget what it cached under the id.
        self.core.system.ids.give_back(lease);
        None
    }
}

impl<O: Owner, B: Backend> fmt::Debug for Domain<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} ({})",
            self.core.uid, self.core.owner, self.core.id
        )
    }
}
