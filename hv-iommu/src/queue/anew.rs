//! A ring in the hands of one CPU: the reset of a wedged unit.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::{AtomicBool, Ordering, spin_hint};

use super::bell::Bell;
use super::port::QueuePort;
use super::words::{Tail, WEDGED_BIT};
use super::{Caller, CommandQueue};
use crate::backend::{FlushTicket, UnitError, UnitIndex};

/// The right to restart, repair or mend, which one CPU at a time has.
pub(super) struct Upkeep<'q>(&'q AtomicBool);

impl<'q> Upkeep<'q> {
    pub(super) fn take(queue: &'q CommandQueue) -> Option<Self> {
        // ORDERING: Acquire pairs with the Release of the drop: what the last one wrote to the ring comes before
        // anything that this one does. Relaxed on failure, nothing is looked at.
        queue
            .upkeep
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Self(&queue.upkeep))
    }
}

impl Drop for Upkeep<'_> {
    fn drop(&mut self) {
        // ORDERING: Release, as said in `take`.
        self.0.store(false, Ordering::Release);
    }
}

/// A ring that starts anew, empty, at place zero: the one reset of a wedged unit has it alone. Dropping it leaves the
/// unit wedged.
///
/// Hardware that stands unanswered meanwhile is told to go on: what was asked of somebody behind the unit before is of no
/// use any more. So before the last of the reset's requests the vendor keeps all of those from what they may not have
/// forgotten.
#[must_use = "the unit stays wedged until the ring is revived"]
pub struct Anew<'q> {
    queue: &'q CommandQueue,
    _upkeep: Upkeep<'q>,
}

impl CommandQueue {
    /// Takes the ring of a wedged unit from everybody and starts it anew. The vendor then turns its queue off and on
    /// again with head and tail at zero, has everything forgotten, and [revives](Anew::revive).
    ///
    /// Waits for CPUs that are in the middle of a submission. Sequences go on, so what the old ring lost is
    /// never given again.
    ///
    /// # Errors
    /// [`UnitError::NotWedged`]; [`UnitError::Busy`] when another CPU has not ended its submission, its reset or its
    /// repair in time. Nothing was changed.
    pub fn restart<P: QueuePort>(&self, port: &P) -> Result<Anew<'_>, UnitError> {
        let unit = port.unit();
        let start = port.clock().now();
        let deadline = start.after(port.deadline(self.shape));
        loop {
            // Each time: another reset may have ended meanwhile.
            if !self.tail().is_wedged() {
                return Err(UnitError::NotWedged { unit });
            }
            let now = port.clock().now();
            if let Some(upkeep) = Upkeep::take(self)
                && self.try_restart(0)
            {
                return Ok(Anew {
                    queue: self,
                    _upkeep: upkeep,
                });
            }
            if now > deadline {
                let waited = now.since(start);
                return Err(UnitError::Busy { unit, waited });
            }
            spin_hint();
        }
    }

    /// Restarts the ring, past the sequence `past`, if no CPU has a store left to make to it and the unit is wedged.
    /// The caller has the upkeep, so no reset ends meanwhile. Whether it did.
    fn try_restart(&self, past: u64) -> bool {
        let by_force = || {
            let fault = Fault::RestartWithoutWaiting.is_on();
            fault.then(|| (Bell::of_reservation(), self.tail()))
        };
        // Another may have revived the ring just now: its bell is for who uses it.
        let is_ours = |tail: Tail| tail.is_wedged() || Fault::RestartTakesAnyBell.is_on();
        let wanted = |tail: Tail| is_ours(tail).then(|| tail.with_bell_alone());
        let taken = self.take_bell(wanted).or_else(by_force);
        let Some((bell, tail)) = taken else {
            return false;
        };
        // Nobody is admitted to a wedged queue, and nobody else places syncs: the position stays.
        // ORDERING: Relaxed: only holders of the bell store it.
        let mut end = self.told.given.load(Ordering::Relaxed);
        while let Some(turn) = self.published(end) {
            end = turn.end();
        }
        let all = end == tail.position() || Fault::RestartWithoutWaiting.is_on();
        let restarted = all && tail.is_wedged();
        if restarted {
            let position = self.shape.next_start(tail.position().max(past));
            // ORDERING: Release, all five: in place before anybody is admitted again. Who waits for a sync of the
            // old ring finds it covered, and its ticket done once the unit is revived.
            self.head.0.store(position, Ordering::Release);
            // ORDERING: as above.
            self.told.given.store(position, Ordering::Release);
            // ORDERING: as above.
            self.told.rung.store(position, Ordering::Release);
            // ORDERING: as above.
            self.told.covered.store(position, Ordering::Release);
            // ORDERING: as above. A unit that is turned on again needs nobody to ring for the old ring.
            self.told.again.store(false, Ordering::Release);
            // INVARIANT: everything is at `position`, nothing from there on is published: no turn word names a
            // position that was never reserved.
            // ORDERING: Release: the five above, to who is admitted. A store: whoever changes a wedged tail meanwhile wedges
            // it once more, or leaves what the old ring had. It gives the bell up as well.
            self.tail
                .0
                .store(tail.restarted(position).into_bits(), Ordering::Release);
        } else {
            // What was left is in a ring that is wedged.
            let _ = self.let_go(bell);
        }
        restarted
    }
}

impl Anew<'_> {
    /// As [`CommandQueue::submit_and_wait`], while everybody else is refused.
    ///
    /// # Errors
    /// As there.
    pub fn submit_and_wait<P: QueuePort>(
        &self,
        port: &P,
        batch: &[P::Entry],
        what: &'static str,
    ) -> Result<(), UnitError> {
        self.queue
            .submit_and_wait_for(Caller::Reset, port, batch, what)
    }

    /// Lets all further sequences come after that of `ticket`: where the unit's memory may hold one that is ahead.
    /// The ring stays empty and at place zero. Only before anything is submitted.
    ///
    /// # Errors
    /// [`UnitError::Busy`] when something was, or another CPU has the bell: nothing is changed.
    pub fn skip_past(&self, unit: UnitIndex, ticket: FlushTicket) -> Result<(), UnitError> {
        let queue = self.queue;
        let tail = queue.tail();
        // ORDERING: Acquire, as in `read_head`.
        let unused = queue.head.0.load(Ordering::Acquire) == tail.position();
        if unused && queue.try_restart(ticket.sequence) {
            return Ok(());
        }
        let waited = Duration::ZERO;
        Err(UnitError::Busy { unit, waited })
    }

    /// From now on requests are taken again. The unit has forgotten all that any request of before asked it to
    /// forget, so what those stand for is done.
    pub fn revive(self) {
        // ORDERING: AcqRel: whoever is admitted again comes after the completed flushes of the reset.
        self.queue.tail.0.fetch_and(!WEDGED_BIT, Ordering::AcqRel);
    }
}
