//! Requesters that are bound to nothing, and what of a budget each has used up.
//!
//! A device may send whatever its bus master bit says, also while nobody has it, at rest, and after a detach. It reaches
//! nothing; but its faults fill the log that it shares with others, so it has a budget too.

use arrayvec::ArrayVec;
use hv_core::PciAddress;
use hv_core::platform::Instant;

use super::{Counted, Meter, RawFault};
use crate::backend::{Backend, UnitIndex};
use crate::system::{Registry, System};

/// How many have a budget of their own at a time. Of more, the one that was counted first begins anew, which costs as many
/// faults as the budget has.
const AT_ONCE: usize = 16;

/// What those have used up that faulted lately. None of them is bound.
#[derive(Default)]
pub(crate) struct Strangers(ArrayVec<Stranger, AT_ONCE>);

/// One of them.
struct Stranger {
    unit: UnitIndex,
    requester: PciAddress,
    meter: Meter,
    /// Whether its entry was made quiet, and its unit was not asked to read that yet.
    owes_reread: bool,
}

impl Strangers {
    /// What is known of one, which is nothing at first.
    fn of(&mut self, unit: UnitIndex, requester: PciAddress) -> Option<&mut Stranger> {
        let its = |known: &Stranger| (known.unit, known.requester) == (unit, requester);
        if !self.0.iter().any(its) {
            if self.0.is_full() {
                // One that owes nothing first.
                let done = self.0.iter().position(|known| !known.owes_reread);
                self.0.pop_at(done.unwrap_or_default());
            }
            let new = Stranger {
                unit,
                requester,
                meter: Meter::default(),
                owes_reread: false,
            };
            self.0.try_push(new).ok()?;
        }
        self.0.iter_mut().find(|known| its(known))
    }

    /// Forgets those that are bound from now on, whose entries are made anew, and those that are others' now.
    pub(crate) fn forget(&mut self, requesters: &[PciAddress]) {
        self.0
            .retain(|known| !requesters.contains(&known.requester));
    }

    /// See [`Registry::rereads`].
    pub(super) fn rereads(&mut self) -> impl Iterator<Item = (UnitIndex, PciAddress, &mut bool)> {
        let known = self.0.iter_mut();
        known.map(|known| (known.unit, known.requester, &mut known.owes_reread))
    }
}

impl<B: Backend> System<B> {
    /// Counts a fault of a requester that is bound to nothing. Under the registry's lock, which every binding takes before it
    /// makes an entry, so that the one that is made quiet leads nowhere.
    pub(super) fn count_stranger(
        &self,
        registry: &mut Registry<B>,
        unit: UnitIndex,
        fault: &RawFault,
        now: Instant,
    ) -> Counted {
        let requester = fault.requester;
        let Some(stranger) = registry.strangers.of(unit, requester) else {
            return Counted::Unbound;
        };
        let before = stranger.meter.cut_off;
        if !before && !stranger.meter.count(now, self.budget) {
            return Counted::Unbound;
        }
        stranger.meter.cut_off = true;
        // Where there is no entry that could say so it costs others room in the log, no more. One that was quiet was recorded
        // before its unit knew.
        let quiet = self.backend.quiet(unit, requester).is_ok();
        stranger.owes_reread |= quiet && (!before || self.backend.heeds_quiet(fault.code));
        match before {
            true => Counted::Late,
            false => Counted::UnboundNoMore,
        }
    }
}
