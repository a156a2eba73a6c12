//! A guest's address space: which of its memory its devices reach, and at which addresses.
//!
//! An [`AddressSpace`] owns a domain of the guest, plain or a parent of its first stages, and every range token of it. Mappings go in and out whole; to
//! cut one is a step of its own ([`AddressSpace::split`]). Every call does all of what it was asked for or
//! nothing; the one exception is a unit that does not complete a flush: what was unmapped then stays pending, and
//! its memory pinned, until [`AddressSpace::retry`].
//!
//! Calls change the space by `&mut`: a guest's control path. What waits for units does not need it: an unmap is
//! [begun](AddressSpace::begin_unmap), [flushed](Unmapping::flush) without the space at hand, and
//! [finished](AddressSpace::finish). A huge guest is mapped by several CPUs with [`AddressSpace::bulk`], whose parts
//! are mapped without it too.

mod access;
mod areas;
mod bulk;
mod end;
mod error;
mod map;
mod quota;
mod unmap;
mod windows;

use alloc::vec::Vec;
use core::fmt;

use hv_core::{
    Gpa, GpaRange, GuestMemory, Iova, IovaRange, Owner, Perms, Shared, UserManaged, VmId,
};

use crate::backend::Backend;
use crate::domain::Domain;
use crate::shape::{Pages, Paging};
use areas::{Area, Areas};
use quota::Emptied;
use windows::Window;

pub use bulk::BulkPart;
pub use end::SpaceTeardown;
pub use error::AddressSpaceError;
pub use quota::TableQuota;
pub use unmap::{Flushed, Unmapping};
pub use windows::ReservedFor;

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Memory: the guest's own, or lent to it.
    Memory,
    /// Registers of a device.
    Registers,
}

/// A mapping of an address space, as told to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceMapping {
    /// The addresses that devices use.
    pub span: IovaRange,
    /// What of the guest they reach.
    pub gpa: GpaRange,
    /// What devices may do. Wider than what was asked for where the unit has no write-only mappings.
    pub perms: Perms,
    /// What stands behind it.
    pub kind: MappingKind,
}

/// The address space of a guest's devices, over a domain that the guest decides on.
///
/// Dropping it frees nothing, as with a domain: [`destroy`](Self::destroy) ends it.
///
/// # Invariants
/// All ranges of the domain that are not free are here: mapped or pending in `areas`, reserved in `reserved`, or
/// with a [`BulkPart`]; but for the doorbells, which the domain holds. Areas have one slot of the guest's memory behind them each. No allowed range meets a
/// reserved one.
#[must_use = "a dropped address space is lost with all it maps; destroy it"]
pub struct AddressSpace<B: Backend, S: Pages<UserManaged, B> = Paging> {
    domain: Domain<UserManaged, B, S>,
    areas: Areas<B>,
    allowed: Vec<IovaRange>,
    reserved: Vec<Window<B>>,
    quota: Option<Shared<TableQuota>>,
    /// Table pages that were charged to the quota for this space.
    charged: u64,
    /// Mappings that were charged to it.
    charged_mappings: u64,
    emptied: Emptied,
    /// How many of the table pages are for parts of a bulk map that are not back.
    promised_tables: u64,
}

/// Owners whose domains have an address space: [`UserManaged`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "an address space is a guest's, this domain is of `{Self}`",
    label = "a driver of the hypervisor decides what this domain maps",
    note = "for a guest: `Domain::user_domain_alloc(&group, ..)`, with the group that is claimed for it",
    note = "for a driver: the domain's DMA API, `Domain::dma_device` and `Domain::alloc_coherent`"
)]
pub trait SpaceOwner: Owner + Sized {
    /// The same domain.
    fn of_a_guest<B: Backend, S: Pages<Self, B> + Pages<UserManaged, B>>(
        domain: Domain<Self, B, S>,
    ) -> Domain<UserManaged, B, S>;
}

impl SpaceOwner for UserManaged {
    fn of_a_guest<B: Backend, S: Pages<Self, B>>(domain: Domain<Self, B, S>) -> Domain<Self, B, S> {
        domain
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// An empty address space over `domain`, which has no ranges yet, with its table pages and mappings charged to
    /// `quota`. Without one nothing but memory bounds what a guest has mapped, and what it takes of the heap.
    ///
    /// # Errors
    /// The domain, with [`AddressSpaceError::Quota`] when its tables are too many already.
    pub fn new<O: SpaceOwner>(
        domain: Domain<O, B, S>,
        quota: Option<Shared<TableQuota>>,
    ) -> Result<Self, (Domain<O, B, S>, AddressSpaceError)>
    where
        S: Pages<O, B>,
    {
        let charged = domain.table_pages();
        if let Some(quota) = &quota
            && let Err(error) = quota.take(charged)
        {
            return Err((domain, error));
        }
        // INVARIANT: nothing is mapped, reserved or allowed.
        Ok(Self {
            domain: O::of_a_guest(domain),
            areas: Areas::new(),
            allowed: Vec::new(),
            reserved: Vec::new(),
            quota,
            charged,
            charged_mappings: 0,
            emptied: Emptied::default(),
            promised_tables: 0,
        })
    }

    /// The domain, to attach groups to it.
    pub fn domain(&self) -> &Domain<UserManaged, B, S> {
        &self.domain
    }

    /// Whose space it is.
    pub fn vm(&self) -> VmId {
        self.domain.owner
    }

    /// The mappings, by address.
    pub fn mappings(&self) -> impl Iterator<Item = SpaceMapping> {
        self.areas.all().iter().filter_map(Area::describe)
    }

    /// The mapping that `at` lies in.
    pub fn find(&self, at: Iova) -> Option<SpaceMapping> {
        let index = self.areas.with(at)?;
        self.areas.get(index).and_then(Area::describe)
    }

    /// How many table pages are charged for this space: those that it has, and those that maps in progress may
    /// still take.
    pub fn charged(&self) -> u64 {
        self.charged
    }

    pub(crate) fn check_memory(&self, memory: &GuestMemory) -> Result<(), AddressSpaceError> {
        self.check_owner(memory.vm())
    }

    /// What is mapped here is of the space's own guest.
    fn check_owner(&self, memory: VmId) -> Result<(), AddressSpaceError> {
        let space = self.vm();
        match space == memory {
            true => Ok(()),
            false => Err(AddressSpaceError::ForeignMemory { space, memory }),
        }
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> fmt::Debug for AddressSpace<B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.areas.all().len();
        write!(f, "address space of {count} areas over {:?}", self.domain)
    }
}

/// The guest address `offset` bytes behind `start`. Callers stay within a range of the guest.
fn gpa_after(start: Gpa, offset: u64) -> Gpa {
    start.checked_add(offset).unwrap_or(start)
}
