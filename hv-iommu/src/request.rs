//! What an embedder needs of a domain beyond its size, and what was built: no silent fallback.

use core::fmt;

use hv_core::fault::Fault;
use hv_core::{Iova, IovaRange, Owner, PageCount, PageSize, UserManaged};

use crate::backend::{Backend, Snoop, UnitCaps};
use crate::capability::Unmet;
use crate::domain::{Domain, DomainConfig, DomainError, DomainUid};
use crate::shape::{Pages, Paging, ParentPaging};

/// What a unit lacks that cannot translate twice.
pub(crate) const NO_NESTING: Unmet = Unmet::absent("users' own first stages");

/// What a unit lacks that tells no PASIDs of such domains apart.
pub(crate) const NO_PASIDS: Unmet = Unmet::absent("PASIDs of such domains");

/// What a unit lacks whose leaves cannot make devices snoop.
pub(crate) const COHERENT_DMA: &str = "coherent DMA";

/// What a domain has to have. Fixed for its life; each is refused where the unit cannot, and witnessed
/// where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// That units note what devices write: [`Domain::dirty`].
    pub dirty_tracking: bool,
    /// That table walks snoop the CPU's caches: [`Domain::walks_snoop`]. A unit that does is used so anyway.
    pub coherent_walks: bool,
    /// That whatever devices send through it snoops the CPU's caches, also where they ask not to:
    /// [`Domain::snoops`]. A guest with a device that may ask so, and whose own cache maintenance the hypervisor
    /// ignores, could else read what the last owner of a page left in memory under a cache line, and a guest that
    /// may write its caches back slows everybody down.
    pub coherent_dma: bool,
    /// That a group which is attached to the domain can open PASIDs, and that the domain can be a PASID's. Where a unit
    /// tells PASIDs apart by first-stage tables alone, the domain is made of those; no guest's domain is.
    pub pasids: bool,
}

impl Needs {
    /// What has to become of requests that ask not to snoop.
    pub(crate) fn snoop(self) -> Snoop {
        match self.coherent_dma && !Fault::SnoopNotForced.is_on() {
            true => Snoop::Forced,
            false => Snoop::AsAsked,
        }
    }

    /// Whether a unit meets all of them.
    pub(crate) fn check(self, unit: &UnitCaps) -> Result<(), Unmet> {
        let rows = [
            ("dirty tracking", self.dirty_tracking, unit.dirty),
            (COHERENT_DMA, self.coherent_dma, unit.snoop_control),
            (
                // Dirty bits are written by the walker, past caches that it does not snoop.
                "coherent walks",
                self.coherent_walks || self.dirty_tracking,
                unit.coherent,
            ),
        ];
        match rows
            .into_iter()
            .find(|(_, needed, found)| *needed && !found)
        {
            Some((what, ..)) => Err(Unmet::absent(what)),
            None => Ok(()),
        }
    }
}

/// What an embedder asks of a new domain: its size, and what it needs beside. A [`DomainConfig`] alone
/// needs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainRequest {
    /// Address bits and page sizes.
    pub config: DomainConfig,
    /// What else.
    pub needs: Needs,
}

impl From<DomainConfig> for DomainRequest {
    fn from(config: DomainConfig) -> Self {
        let needs = Needs::default();
        Self { config, needs }
    }
}

impl DomainConfig {
    /// The same, with needs.
    pub const fn with(self, needs: Needs) -> DomainRequest {
        DomainRequest {
            config: self,
            needs,
        }
    }
}

/// All addresses up to `last`.
pub(crate) fn whole_space(last: Iova) -> Result<IovaRange, DomainError> {
    let too_few = DomainError::TooManyBits {
        needed: 13,
        found: 12,
    };
    let pages = PageCount::new(last.as_u64() / PageSize::Size4K.bytes() + 1).ok_or(too_few)?;
    IovaRange::new(Iova::new(0), pages).map_err(|_| too_few)
}

/// What was built for a user, where a plain domain is acceptable too.
#[must_use = "a dropped domain is lost with all it maps"]
pub enum UserDomain<B: Backend> {
    /// What was asked for: the user's own first stages can stand on it.
    Parent(Domain<UserManaged, B, ParentPaging>),
    /// The fallback.
    Plain {
        /// A plain paging domain.
        domain: Domain<UserManaged, B, Paging>,
        /// What the unit lacks.
        unmet: Unmet,
    },
}

impl<B: Backend> fmt::Debug for UserDomain<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent(domain) => write!(f, "{domain:?}, a parent"),
            Self::Plain { domain, unmet } => write!(f, "{domain:?}, plain: {unmet}"),
        }
    }
}

/// Witness that every unit a domain is attached to walks its tables through the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoherentWalks {
    domain: DomainUid,
}

impl CoherentWalks {
    /// Of which domain.
    pub const fn domain(&self) -> DomainUid {
        self.domain
    }
}

/// Witness that whatever devices send through a domain snoops the CPU's caches.
///
/// What an embedder may build on it: a guest's instructions that write caches back can be ignored, and its mappings of
/// ordinary memory be cacheable whatever the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoherentDma {
    domain: DomainUid,
}

impl CoherentDma {
    /// Of which domain.
    pub const fn domain(&self) -> DomainUid {
        self.domain
    }
}

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// The witness that table walks snoop, where the unit that the domain was made for does. A unit that
    /// does not is refused at attach then.
    pub fn walks_snoop(&self) -> Option<CoherentWalks> {
        let domain = self.core.uid;
        self.core.caps.coherent.then_some(CoherentWalks { domain })
    }

    /// The witness that devices snoop, if the domain was asked for with [`Needs::coherent_dma`]. A unit that cannot
    /// see to that is refused at attach then.
    pub fn snoops(&self) -> Option<CoherentDma> {
        let domain = self.core.uid;
        (self.core.caps.snoop == Snoop::Forced).then_some(CoherentDma { domain })
    }
}
