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
//!    ([`UnitError::Refused`]), and no other does, but as below: a ticket says at which positions is what it is for,
//!    however many share its sync.
//! 4. A command whose ticket nobody looks at ([`Refused::is_waited_for`]) is not taken out, nor is a sync: the unit is wedged,
//!    and so is one that refuses what came in the place of a command.
//!
//! Why no ticket counts too early: the head is past the place, or a status word past the sync behind it, only after
//! hardware was told to go on, which comes after the note and the bit in the tail that says that there is one. Who has seen
//! such a head therefore sees the bit when it looks at the tail next, as for a held queue
//! ([`mend`](super::mend)), and then the note. A reset takes the bit back: it has everything forgotten.
//!
//! Each place of the ring has room for one note, the latest. A ticket that nobody looked at before the ring went round once more
//! fails also by a later note in one of its places: what stood there of its own is not known any more, and to fail is safe.
//!
//! Hardware that goes on at the next write of the tail register only ([`QueuePort::awaits_bell`]) may not have heard one of
//! another CPU that came while it stood. It is rung for once more then: by who repairs, or, where another CPU has the bell, by
//! that one before it is done ([`CommandQueue::ring_again`]).
//!
//! Nobody is held up, for nothing is waited for: others reserve, publish and ring meanwhile. While the queue is mended or
//! reset nothing is repaired: the unit is wedged then, as whoever has the queue to itself does with all errors.

use alloc::vec::Vec;

use hv_core::OutOfMemory;
use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, Ordering, fence};
use log::{error, warn};

use super::anew::Upkeep;
use super::port::{Going, QueuePort, QueueShape};
use super::words::REFUSED_BIT;
use super::{Caller, CommandQueue, zeros};
use crate::backend::{CommandCode, FlushTicket, UnitError, UnitIndex};

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
    /// One for each place of the ring: the position and the kind of the last command that was taken out there.
    notes: Vec<AtomicU64>,
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
    /// None, in a ring of so many places.
    pub(super) fn new(places: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            notes: zeros(places)?,
            count: AtomicU64::new(0),
            read_again: AtomicU64::new(0),
            last: AtomicU64::new(0),
        })
    }

    /// What was refused of what a ticket is for.
    fn of(&self, ticket: FlushTicket, shape: &QueueShape) -> Option<(u64, CommandCode)> {
        // Of more than a ring the last ones stand for all places.
        let places = self.notes.len() as u64;
        let from = ticket.first.max(ticket.end.saturating_sub(places));
        (from..ticket.end).find_map(|position| {
            let note = self.notes.get(shape.place(position).index())?;
            // ORDERING: Acquire pairs with `take_out`; that the note is seen at all is for the bit in the tail to say.
            let note = note.load(Ordering::Acquire);
            let found = position_in(note)?;
            // One of its own, or a later one in the same place.
            (found >= ticket.first).then_some((found, CommandCode(note as u8)))
        })
    }

    /// Whether the command at `position`, whose place has this index, was taken out already.
    fn has(&self, position: u64, index: usize) -> bool {
        let note = self.notes.get(index);
        // ORDERING: Relaxed: the caller has the upkeep.
        note.is_some_and(|note| position_in(note.load(Ordering::Relaxed)) == Some(position))
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

    /// Notes a command, whose place has this index. Gives how many that makes.
    fn take_out(&self, position: u64, index: usize, code: CommandCode) -> u64 {
        if let Some(word) = self.notes.get(index) {
            // ORDERING: Release, for `of`.
            word.store(note(position, code), Ordering::Release);
        }
        // ORDERING: Relaxed, a number that only who has the upkeep changes.
        self.count.fetch_add(1, Ordering::Relaxed) + 1
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
        } else if refused.is_waited_for && !self.refusals.has(head, index) {
            let count = self.refusals.take_out(head, index, code);
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
        if port.awaits_bell() {
            self.ring_again(port);
        }
        Ok(true)
    }

    /// Why a ticket that is complete does not count.
    pub(super) fn refused(&self, ticket: FlushTicket, unit: UnitIndex) -> Option<UnitError> {
        if Fault::RefusedCountsAsDone.is_on() {
            return None;
        }
        let (position, code) = self.refusals.of(ticket, &self.shape)?;
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
    use core::time::Duration;

    use super::super::Ends;
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

    /// A ring of eight places.
    fn ring() -> (Refusals, QueueShape) {
        let shape = QueueShape::new(3, Ends::WrapBit, Duration::from_secs(1)).unwrap();
        (Refusals::new(shape.entries()).unwrap(), shape)
    }

    fn take_out((refusals, shape): &(Refusals, QueueShape), position: u64) -> u64 {
        refusals.take_out(position, shape.place(position).index(), CODE)
    }

    fn of((refusals, shape): &(Refusals, QueueShape), first: u64, end: u64) -> Option<u64> {
        let (position, code) = refusals.of(ticket(first, end), shape)?;
        assert_eq!(code, CODE);
        Some(position)
    }

    #[test]
    fn a_note_is_of_the_tickets_that_are_for_its_position() {
        let ring = ring();
        assert_eq!(of(&ring, 0, 9), None);
        assert_eq!(take_out(&ring, 0), 1);
        assert_eq!(take_out(&ring, 7), 2);
        for (first, end, found) in [
            (0, 2, Some(0)),
            (1, 7, None),
            (1, 8, Some(7)),
            (7, 9, Some(7)),
            (8, 99, None),
            (8, 8, None),
        ] {
            assert_eq!(of(&ring, first, end), found, "{first}");
        }
    }

    #[test]
    fn however_many_are_refused_who_asked_for_something_else_is_not_harmed() {
        let ring = ring();
        for position in [3, 4, 5, 6, 7] {
            take_out(&ring, position);
        }
        assert_eq!(of(&ring, 0, 3), None);
        assert_eq!(of(&ring, 2, 4), Some(3));
        // A lap later, in places that had none.
        assert_eq!(of(&ring, 8, 11), None);
        // What is of more places than the ring has is of all of them.
        assert_eq!(of(&ring, 5, 40), Some(5));
        assert_eq!(of(&ring, 8, 40), None);
    }

    #[test]
    fn a_note_that_another_one_took_the_place_of_is_of_all_tickets_that_old() {
        let ring = ring();
        take_out(&ring, 3);
        take_out(&ring, 11);
        assert_eq!(of(&ring, 2, 4), Some(11));
        assert_eq!(of(&ring, 4, 8), None);
        assert_eq!(of(&ring, 12, 16), None);
    }
}
