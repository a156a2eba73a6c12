//! Why guest memory could not be given, pinned, lent or taken back.

use core::fmt;

use thiserror::Error;

use crate::{Gpa, GpaRange, OutOfBounds, OutOfMemory, PhysRange, RangeError, VmId};

/// Why guest memory could not be given, pinned, lent or taken back. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GuestMemoryError {
    /// The place is taken.
    #[error("guest range {wanted} overlaps {taken}, which the guest has already")]
    Overlap {
        /// The range that was asked for.
        wanted: GpaRange,
        /// The slot that is in the way.
        taken: GpaRange,
    },
    /// The guest has some of these frames already, at another place.
    #[error("the guest has frames of {range} already")]
    GivenTwice {
        /// The frames.
        range: PhysRange,
    },
    /// No single slot holds the range.
    #[error("guest range {wanted} lies in no single run of the guest's memory")]
    NotMemory {
        /// The range that was asked for.
        wanted: GpaRange,
    },
    /// The slot starts elsewhere.
    #[error("no run of the guest's memory starts at {0}")]
    NoSuchSlot(Gpa),
    /// Pages are still held by mappings or pending values: of the range, or of the blocks in which it lies and by which
    /// pins are watched.
    #[error("{}", pinned(range, watched, *pages))]
    Pinned {
        /// What was asked for.
        range: GpaRange,
        /// Where pins were looked for: more than the range, where only a neighbour may be pinned.
        watched: GpaRange,
        /// How many pins are held there, in pages.
        pages: u64,
    },
    /// The run belongs to another guest or to no slot of this one.
    #[error("frames {range} of {owner} are not memory of {vm}")]
    Foreign {
        /// The frames.
        range: PhysRange,
        /// Whose they are.
        owner: VmId,
        /// Whose memory this is.
        vm: VmId,
    },
    /// The slot is lent by another guest: it can be handed back, not taken, and not lent on.
    #[error("guest range {range} is lent by {from}: hand the loan back instead")]
    Lent {
        /// The slot.
        range: GpaRange,
        /// Whose memory it is.
        from: VmId,
    },
    /// The slot is not lent by another guest.
    #[error("guest range {range} is not lent by another guest")]
    NotLent {
        /// The slot.
        range: GpaRange,
    },
    /// The loan is for another guest.
    #[error("the loan is for {to}, not for {vm}")]
    NotForThisGuest {
        /// Whom it is for.
        to: VmId,
        /// Whose memory this is.
        vm: VmId,
    },
    /// The slot holds registers of a device, which are no memory.
    #[error("guest range {range} holds registers of a device, expected memory")]
    Registers {
        /// The slot.
        range: GpaRange,
    },
    /// The slot holds memory.
    #[error("guest range {range} holds memory, expected registers of a device")]
    NotRegisters {
        /// The slot.
        range: GpaRange,
    },
    /// The place is no valid range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The list of slots, or the book of pins, cannot grow.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A CPU access leaves the guest's memory.
    #[error(transparent)]
    OutOfBounds(#[from] OutOfBounds),
}

fn pinned(range: &GpaRange, watched: &GpaRange, pages: u64) -> impl fmt::Display {
    fmt::from_fn(move |f| match range == watched {
        true => write!(f, "guest range {range} is still pinned (pins: {pages})"),
        false => write!(
            f,
            "guest range {range} shares watched blocks with pages that are still pinned (pins: {pages}, in {watched}), its \
             own or its neighbours': take whole blocks, or give memory by `give_watched` with smaller ones"
        ),
    })
}
