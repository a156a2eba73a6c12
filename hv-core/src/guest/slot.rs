//! One run of what a guest was given, and its place in the guest.

use super::Loan;
use super::pins::{Held, PinBook};
use crate::{
    FrameRun, Gpa, GpaRange, Hypervisor, MmioRun, PageCount, PageSize, PhysRange, Shared, VmId,
};

/// What stands behind a slot.
pub(super) enum Backing {
    /// The guest's own memory.
    Ram(FrameRun<Hypervisor>),
    /// Memory of another guest.
    Lent(Loan),
    /// Registers of a device.
    Registers(MmioRun),
}

impl Backing {
    pub(super) fn range(&self) -> PhysRange {
        match self {
            Self::Ram(frames) => frames.range(),
            Self::Lent(loan) => loan.range(),
            Self::Registers(registers) => registers.range(),
        }
    }
}

/// # Invariants
/// `frames` is the range of `backing` and as long as `gpa`. The slot is the part of what `book` counts that
/// begins at its page `first`.
pub(super) struct Slot {
    pub(super) gpa: GpaRange,
    pub(super) frames: PhysRange,
    pub(super) backing: Backing,
    pub(super) book: Shared<PinBook>,
    pub(super) first: u64,
}

/// What a slot of a guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// The guest's own memory.
    Ram,
    /// Memory that another guest lends this one.
    Lent {
        /// Whose it is.
        from: VmId,
    },
    /// Registers of a device.
    Registers,
}

/// A slot of a guest's memory, as told to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestSlot {
    /// Where the guest sees it.
    pub range: GpaRange,
    /// What it is.
    pub kind: SlotKind,
}

impl Slot {
    pub(super) fn kind(&self) -> SlotKind {
        match &self.backing {
            Backing::Ram(_) => SlotKind::Ram,
            Backing::Lent(loan) => SlotKind::Lent { from: loan.from() },
            Backing::Registers(_) => SlotKind::Registers,
        }
    }

    pub(super) fn describe(&self) -> GuestSlot {
        GuestSlot {
            range: self.gpa,
            kind: self.kind(),
        }
    }

    /// How many whole pages into the slot `at` is, which does not lie before it.
    pub(super) fn pages_to(&self, at: Gpa) -> u64 {
        (at.as_u64() - self.gpa.start().as_u64()) >> PageSize::Size4K.shift()
    }

    /// Where pins of a part of the slot were looked for, when these were found: in the part, where they are known to be
    /// there, or in the blocks that it shares with its neighbours, other slots' among them.
    pub(super) fn watched(&self, part: GpaRange, held: Held) -> GpaRange {
        if held.beyond_doubt {
            return part;
        }
        let before = self.first + self.pages_to(part.start());
        let (first, pages) = self.book.watched(before, part.pages().get());
        let back = (before - first) << PageSize::Size4K.shift();
        let start = part.start().as_u64().checked_sub(back).map(Gpa::new);
        let range = start.zip(PageCount::new(pages));
        let range = range.and_then(|(start, pages)| GpaRange::new(start, pages).ok());
        range.unwrap_or(part)
    }
}
