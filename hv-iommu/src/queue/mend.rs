//! A queue that stands unanswered: something behind the unit (a device that keeps translations itself) was told to forget,
//! and does not say that it did.
//!
//! Hardware stops at the sync then, and does not say who it is. Told to go on, it carries that sync out once more and
//! counts it as complete, with all that it stands for. A ticket may stand for more than its own sync: who shares
//! syncs may have been given a later one, and long batches have several. So nothing is made of single tickets here:
//!
//! 1. Whoever waits and finds hardware standing tries to take the upkeep: one CPU mends, all others go on waiting.
//! 2. It *holds* the queue: a bit of the tail, so that each reservation was made before, or waits until it is let go of. A
//!    held queue completes no ticket ([`CommandQueue::poll`] looks at the tail after it has looked at the head).
//! 3. While hardware stands still, all that was reserved is waited for to be in the ring, and what there asks somebody behind
//!    the unit is taken out ([`QueuePort::spare`]): each sync behind one of those would cost the whole time that somebody who
//!    does not answer is given, and they are asked anew below, for all.
//! 4. Only then hardware is told to go on ([`QueuePort::resume`]), as often as it stops, until all that was reserved was
//!    read and the last of it, a sync, is complete: what the unit itself was asked for is done. Which of
//!    those that had to answer did is not known.
//! 5. The queue is the mender's alone now. It asks each that may have to answer to forget all that it has, by itself,
//!    with a sync behind it ([`Alone::ask`]): at that sync hardware stops or it does not, and nobody else can be the
//!    reason. What does not answer is kept from reaching anything, with a sync ([`Alone::tell`]); that is the
//!    port's business ([`QueuePort::settle`]). All others are not harmed: they have forgotten what they could ask for again.
//! 6. The queue is let go of. Each ticket of before the hold stands for what the unit has done by step 4, and for what
//!    others behind it have by step 5 or can use no more. So tickets count again by the head alone, as after a reset.
//!
//! Why no ticket counts too early: the head is past a sync that stood unanswered only after `resume`, which comes after the
//! hold. Who has seen such a head therefore sees the hold when it looks at the tail next, or that it is over. The loom model
//! `hardware_that_goes_on_by_itself_is_noticed` fails, as it must: its hardware needs no `resume`.
//!
//! Step 3 waits for producers in the middle of a submission, as a reset does, and everybody else waits for the mender. Each
//! step of the mending has the port's [deadline](QueuePort::deadline), and who waits for all of it begins to wait anew with
//! each ([`CommandQueue::mending_steps`]). They are at most two for each that may have to answer, and those that take long
//! are one for each that does not, beside the one that the mending began with. Asked one by one: who answers takes no time, and
//! a batch that is not answered would say nothing but that they have to be asked again. What goes wrong in a held queue
//! wedges the unit, and a reset lets go of it: it starts the ring anew. Reading of IHI 0070 (3.9.1.4, 7.1) that this stands on: a sync that is
//! carried out once more waits for whoever has still to answer, so that a later sync stops only for what was asked between
//! the two. If some hardware did otherwise, one that answers might be taken for one that does not, never the reverse.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::{Clock, Instant};
use hv_core::sync::{Ordering, fence, spin_hint};

use super::anew::Upkeep;
use super::port::{Going, QueuePort, Wait};
use super::words::{HELD_BIT, Tail};
use super::{Caller, CommandQueue};
use crate::backend::UnitError;

/// How long somebody waits for a mended queue: anew with each step of the mending.
pub(super) struct Patience {
    wait: Wait,
    steps: u64,
    start: Instant,
}

impl Patience {
    pub(super) fn since<P: QueuePort>(queue: &CommandQueue, port: &P, start: Instant) -> Self {
        Self {
            wait: Wait::since(port, queue.shape, start),
            steps: queue.mending_steps(),
            start,
        }
    }

    /// The time waited, if that is too long.
    pub(super) fn over<P: QueuePort>(
        &mut self,
        queue: &CommandQueue,
        port: &P,
        now: Instant,
    ) -> Option<Duration> {
        let steps = queue.mending_steps();
        if steps != self.steps && !Fault::MendingIsNotWaitedFor.is_on() {
            self.wait = Wait::since(port, queue.shape, now);
            self.steps = steps;
        }
        let over = self.wait.over(port, queue.shape, now);
        over.map(|_| now.since(self.start))
    }
}

/// A held queue in the hands of who mends it: everything that was submitted has been read, nobody else submits.
pub struct Alone<'q, 'p, P: QueuePort> {
    queue: &'q CommandQueue,
    port: &'p P,
    /// The tail when it was held.
    seen: Tail,
    /// The position of the sync at which hardware stood.
    stood: u64,
    _upkeep: Upkeep<'q>,
}

impl CommandQueue {
    /// Looks for errors, for somebody who waits; mends what stands unanswered, or repairs what is refused, unless another CPU
    /// is at it. Says whether that was done, by whomever.
    pub(super) fn look_after<P: QueuePort>(
        &self,
        seen: Tail,
        caller: Caller,
        port: &P,
    ) -> Result<bool, UnitError> {
        let unit = port.unit();
        match port.check().map_err(|error| self.fail(seen, unit, error))? {
            Going::On => Ok(false),
            Going::Refused => match caller {
                Caller::Anyone => self.repair(port),
                Caller::Mender | Caller::Reset => {
                    Err(self.fail(seen, unit, self.refused_at_head(port)))
                }
            },
            Going::Unanswered => match caller {
                Caller::Anyone => self.mend(port),
                // Of its own requests.
                Caller::Mender => Ok(false),
                // Of requests in the ring of before, which may outlive it. The vendor sees to it that nothing depends on
                // their answers by the time that the ring is revived ([`Anew`](super::Anew)).
                Caller::Reset => {
                    if !Fault::ResetHeedsOldAnswers.is_on() {
                        port.resume();
                    }
                    Ok(false)
                }
            },
        }
    }

    fn mend<P: QueuePort>(&self, port: &P) -> Result<bool, UnitError> {
        let Some(upkeep) = Upkeep::take(self) else {
            return Ok(false);
        };
        let unit = port.unit();
        let seen = self.admit(Caller::Mender, unit)?;
        // Looked at anew: only who has the upkeep tells hardware to go on, so from here on it stands, or it has been
        // mended since.
        let going = port.check().map_err(|error| self.fail(seen, unit, error))?;
        if going != Going::Unanswered {
            return Ok(true);
        }
        let stood = self.read_head(seen, Caller::Mender, port)?;
        if Fault::ResumeBeforeHold.is_on() {
            port.resume();
        }
        let alone = Alone {
            queue: self,
            port,
            seen: self.hold(unit)?,
            stood,
            _upkeep: upkeep,
        };
        let settled = alone.drain().and_then(|()| port.settle(&alone));
        settled.map_err(|error| self.fail(seen, unit, error))?;
        // ORDERING: AcqRel: who is admitted, or finds a ticket complete, comes after what was done.
        self.tail.0.fetch_and(!HELD_BIT, Ordering::AcqRel);
        self.step_mending();
        Ok(true)
    }

    /// How often the mending of this queue got on by a step. Who waits for a ticket, or for room, and finds this changed has
    /// waited for nothing so far: somebody behind the unit was given its time to answer.
    pub fn mending_steps(&self) -> u64 {
        // ORDERING: Relaxed, a number that says nothing but that time begins anew.
        self.steps.load(Ordering::Relaxed)
    }

    fn step_mending(&self) {
        // ORDERING: Relaxed, as above.
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Holds the queue, unless the unit is wedged.
    fn hold(&self, unit: crate::UnitIndex) -> Result<Tail, UnitError> {
        loop {
            let tail = self.admit(Caller::Mender, unit)?;
            // ORDERING: AcqRel: of all reservations each comes before or after this. Relaxed on failure: looked at anew.
            let held = self.tail.0.compare_exchange(
                tail.into_bits(),
                tail.held().into_bits(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if held.is_ok() {
                // ORDERING: SeqCst: the hold comes before the write that makes hardware go on, and so before whatever
                // head it shows then.
                fence(Ordering::SeqCst);
                self.step_mending();
                return Ok(tail);
            }
        }
    }

    /// A step of waiting until a held queue is let go of.
    pub(super) fn await_mending<P: QueuePort>(
        &self,
        port: &P,
        wait: &mut Option<Patience>,
    ) -> Result<(), UnitError> {
        let (now, unit) = (port.clock().now(), port.unit());
        let wait = wait.get_or_insert_with(|| Patience::since(self, port, now));
        if let Some(waited) = wait.over(self, port, now) {
            return Err(UnitError::Busy { unit, waited });
        }
        spin_hint();
        Ok(())
    }
}

impl<P: QueuePort> Alone<'_, '_, P> {
    #[cfg(all(test, not(hv_loom)))]
    pub(super) const fn queue(&self) -> &CommandQueue {
        self.queue
    }

    #[cfg(all(test, not(hv_loom)))]
    pub(super) const fn port(&self) -> &P {
        self.port
    }

    /// The places in front of the sync at which hardware stood, the nearest first, as far as nobody has filled them again: what
    /// was asked between it and the sync before was not answered. For who has not handed anything over yet.
    pub fn in_front(&self) -> impl Iterator<Item = usize> {
        let shape = self.queue.shape;
        let tail = self.queue.tail().position();
        let oldest = tail.saturating_sub(shape.entries() as u64);
        let positions = (oldest..self.stood).rev();
        positions.map(move |position| shape.place(position).index())
    }

    /// Has hardware go on until it has read all that was reserved before the hold, and done all of that.
    fn drain(&self) -> Result<(), UnitError> {
        let (queue, port) = (self.queue, self.port);
        // What is published and not rung, and the sync that is owed. Nobody tells hardware to go on meanwhile.
        let what = "a submission in front of what did not answer";
        self.wait(what, Stop::Stands, || {
            queue.ring(port);
            let tail = queue.admit(Caller::Mender, port.unit())?;
            // ORDERING: Acquire, as in `await_doorbell`: all up to there is published, so it is in the ring.
            let covered = queue.told.covered.load(Ordering::Acquire);
            // Nothing is owed, so the last that was reserved is a sync.
            Ok(!tail.is_open() && covered >= tail.position())
        })?;
        if !Fault::MendAsksAll.is_on() {
            self.spare()?;
        }
        let what = "going on behind what did not answer";
        self.wait(what, Stop::IsLeft, || {
            let tail = queue.admit(Caller::Mender, port.unit())?;
            let head = queue.read_head(self.seen, Caller::Mender, port)?;
            Ok(head >= tail.position())
        })?;
        Ok(())
    }

    /// Takes out of the ring what asks somebody behind the unit. Hardware stands in front of all of that, whose entries
    /// nobody else writes.
    fn spare(&self) -> Result<(), UnitError> {
        let (queue, port) = (self.queue, self.port);
        let head = queue.read_head(self.seen, Caller::Mender, port)?;
        let tail = queue.admit(Caller::Mender, port.unit())?;
        (head..tail.position())
            .try_for_each(|position| port.spare(queue.shape.place(position).index()))
    }

    /// Hands a batch over, waits for the sync behind it, and says whether all that have to answer to it did. Where not,
    /// hardware was told to go on.
    ///
    /// # Errors
    /// [`UnitError`]: the port hands it on, and the unit is wedged.
    pub fn ask(&self, batch: &[P::Entry], what: &'static str) -> Result<bool, UnitError> {
        let (queue, port) = (self.queue, self.port);
        let ticket = queue.submit_for(Caller::Mender, port, batch)?;
        self.wait(what, Stop::IsLeft, || {
            let done = queue.completed(self.seen, Caller::Mender, port, ticket.sequence)?;
            queue.admit(Caller::Mender, port.unit())?;
            Ok(done)
        })
    }

    /// As [`ask`](Self::ask), for what the unit does by itself.
    ///
    /// # Errors
    /// As there.
    pub fn tell(&self, batch: &[P::Entry], what: &'static str) -> Result<(), UnitError> {
        self.ask(batch, what).map(|_| ())
    }

    /// A step of the mending: waits until `done`, and says whether hardware never stood unanswered.
    fn wait(
        &self,
        what: &'static str,
        stop: Stop,
        done: impl Fn() -> Result<bool, UnitError>,
    ) -> Result<bool, UnitError> {
        let (queue, port) = (self.queue, self.port);
        let mut wait = Wait::since(port, queue.shape, port.clock().now());
        let mut answered = true;
        loop {
            // The clock before the look, as in `submit_and_wait`.
            let over = wait.over(port, queue.shape, port.clock().now());
            if done()? {
                break;
            }
            match port.check()? {
                Going::Unanswered if stop == Stop::IsLeft => {
                    answered = false;
                    port.resume();
                }
                Going::Refused => return Err(queue.refused_at_head(port)),
                Going::On | Going::Unanswered => {}
            }
            if let Some(waited) = over {
                let unit = port.unit();
                return Err(UnitError::Timeout { unit, what, waited });
            }
            port.pause();
        }
        queue.step_mending();
        Ok(answered)
    }
}

/// What becomes of hardware that stands unanswered during a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// It stands.
    Stands,
    /// It is told to go on.
    IsLeft,
}
