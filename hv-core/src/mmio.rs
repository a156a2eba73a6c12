//! Device registers as memory that a device may reach: peer to peer.

#![expect(
    unsafe_code,
    reason = "makes the value that stands for a run of registers"
)]

use core::fmt;

use crate::{PageCount, PciAddress, PhysRange};

/// A run of device registers and the right to let devices reach them: whole pages of a BAR.
///
/// Not memory: no frame allocator takes it, and no CPU access by copy leads to it. Its guest gets it by
/// [`GuestMemory::give_registers`](crate::GuestMemory::give_registers), and a device only by a pin of its own
/// ([`GuestMemory::pin_registers`](crate::GuestMemory::pin_registers)). It comes back when no device reaches it any
/// more, which has to be before its function stops to decode it or is moved elsewhere.
///
/// # Invariants
/// No RAM lies in the range, and no other run of registers overlaps it.
#[must_use = "dropping a run of registers loses it for good"]
pub struct MmioRun {
    range: PhysRange,
    function: PciAddress,
}

impl MmioRun {
    /// The registers of `function` at `range`.
    ///
    /// # Safety
    /// The range is decoded by a BAR of that function, whole and by nothing else, no RAM lies in it, and no other
    /// live `MmioRun` overlaps it.
    pub unsafe fn from_bar(range: PhysRange, function: PciAddress) -> Self {
        // INVARIANT: the caller's promise.
        Self { range, function }
    }

    /// Where they are.
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// How many pages.
    pub fn pages(&self) -> PageCount {
        self.range.pages()
    }

    /// Whose registers they are.
    pub fn function(&self) -> PciAddress {
        self.function
    }
}

impl fmt::Debug for MmioRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registers {} of {}", self.range, self.function)
    }
}
