//! A device's request on its way to memory, one fetch at a time.

use std::fmt;

use hv_core::Access;

use crate::{smmu, vtd};

/// A request in flight.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) number: u64,
    /// Who sends it: an index of the functions.
    pub(crate) device: usize,
    /// The requester id that it carries.
    pub(crate) requester: u16,
    /// The PASID that it carries (SMMUv3: the SubstreamID), if it carries one. Zero is one as well.
    pub(crate) substream: Option<u32>,
    pub(crate) unit: usize,
    pub(crate) address: u64,
    pub(crate) access: Access,
    /// When it began, in ticks.
    pub(crate) began: u64,
    pub(crate) progress: Progress,
    pub(crate) says: Says,
    /// Whether it asks not to snoop the CPU's caches (No_snoop), and its root complex heeds that.
    pub(crate) no_snoop: bool,
    /// What it writes, where that is a message; by chance if nobody says.
    pub(crate) event: Option<u32>,
}

/// Where a request was found to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    pub(crate) to: u64,
    /// What invalidations name.
    pub(crate) tag: Mark,
    /// Log2 bytes of the translation that said so.
    pub(crate) span: u8,
    /// Whether it goes past the CPU's caches.
    pub(crate) past_caches: bool,
}

/// What a request says that it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Says {
    /// To be translated.
    #[default]
    Untranslated,
    /// A translation is asked for, for the device to keep.
    Asks,
    /// It was translated by one that the device kept: this is where it goes.
    Translated { to: u64 },
}

/// As whom a device sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    /// The requester id.
    pub(crate) requester: u16,
    /// The PASID, if requests carry one.
    pub(crate) substream: Option<u32>,
}

/// How far a request is.
#[derive(Clone, Debug)]
pub(crate) enum Progress {
    /// Nothing was fetched for it, or all of it was thrown away.
    New,
    /// A VT-d unit is fetching entries for it.
    Vtd(vtd::Walk),
    /// An SMMUv3 is fetching entries for it.
    Smmu(Box<smmu::Walk>),
    /// It was translated and has not reached memory yet.
    Translated(Reach),
}

/// Under what a unit keeps what it translated a request by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// VT-d: a domain.
    Vtd(u16),
    /// SMMUv3: VMID, ASID, or both.
    Smmu(smmu::Tag),
}

impl From<smmu::Tag> for Mark {
    fn from(tag: smmu::Tag) -> Self {
        Self::Smmu(tag)
    }
}

/// What one step of a unit did for a request.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// One entry was fetched, or looked up.
    Again,
    /// The address is known.
    Translated(Reach),
    /// Translation is off: the address goes to memory as it is.
    Untranslated,
    /// The request was refused.
    Fault { reason: u8 },
    /// The request stands still until software answers.
    Stalled,
    /// The request went nowhere, silently.
    Lost { why: &'static str },
    /// The same in the moment between firmware's stream table and another one, which is put up with.
    InGap,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reached memory at this physical address.
    Reached {
        /// The address.
        at: u64,
    },
    /// The unit refused it for this reason, in the vendor's code.
    Faulted {
        /// The code.
        reason: u8,
    },
    /// It went nowhere: the device has no bus mastering, is gone, or protected memory was in the way.
    Lost,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached { at } => write!(f, "reached {at:#x}"),
            Self::Faulted { reason } => write!(f, "blocked by the unit (reason {reason:#x})"),
            Self::Lost => f.write_str("blocked before it came to the unit's tables"),
        }
    }
}
