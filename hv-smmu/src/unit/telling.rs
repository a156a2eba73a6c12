//! How a unit tells that a sync is complete, and what a CPU does that waits for it.

use hv_core::fault::Fault;
use hv_core::platform::{Clock, Platform};
use hv_core::sync::spin_hint;

use super::{Enabled, Unit};
use crate::spec::command::SyncSignal;
use crate::spec::id_registers::Idr0;
use crate::spec::quirks::{Quirk, Quirks};

/// How a unit tells that a sync is complete. Decided once, at discovery.
///
/// Either way the index of the command queue (CMDQ_CONS) is what proves it: an event makes a CPU look earlier than it
/// would have, and may be lost, or come for another reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// By nothing else.
    Index,
    /// By an event to all CPUs that wait for one, as SEV sends it.
    Event,
}

impl Telling {
    /// What the unit with these registers and quirks does.
    ///
    /// One without IDR0.SEV would take a sync that asks for an event, and send none (IHI 0070, 4.7.3).
    pub(super) fn of(idr0: Idr0, quirks: Quirks) -> Self {
        let sends = idr0.sev() && !quirks.has(Quirk::NoEventSync);
        match sends || Fault::AskAnyUnitForEvents.is_on() {
            true => Self::Event,
            false => Self::Index,
        }
    }

    /// What a sync asks for.
    pub(crate) const fn signal(self) -> SyncSignal {
        match self {
            Self::Index => SyncSignal::None,
            Self::Event => SyncSignal::Event,
        }
    }

    /// What a CPU does between two looks at the index. Where no event comes, a CPU that waited for one would look too late.
    pub(crate) fn pause(self, clock: &impl Clock) {
        match self {
            Self::Index => spin_hint(),
            Self::Event => clock.pause(),
        }
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// See [`hv_iommu::Backend::pause`].
    pub(crate) fn pause(&self, platform: &P) {
        self.info.telling.pause(platform);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::id_registers::Iidr;
    use crate::spec::quirks::by_iidr;

    #[test]
    fn events_are_asked_of_units_that_send_them() {
        let (with, without) = (Idr0::new().with_sev(true), Idr0::new());
        assert_eq!(Telling::of(with, Quirks::NONE), Telling::Event);
        assert_eq!(Telling::of(without, Quirks::NONE), Telling::Index);
        let other = Quirks::of(&[Quirk::SyncEveryBatch, Quirk::NoNesting]);
        assert_eq!(Telling::of(with, other), Telling::Event);
        // QEMU.
        let emulated = Idr0::from_bits(0x0d44_101b);
        assert_eq!(Telling::of(emulated, Quirks::NONE), Telling::Index);
    }

    #[test]
    fn parts_that_lose_events_are_not_asked_for_them() {
        let sev = Idr0::new().with_sev(true);
        for (variant, revision, telling) in [
            (0, 0, Telling::Index),
            (0, 2, Telling::Index),
            (0, 3, Telling::Event),
            (1, 0, Telling::Event),
        ] {
            let mmu_600 = Iidr::new()
                .with_implementer(0x43b)
                .with_product(0x483)
                .with_variant(variant)
                .with_revision(revision);
            let found = Telling::of(sev, by_iidr(mmu_600));
            assert_eq!(found, telling, "r{variant}p{revision}");
        }
    }

    #[test]
    fn a_sync_asks_for_what_is_waited_for() {
        assert_eq!(Telling::Index.signal(), SyncSignal::None);
        assert_eq!(Telling::Event.signal(), SyncSignal::Event);
    }
}
