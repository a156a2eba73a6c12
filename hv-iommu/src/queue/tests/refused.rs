//! Hardware calls a command illegal: what it reads once more, what is taken out, and whose ticket fails.

use super::*;
use crate::backend::CommandCode;

/// The command that hardware refuses, what nobody waits for, and what it takes.
const BAD: Entry = Entry::Command(66);
const UNSEEN: Entry = Entry::Command(99);
const CODE: CommandCode = CommandCode(66);

/// A unit that stands at a command as often as `refuses` says of it.
struct Picky {
    fake: Fake,
    refuses: Box<dyn Fn(Entry) -> u32>,
    /// How often it has refused what is at its head.
    times: Cell<u32>,
    stands: Cell<bool>,
    resumed: Cell<usize>,
}

impl Picky {
    fn new(log2: u8, refuses: impl Fn(Entry) -> u32 + 'static) -> (&'static CommandQueue, Self) {
        let (queue, fake) = shared(log2, Ends::WrapBit);
        fake.eager.set(false);
        let picky = Self {
            fake,
            refuses: Box::new(refuses),
            times: Cell::new(0),
            stands: Cell::new(false),
            resumed: Cell::new(0),
        };
        (queue, picky)
    }

    /// One that never takes [`BAD`].
    fn for_good(log2: u8) -> (&'static CommandQueue, Self) {
        Self::new(log2, |entry| if entry == BAD { u32::MAX } else { 0 })
    }

    fn read(&self) {
        let fake = &self.fake;
        while fake.head.get() != fake.tail.get() && !self.stands.get() {
            let entry = fake.ring[fake.head.get().index()].get().unwrap();
            if self.times.get() < (self.refuses)(entry) {
                self.times.set(self.times.get() + 1);
                self.stands.set(true);
                return;
            }
            self.times.set(0);
            fake.read(1);
        }
    }

    fn refusal(&self, entry: usize) -> UnitError {
        let (unit, code) = (UNIT, CODE);
        UnitError::Refused { unit, code, entry }
    }
}

impl QueuePort for Picky {
    type Entry = Entry;
    type Clock = Ticks;
    const FENCED: bool = false;

    fn clock(&self) -> &Ticks {
        self.fake.clock()
    }
    fn unit(&self) -> UnitIndex {
        UNIT
    }
    fn put(&self, index: usize, entry: Entry) -> Result<(), UnitError> {
        self.fake.put(index, entry)
    }
    fn sync(&self, ticket: FlushTicket) -> Entry {
        self.fake.sync(ticket)
    }
    fn ring(&self, tail: Place) {
        self.fake.ring(tail);
        self.read();
    }
    fn head(&self) -> Result<Place, UnitError> {
        self.fake.head()
    }
    fn completion(&self) -> Completion {
        self.fake.completion()
    }
    fn check(&self) -> Result<Going, UnitError> {
        match self.stands.get() {
            true => Ok(Going::Refused),
            false => self.fake.check(),
        }
    }
    fn refused(&self, index: usize) -> Result<Refused<Entry>, UnitError> {
        assert!(self.stands.get(), "it goes on meanwhile");
        let entry = self.fake.ring[index].get().unwrap();
        let (code, is_waited_for) = match entry {
            Entry::Command(number) => (CommandCode(number as u8), entry != UNSEEN),
            Entry::Sync(_) => (CommandCode(0), false),
        };
        Ok(Refused {
            entry,
            code,
            is_waited_for,
        })
    }
    fn resume(&self) {
        assert!(self.stands.take(), "it goes");
        self.resumed.set(self.resumed.get() + 1);
        self.read();
    }
}

#[test]
fn bc01_what_is_refused_fails_its_ticket_and_no_other() {
    for word in [None, Some(0)] {
        let (queue, picky) = Picky::for_good(4);
        picky.fake.word.set(word);
        let one = queue.submit(&picky, &[Entry::Command(1)]).unwrap();
        let two = queue
            .submit(&picky, &[Entry::Command(2), BAD, Entry::Command(3)])
            .unwrap();
        let three = queue.submit(&picky, &[Entry::Command(4)]).unwrap();
        assert_eq!(picky.fake.commands(), [1, 2]);
        assert_eq!(queue.poll(&picky, three), Ok(true));
        assert_eq!(queue.poll(&picky, two), Err(picky.refusal(3)));
        assert_eq!(queue.poll(&picky, one), Ok(true));
        // It was read once more, then a sync came in its place, and what is behind it was done.
        assert_eq!((picky.resumed.get(), queue.refusals()), (2, (1, 1)));
        assert_eq!(picky.fake.commands(), [1, 2, 3, 4]);
        assert_eq!(queue.check_alive(UNIT), Ok(()));
        // Asked again, in another way.
        let again = queue.submit(&picky, &[Entry::Command(5)]).unwrap();
        assert_eq!(queue.poll(&picky, again), Ok(true));
        assert_eq!(queue.poll(&picky, two), Err(picky.refusal(3)));
    }
}

/// Two batches, of which one is refused, behind one sync: whose it is decides.
#[test]
fn bc01_who_shares_the_sync_of_what_is_refused_is_not_harmed() {
    let (queue, picky) = Picky::for_good(4);
    let picky = Box::leak(Box::new(picky));
    // While the first fills its places another submits, and waits for the bell; then the first rings for both.
    picky.fake.plan(Point::Put, |fake| {
        let error = queue.submit(fake, &[BAD]).unwrap_err();
        assert!(matches!(error, UnitError::Busy { .. }), "{error}");
    });
    let good = queue.submit(picky, &[Entry::Command(1)]).unwrap();
    assert_eq!(queue.poll(picky, good), Ok(true));
    let next = queue.submit(picky, &[Entry::Command(2)]).unwrap();
    assert_eq!(queue.poll(picky, next), Ok(true));
    assert_eq!(queue.refusals(), (1, 1));
    // And where the batch that is refused comes first.
    let (first, end) = (good.first, good.end);
    let sequence = next.sequence;
    let both = FlushTicket {
        sequence,
        first,
        end: next.end,
    };
    assert!(queue.poll(picky, both).is_err(), "it is for all between");
    let alone = FlushTicket {
        sequence,
        first,
        end,
    };
    assert_eq!(queue.poll(picky, alone), Ok(true));
}

#[test]
fn what_was_misread_once_is_done_and_counts() {
    let (queue, picky) = Picky::new(3, |entry| u32::from(entry == BAD));
    let ticket = queue.submit(&picky, &[BAD]).unwrap();
    assert_eq!(queue.poll(&picky, ticket), Ok(true));
    assert_eq!(picky.fake.commands(), [66]);
    assert_eq!((picky.resumed.get(), queue.refusals()), (1, (1, 0)));
    // A sync as well.
    let (queue, picky) = Picky::new(3, |entry| u32::from(entry == Entry::Sync(2)));
    let ticket = queue.submit(&picky, &[Entry::Command(1)]).unwrap();
    assert_eq!(queue.poll(&picky, ticket), Ok(true));
    assert_eq!(queue.refusals(), (1, 0));
}

#[test]
fn who_waits_for_room_behind_what_is_refused_repairs() {
    let (queue, picky) = Picky::for_good(2);
    let bad = queue.submit(&picky, &[BAD]).unwrap();
    let tickets = [1, 2, 3].map(|number| {
        let ticket = queue.submit(&picky, &[Entry::Command(number)]);
        ticket.unwrap()
    });
    assert_eq!(queue.poll(&picky, bad), Err(picky.refusal(0)));
    for ticket in tickets {
        assert_eq!(queue.poll(&picky, ticket), Ok(true));
    }
}

#[test]
fn what_nobody_waits_for_is_not_taken_out_nor_is_a_sync_nor_what_came_in_its_place() {
    for (refused, resumes, taken_out) in [
        (UNSEEN, 1, 0),
        (Entry::Sync(2), 1, 0),
        // The sync in the place of the command.
        (BAD, 2, 1),
    ] {
        let (queue, picky) = Picky::new(4, move |entry| match entry {
            entry if entry == refused => u32::MAX,
            Entry::Sync(1) if refused == BAD => u32::MAX,
            _ => 0,
        });
        let batch = match refused {
            Entry::Sync(_) => [Entry::Command(1)],
            command => [command],
        };
        let ticket = queue.submit(&picky, &batch).unwrap();
        let error = queue.poll(&picky, ticket).unwrap_err();
        assert!(matches!(error, UnitError::Refused { .. }), "{error}");
        assert_eq!(queue.check_alive(UNIT), Err(WEDGED));
        assert_eq!(queue.poll(&picky, ticket), Err(WEDGED));
        assert_eq!(picky.resumed.get(), resumes);
        assert_eq!(queue.refusals(), (1, taken_out));
    }
}

/// A reset has everything forgotten: what was refused before it is done, and what it asks for itself is not repaired.
#[test]
fn a_reset_does_what_was_refused_and_fails_where_it_is_refused_itself() {
    let (queue, picky) = Picky::for_good(4);
    let bad = queue.submit(&picky, &[BAD]).unwrap();
    assert_eq!(queue.poll(&picky, bad), Err(picky.refusal(0)));
    queue.wedge();
    assert_eq!(queue.repair(&picky), Err(WEDGED));
    let anew = queue.restart(&picky).ok().unwrap();
    picky.fake.restart();
    assert_eq!(queue.repair(&picky), Ok(false));
    let refused = anew.submit_and_wait(&picky, &[BAD], "a flush");
    assert_eq!(refused, Err(picky.refusal(0)));
    drop(anew);
    picky.stands.set(false);
    let anew = queue.restart(&picky).ok().unwrap();
    picky.fake.restart();
    anew.submit_and_wait(&picky, &[Entry::Command(1)], "a flush")
        .unwrap();
    anew.revive();
    assert_eq!(queue.poll(&picky, bad), Ok(true));
}

/// Hardware that stands where it was told of nothing is not believed.
#[test]
fn who_stands_at_nothing_has_failed() {
    let (queue, picky) = Picky::for_good(4);
    picky.stands.set(true);
    let lie = queue.repair(&picky).unwrap_err();
    assert!(matches!(lie, UnitError::Hardware { .. }), "{lie}");
    assert_eq!(queue.repair(&picky), Err(WEDGED));
    assert!(picky.stands.get());
}
