//! A submitter's steps: reserve, fill, publish, and wait until hardware was told.

use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::{Ordering, spin_hint};

use super::bell::Bell;
use super::port::{QueuePort, Wait};
use super::words::{Tail, Turn};
use super::{Caller, CommandQueue};
use crate::backend::{FlushTicket, UnitError, UnitIndex};

/// How often the flush behind an entry that was taken down is asked for, each time for a deadline; and how many deadlines
/// somebody waits for room that others are faster to take.
const PATIENCE: u32 = 8;

/// Positions that one CPU has reserved and not published: others wait for it.
#[must_use = "what is reserved has to be published: everybody behind it waits"]
struct Reserved {
    /// The tail before the reservation.
    seen: Tail,
    /// The position behind the last command.
    end: u64,
    /// Whether the bell is this CPU's.
    leads: bool,
    /// Whether the sync at `end` is this CPU's: always so of who leads.
    has_sync: bool,
}

impl Reserved {
    fn is_empty(&self) -> bool {
        self.seen.position() == self.end && !self.has_sync
    }

    fn turn(&self) -> Turn {
        let first = self.seen.position();
        let entries = self.end - first;
        match self.has_sync {
            true => Turn::with_sync(first, entries),
            false => Turn::commands(first, entries),
        }
    }
}

impl CommandQueue {
    /// Hands a batch of commands to the unit, to be done in this order, and gives the ticket of a sync behind it;
    /// one alone if the batch is empty. Others may share the sync.
    ///
    /// Every store to memory that happened before is visible to the unit when it carries the commands out. Waits for
    /// room in the ring, and for other CPUs that are in the middle of this; not for completion.
    ///
    /// # Errors
    /// [`UnitError::Busy`] when another CPU did not go on in time: the unit is well, and the commands may be done
    /// still, without a ticket. [`UnitError::Wedged`]; any other error wedges the unit.
    pub fn submit<P: QueuePort>(
        &self,
        port: &P,
        batch: &[P::Entry],
    ) -> Result<FlushTicket, UnitError> {
        self.submit_for(Caller::Anyone, port, batch)
    }

    /// As [`submit`](Self::submit), for what follows an entry that was taken down: asks again and again while other
    /// CPUs stand still, some deadlines long, for without the ticket nobody knows when the unit has forgotten the entry,
    /// and the unit has to be wedged, with all who are behind it. The whole batch each time: which part of the last
    /// one hardware will get is not known.
    ///
    /// # Errors
    /// As there; [`UnitError::Busy`] when others stood still for all of that time.
    pub fn submit_patiently<P: QueuePort>(
        &self,
        port: &P,
        batch: &[P::Entry],
    ) -> Result<FlushTicket, UnitError> {
        let start = port.clock().now();
        let mut left = PATIENCE;
        loop {
            left -= 1;
            match self.submit(port, batch) {
                Err(UnitError::Busy { .. }) if left != 0 => {}
                Err(UnitError::Busy { unit, .. }) => {
                    let waited = port.clock().now().since(start);
                    return Err(UnitError::Busy { unit, waited });
                }
                other => return other,
            }
        }
    }

    pub(super) fn submit_for<P: QueuePort>(
        &self,
        caller: Caller,
        port: &P,
        batch: &[P::Entry],
    ) -> Result<FlushTicket, UnitError> {
        let needed = self.entries_for::<P>(port.unit(), batch)?;
        let reserved = self.reserve(caller, port, needed)?;
        let filled = self.fill(port, &reserved, batch);
        if reserved.leads {
            let bell = Bell::of_reservation();
            self.ring_held(port, &bell);
            if self.let_go(bell) {
                self.ring(port);
            }
        }
        filled?;
        self.await_doorbell(caller, port, reserved)
    }

    /// How many entries a batch takes, without the sync behind it.
    fn entries_for<P: QueuePort>(
        &self,
        unit: UnitIndex,
        batch: &[P::Entry],
    ) -> Result<u64, UnitError> {
        let commands = batch.len() as u64;
        let needed = match fenced::<P>() {
            true => commands.saturating_mul(2).saturating_sub(1),
            false => commands,
        };
        if needed <= self.shape.longest() {
            return Ok(needed);
        }
        Err(UnitError::Hardware {
            unit,
            what: "a batch that is longer than its queue, in entries; at most",
            expected: self.shape.longest(),
            found: needed,
        })
    }

    /// Reserves `needed` entries, once there is room for them and the sync behind them; with the bell, and that sync,
    /// if it is free.
    fn reserve<P: QueuePort>(
        &self,
        caller: Caller,
        port: &P,
        needed: u64,
    ) -> Result<Reserved, UnitError> {
        let unit = port.unit();
        // When the ring was first seen full: a clock may cost as much as all the rest.
        let (mut start, mut held) = (None, None);
        // Where the head was when the ring was seen full, what hardware had been told of, and since when; `None` while
        // it was not.
        let mut full: Option<(u64, u64, Wait)> = None;
        loop {
            let seen = self.admit(caller, unit)?;
            if seen.is_held() && caller == Caller::Anyone {
                self.await_mending(port, &mut held)?;
                continue;
            }
            // The next hold is another one's.
            held = None;
            // ORDERING: Acquire pairs with `read_head`: hardware has read the places that are filled now.
            let mut head = self.head.0.load(Ordering::Acquire);
            if !self.has_room(seen, head, needed) {
                head = self.read_head(seen, caller, port)?;
            }
            if self.has_room(seen, head, needed) || Fault::QueueNeverFull.is_on() {
                if let Some(reserved) = self.try_reserve(seen, needed) {
                    return Ok(reserved);
                }
                // Others have reserved meanwhile.
                continue;
            }
            // What is published and not rung may be all that keeps the ring full.
            self.ring(port);
            self.look_after(seen, caller, port)?;
            // ORDERING: Acquire pairs with the Release in `ring_held`: the doorbell was rung before.
            let rung = self.told.rung.load(Ordering::Acquire);
            let now = port.clock().now();
            let start = *start.get_or_insert(now);
            match &mut full {
                Some((at, before, wait)) if *at == head && *before == rung => {
                    if wait.over(port, self.shape, now).is_some() {
                        // Once more behind the clock: this CPU may have been held up since it looked.
                        if self.read_head(seen, caller, port)? != head {
                            full = None;
                            continue;
                        }
                        return Err(self.stays_full(seen, unit, (head, rung), now.since(start)));
                    }
                }
                // Others were faster, time and again.
                _ if now > start.after(port.deadline(self.shape).saturating_mul(PATIENCE)) => {
                    let waited = now.since(start);
                    return Err(UnitError::Busy { unit, waited });
                }
                // The unit goes on reading: others were faster with the room that it made. Or it was given more just
                // now, by a CPU that had stood still: its time to read that begins.
                _ => full = Some((head, rung, Wait::since(port, self.shape, now))),
            }
            spin_hint();
        }
    }

    fn has_room(&self, tail: Tail, head: u64, needed: u64) -> bool {
        // The head may be ahead of a tail that is out of date; the CAS fails then.
        let used = tail.position().saturating_sub(head);
        used + needed < self.shape.capacity()
    }

    fn try_reserve(&self, seen: Tail, needed: u64) -> Option<Reserved> {
        let leads = !seen.is_ringing() || Fault::BellIsFree.is_on();
        let has_sync = leads || self.shape.has_sync_each() && !Fault::SyncIsShared.is_on();
        let next = match (leads, has_sync) {
            (true, _) => seen.with_commands_and_bell(needed),
            (false, true) => seen.with_commands_and_sync(needed),
            (false, false) => seen.with_commands(needed),
        };
        let (old, new, tail) = (seen.into_bits(), next.into_bits(), &self.tail.0);
        if Fault::ReserveByStore.is_on() {
            // ORDERING: the deliberate fault.
            tail.store(new, Ordering::Release);
        } else {
            // ORDERING: AcqRel: of all who saw this tail one has the places, after whoever had them before, and the bell,
            // as in `take_bell`; it is refused if the unit was wedged or reset meanwhile. Relaxed on failure: looked at
            // anew.
            let taken = tail.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
            taken.ok()?;
        }
        Some(Reserved {
            seen,
            end: seen.position() + needed,
            leads,
            has_sync,
        })
    }

    /// Who is to blame for a ring that has stayed full, with its head and what hardware was told of where they were.
    fn stays_full(
        &self,
        seen: Tail,
        unit: UnitIndex,
        (head, rung): (u64, u64),
        waited: Duration,
    ) -> UnitError {
        if head >= rung {
            // The unit has done all that it knows of; a CPU is in the middle of publishing the rest, or of telling.
            return UnitError::Busy { unit, waited };
        }
        let what = "reading its command queue, which stayed full";
        self.fail(seen, unit, UnitError::Timeout { unit, what, waited })
    }

    /// Fills what was reserved and publishes it, whatever happens: others wait for it.
    fn fill<P: QueuePort>(
        &self,
        port: &P,
        reserved: &Reserved,
        batch: &[P::Entry],
    ) -> Result<(), UnitError> {
        if reserved.is_empty() {
            return Ok(());
        }
        if Fault::PublishEarly.is_on() {
            self.publish(reserved.turn());
        }
        let mut position = reserved.seen.position();
        let mut put = |entry| {
            let done = port.put(self.shape.place(position).index(), entry);
            position += 1;
            done
        };
        let filled = batch.iter().enumerate().try_for_each(|(index, command)| {
            if index > 0 && fenced::<P>() {
                let sequence = reserved.seen.position() + 2 * index as u64;
                put(port.sync(FlushTicket::alone(sequence)))?;
            }
            put(*command)
        });
        let filled = filled.and_then(|()| match reserved.has_sync {
            true => put(port.sync(FlushTicket::alone(reserved.end + 1))),
            false => Ok(()),
        });
        match filled {
            Ok(()) => {
                self.publish(reserved.turn());
                Ok(())
            }
            Err(error) => {
                let error = self.fail(reserved.seen, port.unit(), error);
                self.publish(reserved.turn().void());
                Err(error)
            }
        }
    }

    /// Says that the entries of `turn` are there.
    pub(super) fn publish(&self, turn: Turn) {
        let first = turn.first();
        if let Some(word) = self.turns.get(self.shape.place(first).index()) {
            // ORDERING: Release: the entries happen before whoever sees them published.
            word.store(
                turn.into_bits(),
                Fault::PublishEntriesRelaxed.weakens(Ordering::Release),
            );
        }
    }

    /// Waits until hardware was told of a sync behind `reserved`, which is published.
    fn await_doorbell<P: QueuePort>(
        &self,
        caller: Caller,
        port: &P,
        reserved: Reserved,
    ) -> Result<FlushTicket, UnitError> {
        let unit = port.unit();
        let mut wait = None;
        loop {
            self.admit(caller, unit)?;
            // ORDERING: Acquire pairs with the Release in `ring_held`: the doorbell was rung before.
            let sequence = self.told.covered.load(Ordering::Acquire);
            if sequence > reserved.end || Fault::WaitNotForSync.is_on() {
                let (first, end) = (reserved.seen.position(), reserved.end);
                return Ok(FlushTicket {
                    sequence,
                    first,
                    end,
                });
            }
            self.ring(port);
            let now = port.clock().now();
            let wait = wait.get_or_insert_with(|| Wait::since(port, self.shape, now));
            if let Some(waited) = wait.over(port, self.shape, now) {
                self.leave(port);
                return Err(UnitError::Busy { unit, waited });
            }
            spin_hint();
        }
    }
}

/// Whether a sync stands between the commands of a batch.
fn fenced<P: QueuePort>() -> bool {
    P::FENCED && !Fault::SkipFence.is_on()
}
