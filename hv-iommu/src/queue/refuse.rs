//! A queue that has stopped at a command which hardware calls illegal.
//!
//! Ports give only commands that are legal by what the unit says of itself. So either the command was not read as it
//! was written, or the unit is not what it says. Hardware has done nothing of the command, all before it was read, and nothing
//! behind it; and what stands in the ring from there on is read anew when hardware is told to go on:
//!
//! 1. Whoever waits and finds hardware standing takes the upkeep: one CPU repairs, and no reset or mending is under way.
//! 2. The first time at a place it writes the same command there once more, back to memory where hardware does not snoop, and
//!    has hardware go on. What was misread on the way is read right now, and done: tickets count as ever.
//! 3. Refused again, the command is *taken out*: first its position is noted, then a sync comes in its place, then
//!    hardware goes on. What the command was to do is not done, so each ticket that is for it fails
//!    ([`UnitError::Refused`]), and no other does: a ticket says at which positions is what it is for, however many share
//!    its sync.
//! 4. A command whose ticket nobody looks at ([`Refused::is_waited_for`]) is not taken out, nor is a sync: the unit is wedged,
//!    and so is one that refuses what came in the place of a command.
//!
//! Why no ticket counts too early: the head is past the place, or a status word past the sync behind it, only after
//! hardware was told to go on, which comes after the note and the bit in the tail that says that there is one. Who has seen
//! such a head therefore sees the bit when it looks at the tail next, as for a held queue
//! ([`mend`](super::mend)), and then the note. A reset takes the bit back: it has everything forgotten.
//!
//! Only the latest notes are kept one by one. A ticket that began before one of the others fails as well: it is old,
//! and to fail is safe.
//!
//! Nobody is held up, for nothing is waited for: others reserve, publish and ring meanwhile. While the queue is mended or
//! reset nothing is repaired: the unit is wedged then, as whoever has the queue to itself does with all errors.

use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, Ordering, fence};
use log::{error, warn};

use super::anew::Upkeep;
use super::port::{Going, QueuePort};
use super::words::REFUSED_BIT;
use super::{Caller, CommandQueue};
use crate::backend::{CommandCode, FlushTicket, UnitError, UnitIndex};

/// How many of the commands that were taken out are known one by one.
const KNOWN: usize = 4;

/// What a command is that hardware refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<E> {
    /// The command as it stands in the ring.
    pub entry: E,
    /// Its kind.
    pub code: CommandCode,
    /// Whether whoever gives such a command looks at the ticket, so that it finds out. Never so of a sync.
    pub is_waited_for: bool,
}

/// What was refused. Changed by who has the upkeep.
pub(super) struct Refusals {
    /// Positions and kinds of commands that were taken out, the latest ones.
    known: [AtomicU64; KNOWN],
    /// The latest of all others.
    older: AtomicU64,
    /// How many were taken out.
    count: AtomicU64,
    /// How many were read once more.
    read_again: AtomicU64,
    /// The position of the last one of those, and one.
    last: AtomicU64,
}

/// The kind in a note.
const CODE_BITS: u32 = 8;

/// A note: never zero. Positions have 53 bits.
const fn note(position: u64, code: CommandCode) -> u64 {
    (position + 1) << CODE_BITS | code.0 as u64
}

/// The position in a note.
const fn position_in(note: u64) -> Option<u64> {
    (note >> CODE_BITS).checked_sub(1)
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self {
            known: core::array::from_fn(|_| AtomicU64::new(0)),
            older: AtomicU64::new(0),
            count: AtomicU64::new(0),
            read_again: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    /// What was refused of what a ticket is for.
    pub(super) fn of(&self, ticket: FlushTicket) -> Option<(u64, CommandCode)> {
        let known = self.known.iter().find_map(|word| {
            // ORDERING: Acquire pairs with `take_out`: who sees a later note in the place of one sees that in `older`.
            let note = word.load(Ordering::Acquire);
            let position = position_in(note)?;
            let is_its = (ticket.first..ticket.end).contains(&position);
            is_its.then_some((position, CommandCode(note as u8)))
        });
        known.or_else(|| {
            // ORDERING: Acquire, as above.
            let note = self.older.load(Ordering::Acquire);
            let position = position_in(note)?;
            (ticket.first <= position).then_some((position, CommandCode(note as u8)))
        })
    }

    /// Whether the command at `position` was taken out already.
    fn has(&self, position: u64) -> bool {
        let mut known = self.known.iter();
        // ORDERING: Relaxed: the caller has the upkeep.
        known.any(|word| position_in(word.load(Ordering::Relaxed)) == Some(position))
    }

    /// How many were read once more, with the command at `position`; `None` where that was already.
    fn read_again(&self, position: u64) -> Option<u64> {
        // ORDERING: Relaxed, all: the caller has the upkeep.
        if self.last.swap(position + 1, Ordering::Relaxed) == position + 1 {
            return None;
        }
        // ORDERING: as above.
        Some(self.read_again.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Notes a command. Gives how many that makes.
    fn take_out(&self, position: u64, code: CommandCode) -> u64 {
        // ORDERING: Relaxed, only who has the upkeep changes it.
        let count = self.count.load(Ordering::Relaxed);
        if let Some(word) = self.known.get(count as usize % KNOWN) {
            // ORDERING: Relaxed, as above.
            let before = word.load(Ordering::Relaxed);
            // ORDERING: Release, both: in this order, for `of`.
            self.older.fetch_max(before, Ordering::Release);
            // ORDERING: as above.
            word.store(note(position, code), Ordering::Release);
        }
        // ORDERING: Relaxed, a number.
        self.count.store(count + 1, Ordering::Relaxed);
        count + 1
    }
}

impl CommandQueue {
    /// Has hardware go on, if it stands at a command that it [refuses](Going::Refused). Says whether it may have gone on;
    /// not so where another CPU repairs, mends or resets. Waits for nothing.
    ///
    /// # Errors
    /// [`UnitError`]: the unit is wedged, as it was before or for something that cannot be repaired.
    pub fn repair<P: QueuePort>(&self, port: &P) -> Result<bool, UnitError> {
        let Some(_upkeep) = Upkeep::take(self) else {
            return Ok(false);
        };
        let unit = port.unit();
        let seen = self.admit(Caller::Mender, unit)?;
        let failed = |error| self.fail(seen, unit, error);
        // Looked at anew: only who has the upkeep tells hardware to go on, so from here on it stands.
        if port.check().map_err(failed)? != Going::Refused {
            return Ok(true);
        }
        let head = self.read_head(seen, Caller::Mender, port)?;
        // ORDERING: Acquire pairs with the Release in `ring_held`: given before hardware read it.
        let given = self.told.given.load(Ordering::Acquire);
        if head >= given {
            return Err(failed(UnitError::Hardware {
                unit,
                what: "a command that is refused and was not given; the tail of its queue",
                expected: self.shape.place(given).index() as u64,
                found: self.shape.place(head).index() as u64,
            }));
        }
        // ORDERING: Acquire pairs with the Release in `ring_held`: the doorbell is not being rung any more.
        if head >= self.told.rung.load(Ordering::Acquire) {
            return Ok(false);
        }
        // The place is nobody else's: its producer is done with it, nobody fills it again before the head is past it, and
        // no reset goes on meanwhile.
        let index = self.shape.place(head).index();
        let refused = port.refused(index).map_err(failed)?;
        let code = refused.code;
        let again = self.refusals.read_again(head);
        if let Some(count) = again.filter(|_| !Fault::RefusedIsNotReadAgain.is_on()) {
            // A guest may ask for what is refused again and again.
            if count.is_power_of_two() {
                warn!(
                    "{unit} calls command {code} at entry {index} of its queue illegal, {count} so far"
                );
            }
            port.put(index, refused.entry).map_err(failed)?;
        } else if refused.is_waited_for && !self.refusals.has(head) {
            let count = self.refusals.take_out(head, code);
            if count.is_power_of_two() {
                error!(
                    "{unit} refuses command {code} at entry {index} of its queue, {count} so far"
                );
            }
            // ORDERING: AcqRel: who finds the bit finds the note.
            self.tail.0.fetch_or(REFUSED_BIT, Ordering::AcqRel);
            // ORDERING: SeqCst: the bit comes before the write that makes hardware go on, and so before whatever head it
            // shows then.
            fence(Ordering::SeqCst);
            let sync = port.sync(FlushTicket::alone(head + 1));
            port.put(index, sync).map_err(failed)?;
        } else {
            error!("{unit} refuses command {code} at entry {index} of its queue, and cannot go on");
            return Err(failed(refusal(unit, index, code)));
        }
        port.resume();
        self.ring_again(port);
        Ok(true)
    }

    /// Rings once more for what hardware was told of: some go on by that alone. Whoever has the bell rings for more, or has
    /// just done so.
    fn ring_again<P: QueuePort>(&self, port: &P) {
        let Some((bell, _)) = self.take_bell(|tail| Some(tail.with_bell_alone())) else {
            return;
        };
        // ORDERING: Relaxed: only holders of the bell store it.
        let given = self.told.given.load(Ordering::Relaxed);
        port.ring(self.shape.place(given));
        if self.let_go(bell) {
            self.ring(port);
        }
    }

    /// Why a ticket that is complete does not count.
    pub(super) fn refused(&self, ticket: FlushTicket, unit: UnitIndex) -> Option<UnitError> {
        if Fault::RefusedCountsAsDone.is_on() {
            return None;
        }
        let (position, code) = self.refusals.of(ticket)?;
        Some(refusal(unit, self.shape.place(position).index(), code))
    }

    /// What stands at the head, for who has the queue to itself and repairs nothing.
    pub(super) fn refused_at_head<P: QueuePort>(&self, port: &P) -> UnitError {
        let refused = port.head().and_then(|place| {
            let index = place.index();
            port.refused(index)
                .map(|refused| refusal(port.unit(), index, refused.code))
        });
        refused.unwrap_or_else(|error| error)
    }

    /// How many commands hardware was made to read once more since the queue was made, and how many it refused all the
    /// same.
    pub fn refusals(&self) -> (u64, u64) {
        let refusals = &self.refusals;
        // ORDERING: Relaxed, both, numbers.
        let read_again = refusals.read_again.load(Ordering::Relaxed);
        (read_again, refusals.count.load(Ordering::Relaxed))
    }
}

const fn refusal(unit: UnitIndex, entry: usize, code: CommandCode) -> UnitError {
    UnitError::Refused { unit, code, entry }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    const CODE: CommandCode = CommandCode(0x2a);

    fn ticket(first: u64, end: u64) -> FlushTicket {
        let sequence = end + 5;
        FlushTicket {
            sequence,
            first,
            end,
        }
    }

    #[test]
    fn a_note_is_of_the_tickets_that_are_for_its_position() {
        let refusals = Refusals::new();
        assert_eq!(refusals.of(ticket(0, 9)), None);
        assert_eq!(refusals.take_out(0, CODE), 1);
        refusals.take_out(7, CODE);
        for (first, sequence, found) in [
            (0, 2, Some(0)),
            (1, 7, None),
            (1, 8, Some(7)),
            (7, 9, Some(7)),
            (8, 99, None),
            (8, 8, None),
        ] {
            let of = refusals.of(ticket(first, sequence));
            assert_eq!(of, found.map(|position| (position, CODE)), "{first}");
        }
    }

    #[test]
    fn a_note_that_is_known_no_more_is_of_all_tickets_that_old() {
        let refusals = Refusals::new();
        for position in [3, 10, 20, 30, 40] {
            refusals.take_out(position, CODE);
        }
        assert_eq!(refusals.of(ticket(1, 3)), Some((3, CODE)));
        assert_eq!(refusals.of(ticket(4, 9)), None);
        assert_eq!(refusals.of(ticket(9, 12)), Some((10, CODE)));
    }
}
