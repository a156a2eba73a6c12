//! Looks at what a unit records, and at what it says of itself: one event at a time, and nothing hidden by a storm of
//! something else.

use core::cell::Cell;

use hv_core::PciAddress;
use hv_core::platform::Platform;
use hv_core::sync::{AtomicBool, AtomicUsize, Ordering};
use hv_iommu::FaultEvent;
use hv_iommu::queue::Alive;
use log::{error, warn};

use super::regs::Switch;
use super::{Enabled, Standing, Unit};
use crate::StreamId;
use crate::spec::stream_entry::{Config, WORDS};

/// Every how many looks the unit's own errors come first, then requests for pages. A look at events alone costs two accesses
/// to registers (four where the unit does not snoop) and one at errors two more, so that is a thirtieth of a storm's cost.
const OTHERS_FIRST: usize = 32;

/// Whose turn it is.
pub(super) struct Looks {
    turn: AtomicUsize,
    /// Whether the queue of requests for pages could not be turned off: a look waits for that once.
    gave_up: AtomicBool,
}

impl Looks {
    pub(super) fn new() -> Self {
        Self {
            turn: AtomicUsize::new(0),
            gave_up: AtomicBool::new(false),
        }
    }

    fn gave_up(&self) -> bool {
        // ORDERING: Relaxed, both: who reads it holds the lock under which it is stored.
        self.gave_up.load(Ordering::Relaxed)
    }

    fn give_up(&self) {
        // ORDERING: as above.
        self.gave_up.store(true, Ordering::Relaxed);
    }

    /// Whether this look begins with what comes last otherwise.
    fn others_first(&self) -> bool {
        // ORDERING: Relaxed, a number that each look has for itself.
        self.turn
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(OTHERS_FIRST)
    }
}

impl<P: Platform> Unit<P, Enabled> {
    /// Takes one event from the event queue, or else a request for pages, and answers it where somebody waits; or says
    /// that the unit has failed.
    ///
    /// While the unit is wedged, one that waits is taken once; its answer is owed, and given after the reset.
    pub(crate) fn take_fault(
        &self,
        platform: &P,
        requester_of: impl Fn(StreamId) -> Option<PciAddress>,
    ) -> Option<FaultEvent> {
        let reach = self.reach(platform);
        let tell = |answer| self.command(platform, answer).is_ok();
        let seen = self.state.commands.alive();
        let events = || {
            let aborted = || self.events_aborted(seen);
            let events = &self.state.events;
            events.take(&reach, &self.regs, &requester_of, tell, aborted)
        };
        let pages = || {
            let pages = self.state.pages.as_ref()?;
            let asked = Cell::new(None);
            let requester_of = |stream| {
                asked.set(Some(stream));
                requester_of(stream)
            };
            let taken = pages.take(&reach, &self.regs, requester_of, tell)?;
            if let Some(stream) = asked.get() {
                self.hear_no_more_of(platform, stream);
            }
            Some(taken)
        };
        let errors = || self.take_error(platform);
        let event = match self.state.looks.others_first() {
            true => first_of([&errors, &pages, &events]),
            false => first_of([&events, &pages, &errors]),
        };
        if let Some(FaultEvent::BadLog(bad)) = event {
            error!("SMMUv3 {}: {bad}: they are dropped", self.index);
        }
        event
    }

    /// A stream's entry as it stands; `None` where there is none.
    fn entry_of(&self, platform: &P, stream: StreamId) -> Option<[u64; WORDS]> {
        let entry = self.state.streams.entry(&self.reach(platform), stream);
        entry.ok().flatten().map(|entry| entry.read())
    }

    /// Turns the queue of requests for pages off for good where a device asks whose entry aborts: no entry keeps it from
    /// asking (IHI 0070, 8.2), so looks would never come to an end, nor answers. Without the queue the unit itself tells each
    /// device that asks that it may not, as is done here; what is lost is that they are told of and counted.
    fn hear_no_more_of(&self, platform: &P, stream: StreamId) {
        let words = self.entry_of(platform, stream);
        let aborts =
            words.is_none_or(|words| matches!(Config::of(&words), None | Some(Config::Abort)));
        if !aborts || !self.regs.control().priqen() {
            return;
        }
        // Whoever holds it writes the same register, and the next request is looked at as well.
        let Some(standing) = self.state.reset.try_lock() else {
            return;
        };
        if *standing != Standing::On || self.state.looks.gave_up() {
            return;
        }
        match self.regs.switch(platform, self.index, Switch::Pages, false) {
            Ok(()) => warn!(
                "SMMUv3 {}: {stream} asks for pages (PRI) and is let nothing: the unit answers such requests by itself from now on",
                self.index
            ),
            Err(error) => {
                error!(
                    "SMMUv3 {}: {stream} asks for pages (PRI) and is let nothing, and the unit goes on telling: {error}",
                    self.index
                );
                self.state.looks.give_up();
            }
        }
    }

    /// Events could not be written, or were dropped unread. Where faults stand still, requests may do so for ever now: software
    /// never learns of them, and nothing ends them before their stream's entry aborts (IHI 0070, 4.7.2, 7.2.2). So the unit
    /// counts as failed there; elsewhere what was lost is lost.
    ///
    /// Where the unit was wedged when the look began there is nothing to add to that: its failure was told, its devices were cut
    /// off, and that a unit fails is all that could be said. A reset ends no request that stands still, whether this was told or
    /// not: that takes CMD_STALL_TERM behind an entry that aborts, which each unbinding has.
    fn events_aborted(&self, seen: Option<Alive>) -> FaultEvent {
        let fails = self.info.always_stalls()
            && seen.is_some_and(|seen| self.state.commands.wedge_as_seen(seen));
        if !fails {
            return FaultEvent::Overflow;
        }
        error!(
            "SMMUv3 {}: events of requests that stand still could not be written, or not be believed",
            self.index
        );
        FaultEvent::Failed
    }
}

/// What the first of these looks gives that gives an event; else whether one of them keeps some back.
fn first_of(looks: [&dyn Fn() -> Option<FaultEvent>; 3]) -> Option<FaultEvent> {
    let mut withheld = None;
    for look in looks {
        match look() {
            None => {}
            Some(FaultEvent::Withheld) => withheld = Some(FaultEvent::Withheld),
            event => return event,
        }
    }
    withheld
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_back_hides_nothing_behind_it() {
        let (none, kept) = (|| None, || Some(FaultEvent::Withheld));
        let lost = || Some(FaultEvent::Overflow);
        let failed = || Some(FaultEvent::Failed);
        assert_eq!(first_of([&none, &none, &none]), None);
        assert_eq!(first_of([&lost, &kept, &failed]), lost());
        assert_eq!(first_of([&kept, &none, &failed]), failed());
        assert_eq!(first_of([&none, &kept, &none]), kept());
    }

    #[test]
    fn every_so_many_looks_begin_with_what_comes_last_otherwise() {
        let looks = Looks::new();
        let turns: Vec<usize> = (0..100).filter(|_| looks.others_first()).collect();
        assert_eq!(turns, [0, 32, 64, 96]);
    }
}
