//! Addresses that firmware or hardware keeps for itself, and the policies about those of firmware.

use core::fmt;

use hv_core::{IovaRange, PageSize, PhysAddr, PhysRange};

/// Why a range of a requester's addresses is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReservedKind {
    /// Writes there are interrupt messages, not memory.
    InterruptWindow,
    /// Firmware goes on using the device through this memory, at the same address: it has to stay mapped
    /// one to one as long as the device may do DMA.
    Pinned,
    /// Firmware used the device so while the machine started, and does no more.
    Relaxable,
    /// The device's interrupt messages go there, through the unit: it has to be mapped one to one, for writes, wherever
    /// the device is to interrupt anybody. A unit that does not translate messages has an
    /// [`InterruptWindow`](Self::InterruptWindow) instead.
    Doorbell,
}

impl fmt::Display for ReservedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InterruptWindow => "interrupt window",
            Self::Pinned => "pinned by firmware",
            Self::Relaxable => "used by firmware at start",
            Self::Doorbell => "doorbell of interrupt messages",
        })
    }
}

/// A reserved range, as firmware or hardware gave it: never merged with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The device's addresses.
    pub range: IovaRange,
    /// Why they are reserved.
    pub kind: ReservedKind,
}

impl ReservedRegion {
    /// What is to be mapped there: the same addresses. `None` for a window, or when no memory can have them.
    pub(crate) fn memory(&self) -> Option<PhysRange> {
        match self.kind {
            ReservedKind::InterruptWindow => None,
            ReservedKind::Pinned | ReservedKind::Relaxable | ReservedKind::Doorbell => {
                let start = PhysAddr::new(self.range.start().as_u64());
                PhysRange::new(start, self.range.pages()).ok()
            }
        }
    }
}

impl fmt::Display for ReservedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.range.pages().get() * (PageSize::Size4K.bytes() >> 10);
        write!(f, "{} ({kib} KiB, {})", self.range, self.kind)
    }
}

/// The policy that lets devices which firmware goes on using run on while translation goes on.
///
/// Until then they reach what they reached before, which may be all of memory; afterwards firmware's regions alone. Written
/// down in the log for each.
#[derive(Debug)]
pub struct FirmwareKept {
    reason: &'static str,
    gap: bool,
}

impl FirmwareKept {
    /// Takes the responsibility, and says why.
    pub fn keep_pinned_devices_running(reason: &'static str) -> Self {
        let gap = false;
        Self { reason, gap }
    }

    /// Puts up with a moment in which the requests of such devices are aborted, behind units that firmware left
    /// translating and that cannot go from its tables to others without one. A machine with such a unit is refused
    /// otherwise, before anything is touched.
    #[must_use]
    pub fn accepting_gap(self) -> Self {
        let gap = true;
        Self { gap, ..self }
    }

    /// Whether that moment is put up with.
    pub fn accepts_gap(&self) -> bool {
        self.gap
    }

    /// Why the policy was used.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// The policy that takes a device from firmware although firmware says that it goes on using it.
///
/// What firmware does through the device then faults, or reaches what the new owner mapped at the region's
/// addresses. Right for a device of which the embedder knows that firmware's claim is out of date; wrong for all
/// others. Written down in the log with each use.
#[derive(Debug)]
pub struct FirmwareOverridden {
    reason: &'static str,
}

impl FirmwareOverridden {
    /// Takes the responsibility, and says why.
    pub fn override_pinned_regions(reason: &'static str) -> Self {
        Self { reason }
    }

    /// Why the override was used.
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }
}
