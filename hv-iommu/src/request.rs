//! What an embedder needs of a domain beyond its size, and what was built: no silent fallback.

use core::fmt;

use hv_core::{Owner, UserManaged};

use crate::backend::{Backend, UnitCaps};
use crate::capability::Unmet;
use crate::domain::{Domain, DomainConfig, DomainUid};
use crate::shape::{Pages, Paging, ParentPaging};

/// What a unit lacks that cannot translate twice.
pub(crate) const NO_NESTING: Unmet = Unmet::absent("users' own first stages");

/// What a domain has to have. Fixed for its life; each is refused where the unit cannot, and witnessed
/// where it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// That units note what devices write: [`Domain::dirty`].
    pub dirty_tracking: bool,
    /// That table walks snoop the CPU's caches: [`Domain::snoops`]. A unit that does is used so anyway.
    pub coherent_walks: bool,
}

impl Needs {
    /// Whether a unit meets all of them.
    pub(crate) fn check(self, unit: &UnitCaps) -> Result<(), Unmet> {
        let rows = [
            ("dirty tracking", self.dirty_tracking, unit.dirty),
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

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// The witness that table walks snoop, where the unit that the domain was made for does. A unit that
    /// does not is refused at attach then.
    pub fn snoops(&self) -> Option<CoherentWalks> {
        let domain = self.core.uid;
        self.core.caps.coherent.then_some(CoherentWalks { domain })
    }
}
