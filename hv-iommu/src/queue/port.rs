//! What a vendor says of its command queue: the shape, the registers, the sync, and how completion is seen.

use core::time::Duration;

use hv_core::platform::{Clock, Instant};
use hv_core::sync::spin_hint;

use super::mend::Alone;
use super::refuse::Refused;
use super::words::PUBLICATION_MAX;
use crate::backend::{FlushTicket, UnitError, UnitIndex};

/// How hardware tells a full ring from an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Head and tail are places: one place always stays free.
    OneFree,
    /// Head and tail carry a bit that changes at each wrap: every place can be used.
    WrapBit,
}

/// A place of the ring as registers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    index: usize,
    wrap: bool,
}

impl Place {
    /// The place with this index, and the wrap bit that goes with it ([`Ends::OneFree`] has none: `false`).
    pub const fn new(index: usize, wrap: bool) -> Self {
        Self { index, wrap }
    }

    /// Which entry of the ring.
    pub const fn index(self) -> usize {
        self.index
    }

    /// The wrap bit.
    pub const fn wrap(self) -> bool {
        self.wrap
    }
}

/// The size of a queue and what else does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueShape {
    log2: u32,
    ends: Ends,
    deadline: Duration,
    sync_each: bool,
}

impl QueueShape {
    /// A ring of 2^`log2_entries` entries, whose submitters wait no longer than `deadline`: for room that does
    /// not come, for another CPU that is in their way, for what they wait for at bring-up.
    ///
    /// `None` unless the ring takes one command and its sync: at least 2 entries, 4 where one stays free, and at
    /// most 2^20.
    pub const fn new(log2_entries: u8, ends: Ends, deadline: Duration) -> Option<Self> {
        let least = match ends {
            Ends::OneFree => 2,
            Ends::WrapBit => 1,
        };
        if log2_entries < least || log2_entries > 20 {
            return None;
        }
        Some(Self {
            log2: log2_entries as u32,
            ends,
            deadline,
            sync_each: false,
        })
    }

    /// The same, in which each batch has a sync of its own: for hardware that must not find commands of two batches
    /// without one between them, nor ever be told of commands without the sync behind them.
    #[must_use]
    pub const fn with_sync_each(self) -> Self {
        Self {
            sync_each: true,
            ..self
        }
    }

    /// Whether each batch has a sync of its own.
    pub const fn has_sync_each(&self) -> bool {
        self.sync_each
    }

    /// How many entries the ring has.
    pub const fn entries(&self) -> usize {
        1 << self.log2
    }

    /// How long a submitter waits.
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How many entries one batch may have, without the sync behind it.
    pub const fn longest(&self) -> u64 {
        let room = self.capacity() - 1;
        if room < PUBLICATION_MAX {
            room
        } else {
            PUBLICATION_MAX
        }
    }

    /// How many entries can be waiting for hardware.
    pub(super) const fn capacity(&self) -> u64 {
        match self.ends {
            Ends::OneFree => (1 << self.log2) - 1,
            Ends::WrapBit => 1 << self.log2,
        }
    }

    /// After how many entries a register says the same again.
    pub(super) const fn period(&self) -> u64 {
        match self.ends {
            Ends::OneFree => 1 << self.log2,
            Ends::WrapBit => 2 << self.log2,
        }
    }

    /// The first position behind `position` at which a ring that is turned on anew begins.
    pub(super) const fn next_start(&self, position: u64) -> u64 {
        let round = 2 << self.log2;
        (position / round + 1) * round
    }

    /// Where in the ring a position is.
    pub(super) const fn place(&self, position: u64) -> Place {
        let index = position & ((1 << self.log2) - 1);
        let wrap = matches!(self.ends, Ends::WrapBit) && position >> self.log2 & 1 != 0;
        Place::new(index as usize, wrap)
    }

    /// The position of a place modulo [`period`](Self::period), or `None` for one that is outside the ring.
    pub(super) const fn count(&self, place: Place) -> Option<u64> {
        if place.index >= self.entries() || place.wrap && matches!(self.ends, Ends::OneFree) {
            return None;
        }
        Some(place.index as u64 | (place.wrap as u64) << self.log2)
    }
}

/// How hardware tells what it has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Each sync writes the low half of its ticket to a word that only hardware writes. This is the word as it is
    /// now, read by an acquire load.
    Word(u32),
    /// A sync has completed once the head is past it.
    Head,
}

/// What a look for errors of a queue found, where it can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Going {
    /// Nothing.
    On,
    /// Hardware stands at a sync: something behind the unit was told to forget, and did not answer. Told to
    /// [go on](QueuePort::resume), it counts that sync as complete, and which one did not answer it does not say. So the
    /// queue is mended first (`queue::mend`).
    Unanswered,
    /// Hardware stands at a command that it calls illegal, of which it has done nothing. Told to
    /// [go on](QueuePort::resume), it reads what stands there then (`queue::refuse`).
    Refused,
}

/// One queue as its vendor drives it. Made for the time of a call, with what the call needs.
///
/// No method but [`pause`](Self::pause) may wait, and none of [`put`](Self::put), [`sync`](Self::sync) and
/// [`ring`](Self::ring) may take a lock: others wait for whoever is in one of them.
pub trait QueuePort {
    /// A command as hardware reads it; all have the same number of words.
    type Entry: Copy;
    /// The clock for deadlines.
    type Clock: Clock;

    /// Whether hardware may do the commands of a batch in any order unless a sync stands between them.
    const FENCED: bool;

    /// The clock for deadlines.
    fn clock(&self) -> &Self::Clock;

    /// Whose queue it is, for errors.
    fn unit(&self) -> UnitIndex;

    /// Writes an entry to the ring, by relaxed atomic stores, and back to memory where hardware does not snoop.
    /// The place is the caller's alone, and hardware does not look there yet.
    ///
    /// # Errors
    /// [`UnitError`] when there is no such place in memory. The unit is wedged then.
    fn put(&self, index: usize, entry: Self::Entry) -> Result<(), UnitError>;

    /// The command that completes as `ticket` once all commands before it have, and that nothing behind it
    /// overtakes.
    fn sync(&self, ticket: FlushTicket) -> Self::Entry;

    /// Writes the tail register, after all stores to memory that this CPU has made, *or has seen* by acquire loads,
    /// as hardware sees them. Called by one CPU at a time, for ever later tails.
    fn ring(&self, tail: Place);

    /// Reads the head register.
    ///
    /// # Errors
    /// [`UnitError`] when it cannot be a place. The unit is wedged then.
    fn head(&self) -> Result<Place, UnitError>;

    /// What hardware has completed.
    fn completion(&self) -> Completion;

    /// What a CPU does between two looks at the completion of a sync: it may wait for an event that hardware sends then,
    /// for a time that is short against the shape's deadline. Says nothing of the sync.
    fn pause(&self) {
        spin_hint();
    }

    /// Looks for errors of the queue; called again and again while something is waited for.
    ///
    /// # Errors
    /// [`UnitError`] when the queue has stopped for good. The unit is wedged then.
    fn check(&self) -> Result<Going, UnitError>;

    /// How long submitters wait: the shape's deadline, or longer while something behind the unit has to answer as well.
    fn deadline(&self, shape: QueueShape) -> Duration {
        shape.deadline()
    }

    /// Takes the command at this place, which hardware has not read, out of the ring if it asks something behind the unit: one
    /// without an effect comes in its place, or a sync. Called by one CPU at a time, while hardware stands
    /// [unanswered](Going::Unanswered), for it to read the entry anew when it goes on.
    ///
    /// # Errors
    /// [`UnitError`] when there is no such place in memory. The unit is wedged then.
    fn spare(&self, index: usize) -> Result<(), UnitError> {
        let _ = index;
        Ok(())
    }

    /// What stands at this place, where hardware [refuses](Going::Refused) it. Called by one CPU at a time.
    ///
    /// # Errors
    /// [`UnitError`] when there is no such place in memory. The unit is wedged then.
    fn refused(&self, index: usize) -> Result<Refused<Self::Entry>, UnitError> {
        let _ = index;
        Err(UnitError::Wedged { unit: self.unit() })
    }

    /// Has hardware go on past the sync at which it stands [unanswered](Going::Unanswered), or at the command that it
    /// [refused](Going::Refused), after all stores to memory that this CPU has made. Called by one CPU at a time, which has
    /// recorded that.
    fn resume(&self) {}

    /// Whether hardware that was told to [go on](Self::resume) past a command that it refused does so at the next write of the
    /// tail register only: it is rung for once more then.
    fn awaits_bell(&self) -> bool {
        false
    }

    /// Finds out what behind the unit does not answer, with the queue to itself, and sees to it that it reaches nothing;
    /// all else that may be asked to forget has forgotten everything by then. What any ticket of before stands for is done
    /// when it gives `Ok`.
    ///
    /// # Errors
    /// [`UnitError`]: the unit is wedged then. That is so where nothing is behind a unit.
    fn settle(&self, alone: &Alone<'_, '_, Self>) -> Result<(), UnitError>
    where
        Self: Sized,
    {
        let _ = alone;
        Err(UnitError::Wedged { unit: self.unit() })
    }
}

/// How long somebody waits already, and may.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    start: Instant,
    /// The longest that the port ever said: what has to answer may have been closed just now, and the queue not be let go of.
    most: Duration,
}

impl Wait {
    pub(super) fn since<P: QueuePort>(port: &P, shape: QueueShape, start: Instant) -> Self {
        let most = port.deadline(shape);
        Self { start, most }
    }

    /// The time waited, if that is too long.
    pub(super) fn over<P: QueuePort>(
        &mut self,
        port: &P,
        shape: QueueShape,
        now: Instant,
    ) -> Option<Duration> {
        self.most = self.most.max(port.deadline(shape));
        (now > self.start.after(self.most)).then(|| now.since(self.start))
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_ring_takes_one_command_and_its_sync_at_least() {
        for (log2, ends, entries) in [
            (0, Ends::WrapBit, None),
            (1, Ends::WrapBit, Some(2)),
            (1, Ends::OneFree, None),
            (2, Ends::OneFree, Some(4)),
            (20, Ends::WrapBit, Some(1 << 20)),
            (21, Ends::WrapBit, None),
        ] {
            let shape = QueueShape::new(log2, ends, SECOND);
            assert_eq!(shape.map(|shape| shape.entries()), entries, "{log2}");
            if let Some(shape) = shape {
                assert!(shape.longest() >= 1 && shape.longest() < shape.capacity());
            }
        }
    }

    /// Shows: bc14.
    #[test]
    fn bc14_places_and_positions_agree_at_every_wrap() {
        for (log2, ends) in [
            (2, Ends::OneFree),
            (8, Ends::OneFree),
            (1, Ends::WrapBit),
            (5, Ends::WrapBit),
        ] {
            let shape = QueueShape::new(log2, ends, SECOND).unwrap();
            let entries = shape.entries() as u64;
            for position in 0..9 * entries {
                let place = shape.place(position);
                assert_eq!(shape.count(place), Some(position % shape.period()));
                assert_eq!(place.index() as u64, position % entries);
                let start = shape.next_start(position);
                assert!(start > position && start <= position + 2 * entries);
                assert_eq!(shape.place(start), Place::new(0, false));
                // A full ring and an empty one look different.
                assert_ne!(shape.capacity() % shape.period(), 0);
            }
            assert_eq!(shape.count(Place::new(shape.entries(), false)), None);
        }
        let no_bit = QueueShape::new(8, Ends::OneFree, SECOND).unwrap();
        assert_eq!(no_bit.count(Place::new(0, true)), None);
    }
}
