//! The command queue of one unit: many CPUs fill it without a lock, and share syncs and doorbells.
//!
//! A vendor makes a [`CommandQueue`] of a [`QueueShape`] for each unit, and a [`QueuePort`] for the time of a call:
//! how an entry is written, the head and tail registers, the sync, and how its completion is seen. Then
//! [`submit`](CommandQueue::submit) takes a batch of commands and gives the ticket of a sync behind it,
//! [`poll`](CommandQueue::poll) says whether that has completed, [`wedge`](CommandQueue::wedge) refuses everything
//! from now on, and [`restart`](CommandQueue::restart) gives the ring to a reset: [`Anew`]. A queue that has stopped
//! at a command which hardware refuses is [repaired](CommandQueue::repair) by whoever waits.
//!
//! # Protocol
//!
//! 1. A submitter *reserves* positions by a CAS on the tail, which also says that a sync is owed (*open*), that a CPU has
//!    the *bell*, that the unit is wedged, and how often it was reset. One place is kept for the sync. If the bell is free,
//!    the same CAS takes it, and the place of a sync behind the batch and all before: the submitter *leads*.
//! 2. It fills its entries and *publishes* them: one store to the turn word of the first. Between the two there
//!    is nothing but stores; no return, no wait.
//! 3. The holder of the bell follows the turn words from where the doorbell was last rung to the first gap, rings once for
//!    all of that, says which sync is now known to hardware (*covered*), and lets go of the bell.
//! 4. A submitter returns once a sync behind its batch is covered. That sync is its ticket. Whoever did not lead waits for
//!    that. Where it finds the bell free before, it takes it, with the sync if one is owed, and does step 3: the
//!    next holder rings for all that was published, whoever it is, so one doorbell and one sync serve all who came while
//!    the last was rung.
//! 5. Who does not wait any longer says so in the tail (*left*). If the bell is free it is as in step 4; if not, the holder
//!    finds it when it lets go, and rings once more.
//!
//! All of that meets in one word: a submitter alone changes it twice, to reserve with the bell and to let go.
//! The doorbell is written by one CPU at a time, with positions that grow. A sync stands behind all that was reserved
//! before it, so what it proves is proven for every submitter that shares it. Sequences are positions: that of a sync
//! at position *s* is *s* + 1, and says that all before *s* is done. They never repeat and only grow,
//! also across resets, so a late completion of an older one satisfies nothing newer.
//!
//! # A producer that stalls
//!
//! It delays those who wait for a sync behind it, and with the bell all whom hardware was not told of; nobody helps: its
//! commands are on its stack, and a tail register cannot be moved over them, nor by two CPUs at once. What can stall is a
//! handful of stores (steps 2 and 3), on a CPU that is not descheduled there; an interrupt handler, or the host of a nested
//! hypervisor, may take long, above all in the doorbell's write. Whoever waits for it gives up at the shape's deadline with
//! [`UnitError::Busy`], and the unit is not wedged for that: hardware is blamed for nothing that it was not told of. The
//! batch stays in the ring, in order, and is done when the other CPU goes on; it has no ticket. A ring that stays full although hardware has done all that it knows of is such a case
//! too, and so is one whose room others take again and again; one that hardware does not empty is a time-out, and wedges.
//! While what does not answer is mended, a submission that stays unpublished for all of the mender's deadline wedges the unit:
//! nobody knows what that CPU still hands over.
//!
//! # A sync for each batch
//!
//! Some hardware must not find the commands of two batches without a sync between them, or be told of commands whose sync
//! comes later. A queue of such a [shape](QueueShape::with_sync_each) has whoever reserves without the bell reserve a sync
//! behind its own batch too, in the same CAS, and publish it with the batch. So every turn word ends in a sync, and what
//! step 3 rings for does too, wherever the first gap is. No sync is ever owed (*open*): who takes the bell of step 4, leaves
//! (step 5), restarts, mends or repairs finds nothing to place, and all else is as above. Nobody waits for more than
//! there: what a submitter waits for is a sync that it published itself, which hardware is told of with its batch. The
//! place for it is the one that is kept in the ring in any case. What is lost is that submitters share syncs; doorbells
//! they still share. A command that is taken out (`queue::mend`, `queue::refuse`) leaves a sync or nothing in its place.
//!
//! # Events
//!
//! Where hardware sends waiting CPUs an event when a sync completes, whoever waits for the sync sleeps between two looks
//! ([`QueuePort::pause`]). An event may be lost, late, another CPU's or nobody's: only the look counts. All other waits
//! here are for CPUs, which send none, or for room, which hardware tells of at most when its ring was full to the last
//! place; they spin.
//!
//! # Interrupts
//!
//! A handler that interrupts a submission on its own CPU and submits itself waits for what it interrupted, and
//! gets [`UnitError::Busy`] at the deadline: no dead lock, but of no use. From handlers, only [`wedge`](CommandQueue::wedge);
//! and [`poll`](CommandQueue::poll) where nothing behind the unit has to answer, since it may mend.
//!
//! # Reset
//!
//! A wedged queue admits nobody: the bit is in the word that reservations change, so who was admitted before fails.
//! `restart` waits until all that was reserved is published and holds the bell meanwhile: after that no
//! CPU has a store left to make into the ring, and none rings. Then the ring begins at a position that no one has
//! seen, in a new epoch: an error that a CPU read from registers in an older one wedges nothing.
//!
//! # What does not answer
//!
//! Hardware that waits for something behind it, which does not answer, stands at the sync, and is mended by one CPU
//! (`queue::mend` has the argument).
//!
//! # What is refused
//!
//! Hardware that calls a command illegal reads it once more; one that it refuses then is taken out, and the tickets that are
//! for it fail, and no others (`queue::refuse` has the argument).
//!
//! | race | outcome | model |
//! |---|---|---|
//! | two reserve | each has places of its own | `bc14_two_producers_wrap_the_ring` |
//! | one publishes and goes, the bell is held | rung by the holder that lets go, or by itself | `bc14_what_nobody_waits_for_is_rung` |
//! | one publishes and goes behind a gap | rung by whoever publishes last | `bc14_what_nobody_waits_for_behind_a_gap_is_rung` |
//! | two ring | one holds the bell; the tail never goes back | `bc14_two_producers_wrap_the_ring` |
//! | one stalls, others go on | `Busy`, nothing is lost, the unit is well | `bc14_a_stalled_producer_delays_and_loses_nothing` |
//! | reserve against wedge and restart | refused, or published before the restart | `bc14_a_reset_meets_a_late_producer` |
//! | a reset that comes too late, and the bell of a ring that was revived | it takes it from nobody | `bc14_a_reset_that_comes_too_late_keeps_its_hands_off_the_bell` |
//! | fill again against hardware that reads | room is made by the head alone | `bc14_a_producer_wraps_behind_hardware` |
//! | share a sync | it is behind both | `bc14_two_producers_share_a_sync` |
//! | each has a sync of its own, and one rings for both | hardware is told of what ends in a sync alone | `bc14_two_producers_with_a_sync_each_wrap_the_ring` |
//! | the same, and one goes or stalls | rung, as above, and whole | `bc14_what_nobody_waits_for_is_rung_with_its_sync`, `bc14_what_nobody_waits_for_behind_a_gap_is_rung_with_its_sync`, `bc14_a_stalled_producer_with_a_sync_loses_nothing` |
//! | the same, and a reset | refused, or published whole before the restart | `bc14_a_reset_meets_a_late_producer_with_a_sync` |
//! | a head that is past the tail | wedges, makes no room | `bc14_a_head_past_the_tail_makes_no_room` |
//! | two wait for a sync that stands unanswered | one mends; neither counts it before that | `bc01_who_waits_for_what_does_not_answer_goes_on_behind_the_mending` |
//! | reserve against mend | before, and read before anything is asked anew; or after it | `bc01_others_go_on_beside_what_does_not_answer` |
//! | what was submitted behind it asks somebody too | taken out while hardware stands; its ticket counts behind the mending | `bc01_what_stands_in_the_ring_is_asked_by_who_mends` |
//! | two wait, and what one of them asked for is refused | its ticket fails, the other's counts | `bc01_what_is_refused_fails_who_asked_for_it_and_nobody_else` |
//! | the bell is rung while hardware stands and hears nothing | rung once more, by who repairs or by who lets go of the bell | `bc14_a_bell_that_hardware_did_not_hear_is_rung_again` |
//!
//! | site | ordering | what it publishes, to whom |
//! |---|---|---|
//! | tail: load | Acquire | resets and the end of one, to who is admitted |
//! | tail: CAS of a reservation or for the bell | AcqRel | places, to their one owner; where the doorbell stands, from holder to holder |
//! | tail: RMW that lets go of the bell | AcqRel | where the doorbell stands, to the next holder |
//! | tail: RMW of who leaves | AcqRel | what it published, to the holder that lets go |
//! | tail: CAS that holds, RMW that lets go | AcqRel | that a sync stands unanswered, before it goes on; what was mended |
//! | tail: RMW of who takes a command out | AcqRel, SeqCst fence | the note of it, before hardware goes on |
//! | notes of what is refused: store, load | Release, Acquire | what was taken out, to who looks at its ticket |
//! | turn: store, load | Release, Acquire | the entries, to the holder of the bell and through it to hardware |
//! | given: store, load | Release, Acquire | how far hardware may read, before it is told |
//! | rung: store, load | Release, Acquire | how far it was told to, to who finds the ring full |
//! | covered: store, load | Release, Acquire | that the doorbell was rung, to who waits for that |
//! | again: store, swap | Release, Acquire | that hardware goes on, to who rings for that |
//! | head: max, load | AcqRel, Acquire | that hardware has read a place, to who fills it again |
//! | steps: add, load | Relaxed | nothing: that time begins anew |

mod anew;
mod bell;
mod mend;
mod port;
mod producer;
mod refuse;
#[cfg(all(test, not(hv_loom)))]
mod tests;
mod words;

use alloc::vec::Vec;

use hv_core::OutOfMemory;
use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::{AtomicBool, AtomicU64, Ordering};

pub use anew::Anew;
pub use mend::Alone;
use mend::Patience;
pub use port::{Completion, Ends, Going, Place, QueuePort, QueueShape};
use refuse::Refusals;
pub use refuse::Refused;
use words::{Tail, WEDGED_BIT};

use crate::backend::{FlushTicket, UnitError, UnitIndex};

/// How often one look at a ticket goes on by what it mended or repaired.
const LOOKS: u32 = 64;

/// A word that many CPUs write, on a pair of cache lines of its own (lines are fetched in pairs).
#[repr(align(128))]
struct Apart<T>(T);

/// What hardware was told: stored by the holder of the bell, read by who waits for it.
#[repr(align(128))]
struct Told {
    /// The position that the doorbell was rung for, or is about to be.
    given: AtomicU64,
    /// The position that it was rung for.
    rung: AtomicU64,
    /// The sequence of the last sync that hardware was told of.
    covered: AtomicU64,
    /// Whether hardware has to be told once more of what it was told of.
    again: AtomicBool,
}

/// A queue that took requests when somebody looked, see [`CommandQueue::alive`].
#[derive(Clone, Copy, Debug)]
pub struct Alive(Tail);

/// Who uses the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// Refused while the unit is wedged.
    Anyone,
    /// The one reset of a wedged unit.
    Reset,
    /// Who mends: refused while the unit is wedged, and alone while the queue is held.
    Mender,
}

/// The command queue of one unit, but for the ring itself, which the vendor has.
///
/// # Invariants
/// Positions below the tail are reserved, each by one CPU or for one sync; all below `given` are published, and filled
/// for good until the head is past them, but for what is spared in a held queue, and what hardware refuses. The tail register was last written with
/// `given`, or is about to be, by the holder of the bell; `rung` follows. Head ≤ `given` ≤ tail, and tail − head is at most
/// the shape's capacity, one less while a
/// sync is owed. Where each batch has a sync, each that is published ends in one, and none is owed. Places of positions from
/// the tail on hold what hardware has read.
pub struct CommandQueue {
    shape: QueueShape,
    tail: Apart<AtomicU64>,
    /// One for each place: what is published there.
    turns: Vec<AtomicU64>,
    told: Told,
    /// The first position that hardware is not known to have read.
    head: Apart<AtomicU64>,
    /// Taken by who restarts, repairs or mends.
    upkeep: AtomicBool,
    /// Steps of mendings.
    steps: AtomicU64,
    refusals: Refusals,
}

/// A word for each place of a ring.
fn zeros(places: usize) -> Result<Vec<AtomicU64>, OutOfMemory> {
    let mut words = Vec::new();
    words.try_reserve_exact(places).map_err(|_| OutOfMemory {
        bytes: places.saturating_mul(size_of::<AtomicU64>()),
    })?;
    for _ in 0..places {
        words.push(AtomicU64::new(0));
    }
    Ok(words)
}

impl CommandQueue {
    /// An empty queue, whose unit has head and tail at zero.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(shape: QueueShape) -> Result<Self, OutOfMemory> {
        let entries = shape.entries();
        // INVARIANT: everything is at position 0 and nothing is published.
        Ok(Self {
            shape,
            tail: Apart(AtomicU64::new(0)),
            turns: zeros(entries)?,
            told: Told {
                given: AtomicU64::new(0),
                rung: AtomicU64::new(0),
                covered: AtomicU64::new(0),
                again: AtomicBool::new(false),
            },
            head: Apart(AtomicU64::new(0)),
            upkeep: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            refusals: Refusals::new(entries)?,
        })
    }

    /// What it was made of.
    pub const fn shape(&self) -> QueueShape {
        self.shape
    }

    /// From now on every request is refused. Says whether that is new.
    pub fn wedge(&self) -> bool {
        // ORDERING: AcqRel: what led to the wedging happened before anybody is refused.
        self.tail.0.fetch_or(WEDGED_BIT, Ordering::AcqRel) & WEDGED_BIT == 0
    }

    /// Whether hardware was seen to have read everything up to the sync with `ticket`. Looks at no register: that it has may
    /// not be known yet.
    pub fn has_read(&self, ticket: FlushTicket) -> bool {
        // ORDERING: Acquire, as in `completed`.
        self.head.0.load(Ordering::Acquire) >= ticket.sequence
    }

    /// Refuses if the unit is wedged.
    ///
    /// # Errors
    /// [`UnitError::Wedged`].
    pub fn check_alive(&self, unit: UnitIndex) -> Result<(), UnitError> {
        self.admit(Caller::Anyone, unit).map(|_| ())
    }

    fn tail(&self) -> Tail {
        // ORDERING: Acquire pairs with the CASes and stores of the word: whoever is admitted after a reset comes
        // after its flushes.
        Tail::from_bits(self.tail.0.load(Ordering::Acquire))
    }

    /// The tail, if the caller may use the queue.
    fn admit(&self, caller: Caller, unit: UnitIndex) -> Result<Tail, UnitError> {
        let tail = self.tail();
        if tail.is_wedged() && caller != Caller::Reset {
            return Err(UnitError::Wedged { unit });
        }
        Ok(tail)
    }

    /// The queue, if it takes requests now: asked by who then looks at what its unit says of itself.
    pub fn alive(&self) -> Option<Alive> {
        let tail = self.tail();
        (!tail.is_wedged()).then_some(Alive(tail))
    }

    /// Wedges the unit for what was found of it after it was `seen`, unless it was reset meanwhile: what was found says
    /// nothing of the unit after that. Says whether that is new.
    pub fn wedge_as_seen(&self, seen: Alive) -> bool {
        self.wedge_since(seen.0) == Some(true)
    }

    /// Wedges the unit if it was not reset since `seen`, and says whether that is new; `None` where it was reset.
    fn wedge_since(&self, seen: Tail) -> Option<bool> {
        let mut tail = self.tail();
        while tail.is_of(seen) {
            // ORDERING: AcqRel, as in `wedge`; Acquire on failure, as in `tail`.
            match self.tail.0.compare_exchange(
                tail.into_bits(),
                tail.wedged().into_bits(),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(before) => return Some(!Tail::from_bits(before).is_wedged()),
                Err(found) => tail = Tail::from_bits(found),
            }
        }
        None
    }

    /// Wedges the unit for `error`, which the caller found after it had seen the tail as `seen`. What was found
    /// before a reset, or in the middle of one, says nothing of the unit after it.
    fn fail(&self, seen: Tail, unit: UnitIndex, error: UnitError) -> UnitError {
        match self.wedge_since(seen) {
            Some(_) => error,
            None => UnitError::Wedged { unit },
        }
    }

    /// Whether the sync with `ticket` has completed, or a reset has done all that it stood for.
    ///
    /// # Errors
    /// [`UnitError`] when it never will: the unit is wedged, but for [`UnitError::Refused`], where something that the ticket
    /// is for was taken out.
    pub fn poll<P: QueuePort>(&self, port: &P, ticket: FlushTicket) -> Result<bool, UnitError> {
        self.poll_for(Caller::Anyone, port, ticket)
    }

    fn poll_for<P: QueuePort>(
        &self,
        caller: Caller,
        port: &P,
        ticket: FlushTicket,
    ) -> Result<bool, UnitError> {
        let unit = port.unit();
        let seen = self.admit(caller, unit)?;
        let mut needed = ticket.sequence;
        if Fault::ReuseStatusWord.is_on() {
            needed = 1;
        }
        for _ in 0..LOOKS {
            if self.completed(seen, caller, port, needed)? {
                // Once more after the look, which is an acquire load: a reset drops syncs and moves the word or the head
                // past their sequences with the first of its flushes. Who is admitted here looked before the unit
                // was wedged, or comes after all flushes of the reset. Likewise who finds the queue not held looked before
                // hardware went on past what stood unanswered, or comes after that was mended.
                let tail = self.admit(caller, unit)?;
                // Likewise who finds no bit looked before hardware went on past something that it refused.
                if tail.has_refused()
                    && let Some(error) = self.refused(ticket, unit)
                {
                    return Err(error);
                }
                return Ok(!tail.is_held() || caller != Caller::Anyone);
            }
            if !self.look_after(seen, caller, port)? {
                return Ok(false);
            }
            // Mended just now: that may have been all that was missing, and the caller's time may be over.
        }
        // Hardware may stop without end, and the clock is the caller's.
        Ok(false)
    }

    /// Whether all up to the sequence `needed` has completed.
    fn completed<P: QueuePort>(
        &self,
        seen: Tail,
        caller: Caller,
        port: &P,
        needed: u64,
    ) -> Result<bool, UnitError> {
        // ORDERING: Acquire pairs with the Release in `ring_held`: near the word in sequence, which is all that
        // telling its upper half takes.
        let near = self.told.given.load(Ordering::Acquire);
        let Completion::Word(word) = port.completion() else {
            // ORDERING: Acquire pairs with `read_head`: what hardware did before its head moved happened before.
            if self.head.0.load(Ordering::Acquire) >= needed {
                return Ok(true);
            }
            return Ok(self.read_head(seen, caller, port)? >= needed);
        };
        // No more syncs than the ring has places are in flight, and a reset skips two rings at most, so the low
        // halves of the two are close: signed.
        let distance = word.wrapping_sub(near as u32).cast_signed();
        let completed = near.wrapping_add_signed(distance.into());
        if completed > near {
            // ORDERING: Acquire, pairs with the Release in `ring_held`: the unit can complete only what it was given
            // before, so this load finds at least that.
            let given = self.told.given.load(Ordering::Acquire);
            if completed > given {
                let error = UnitError::Hardware {
                    unit: port.unit(),
                    what: "a completion of a wait that was never submitted",
                    expected: given,
                    found: word.into(),
                };
                return Err(self.fail(seen, port.unit(), error));
            }
        }
        Ok(completed >= needed)
    }

    /// The first position that the unit has not read, from its register.
    fn read_head<P: QueuePort>(
        &self,
        seen: Tail,
        caller: Caller,
        port: &P,
    ) -> Result<u64, UnitError> {
        let unit = port.unit();
        // ORDERING: Acquire, as in `completed`; the register can only be further on than this.
        let before = self.head.0.load(Ordering::Acquire);
        let place = port.head().map_err(|error| self.fail(seen, unit, error))?;
        // ORDERING: Acquire pairs with the Release in `ring_held`: an honest unit has read no further than it was
        // given before it moved its head, so this load finds at least that.
        let given = self.told.given.load(Ordering::Acquire);
        // In the middle of a reset register and positions do not belong together.
        if !self.admit(caller, unit)?.is_of(seen) {
            return Err(UnitError::Wedged { unit });
        }
        let entries = self.shape.entries();
        let Some(count) = self.shape.count(place) else {
            let error = UnitError::Hardware {
                unit,
                what: "a queue head outside its queue; the last place",
                expected: entries.saturating_sub(1) as u64,
                found: place.index() as u64,
            };
            return Err(self.fail(seen, unit, error));
        };
        let period = self.shape.period();
        let head = before + (count.wrapping_sub(before) & (period - 1));
        if head > given && !Fault::BelieveHead.is_on() {
            let error = UnitError::Hardware {
                unit,
                what: "a queue head past the commands that it was given; the tail",
                expected: self.shape.place(given).index() as u64,
                found: place.index() as u64,
            };
            return Err(self.fail(seen, unit, error));
        }
        // ORDERING: AcqRel: that hardware has read these places happens before anybody fills them again.
        self.head.0.fetch_max(head, Ordering::AcqRel);
        Ok(head)
    }

    /// Submits and waits for completion: for bring-up, when nothing else can be done meanwhile. `what` is the
    /// request, for the error.
    ///
    /// # Errors
    /// [`UnitError`]. A time-out wedges the unit.
    pub fn submit_and_wait<P: QueuePort>(
        &self,
        port: &P,
        batch: &[P::Entry],
        what: &'static str,
    ) -> Result<(), UnitError> {
        self.submit_and_wait_for(Caller::Anyone, port, batch, what)
    }

    fn submit_and_wait_for<P: QueuePort>(
        &self,
        caller: Caller,
        port: &P,
        batch: &[P::Entry],
        what: &'static str,
    ) -> Result<(), UnitError> {
        let unit = port.unit();
        let seen = self.admit(caller, unit)?;
        let ticket = self.submit_for(caller, port, batch)?;
        if self.poll_for(caller, port, ticket)? {
            return Ok(());
        }
        let mut wait = Patience::since(self, port, port.clock().now());
        loop {
            // The clock before the look: this CPU may be held up between the two for longer than hardware has.
            let over = wait.over(self, port, port.clock().now());
            if self.poll_for(caller, port, ticket)? {
                return Ok(());
            }
            if let Some(waited) = over {
                return Err(self.fail(seen, unit, UnitError::Timeout { unit, what, waited }));
            }
            port.pause();
        }
    }
}
