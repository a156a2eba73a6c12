//! Why a unit did not do what was asked.

use core::fmt;
use core::time::Duration;

use hv_core::platform::OutOfFrames;
use hv_core::{OutOfMemory, PciAddress};
use thiserror::Error;

use super::{HwDomainId, UnitIndex};

/// What kind of command or descriptor a unit was given, as its vendor numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandCode(pub u8);

impl fmt::Display for CommandCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// Why a unit did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnitError {
    /// An earlier request timed out or failed; the unit takes no requests any more.
    #[error(
        "{unit} is wedged: an earlier request never completed, so its devices stay cut off until \
         `Iommu::reset_unit` brings it back"
    )]
    Wedged {
        /// The unit.
        unit: UnitIndex,
    },
    /// The unit was turned off for whoever has the machine next ([`Iommu::shut_down`](crate::Iommu::shut_down)).
    #[error("{unit} was shut down, which nothing takes back before the next bring-up")]
    ShutDown {
        /// The unit.
        unit: UnitIndex,
    },
    /// A reset was asked for, but nothing is wrong with the unit.
    #[error("{unit} is not wedged, so it is not reset")]
    NotWedged {
        /// The unit.
        unit: UnitIndex,
    },
    /// The unit did not answer in time.
    #[error("{unit} did not complete {what} within {waited:?}")]
    Timeout {
        /// The unit.
        unit: UnitIndex,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// Other contexts stood still in the middle of a submission to the unit's queue, or were resetting it. The unit is
    /// well: try again. What was asked for may be done still when they go on, which nobody is told of.
    ///
    /// At the unbinding of a device it cuts the unit off all the same, since its entry is down and nobody knows when the
    /// unit has forgotten it; so backends ask for that flush several deadlines long (`CommandQueue::submit_patiently`).
    #[error(
        "{unit} took no request within {waited:?}, because other contexts held its queue or were \
         resetting it"
    )]
    Busy {
        /// The unit.
        unit: UnitIndex,
        /// How long was tried.
        waited: Duration,
    },
    /// The unit reported an error of its own.
    #[error("{unit} reported {what}: expected {expected:#x}, found {found:#x}")]
    Hardware {
        /// The unit.
        unit: UnitIndex,
        /// What went wrong.
        what: &'static str,
        /// The value that says all is well.
        expected: u64,
        /// The value that was read.
        found: u64,
    },
    /// The unit calls a command illegal, also when it has read it once more. What that was to do is not done, and nothing
    /// that waited for it counts as done; the unit goes on with all others, unless nobody waited for that one.
    #[error(
        "{unit} refuses command {code} at entry {entry} of its queue, which is legal by all that the unit says of itself: \
         what it was for is not done; ask in another way (the whole domain instead of pages), or reset the unit"
    )]
    Refused {
        /// The unit.
        unit: UnitIndex,
        /// The kind of the command.
        code: CommandCode,
        /// Which entry of the queue.
        entry: usize,
    },
    /// A table of the unit needs a frame.
    #[error(transparent)]
    OutOfFrames(#[from] OutOfFrames),
    /// What is noted of a binding needs memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The requester is bound already; it must be unbound first.
    #[error("{requester} is bound to {domain} already")]
    AlreadyBound {
        /// The requester.
        requester: PciAddress,
        /// What it is bound to.
        domain: HwDomainId,
    },
    /// The requester is not bound to that domain.
    #[error("{requester} is not bound to {domain}")]
    NotBound {
        /// The requester.
        requester: PciAddress,
        /// What it was expected to be bound to.
        domain: HwDomainId,
    },
    /// The requester's entry does not become the other one in one store.
    #[error(
        "the entry of {requester} cannot be switched while it is live: more than one word of it decides; expected a \
         replacement with a gap (`replace_with_gap`)"
    )]
    NeedsGap {
        /// The requester.
        requester: PciAddress,
    },
    /// A device did not forget translations that it keeps, or its unit was reset meanwhile: it may keep none. The unit is
    /// well.
    #[error(
        "the device of {requester} does not forget translations when told to (ATS), so it may keep none"
    )]
    NoAnswer {
        /// The requester.
        requester: PciAddress,
    },
    /// There is no such unit.
    #[error("there is no {unit}")]
    NoSuchUnit {
        /// The number that was given.
        unit: UnitIndex,
    },
}
