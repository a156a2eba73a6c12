//! Something behind the unit does not answer: who mends, what others see meanwhile, and what becomes of a mending that fails.

use super::*;

/// The command that is never answered, and what keeps whoever should from everything.
const SILENT: Entry = Entry::Command(66);
const CLOSE: Entry = Entry::Command(77);

type Settle = Box<dyn Fn(&Alone<'_, '_, Behind>) -> Result<(), UnitError>>;

/// A unit that stands at the sync behind [`SILENT`], until [`CLOSE`] was done.
struct Behind {
    fake: Fake,
    unanswered: Cell<bool>,
    stands: Cell<bool>,
    resumed: Cell<usize>,
    settle: Settle,
}

impl Behind {
    fn new(
        log2: u8,
        settle: impl Fn(&Alone<'_, '_, Self>) -> Result<(), UnitError> + 'static,
    ) -> (&'static CommandQueue, Self) {
        let (queue, fake) = shared(log2, Ends::WrapBit);
        fake.eager.set(false);
        let behind = Self {
            fake,
            unanswered: Cell::new(false),
            stands: Cell::new(false),
            resumed: Cell::new(0),
            settle: Box::new(settle),
        };
        (queue, behind)
    }

    /// One that finds it out, and closes it.
    fn closing(log2: u8) -> (&'static CommandQueue, Self) {
        Self::new(log2, |alone| {
            assert_eq!(alone.ask(&[Entry::Command(1)], "an answer"), Ok(true));
            assert_eq!(alone.ask(&[SILENT], "an answer"), Ok(false));
            alone.tell(&[CLOSE], "an end")
        })
    }

    fn read(&self) {
        let fake = &self.fake;
        while fake.head.get() != fake.tail.get() && !self.stands.get() {
            let entry = fake.ring[fake.head.get().index()].get().unwrap();
            if matches!(entry, Entry::Sync(_)) && self.unanswered.take() {
                self.stands.set(true);
                return;
            }
            if entry == SILENT && !fake.executed.lock().unwrap().contains(&CLOSE) {
                self.unanswered.set(true);
            }
            fake.read(1);
        }
    }
}

impl QueuePort for Behind {
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
        Completion::Head
    }
    fn check(&self) -> Result<Going, UnitError> {
        match self.stands.get() {
            true => Ok(Going::Unanswered),
            false => self.fake.check(),
        }
    }
    fn spare(&self, index: usize) -> Result<(), UnitError> {
        assert!(self.stands.get(), "it goes on meanwhile");
        if self.fake.ring[index].get() == Some(SILENT) {
            self.fake.ring[index].set(Some(Entry::Sync(0)));
        }
        Ok(())
    }
    fn resume(&self) {
        assert!(self.stands.take(), "it goes");
        self.resumed.set(self.resumed.get() + 1);
        self.read();
    }
    fn settle(&self, alone: &Alone<'_, '_, Self>) -> Result<(), UnitError> {
        (self.settle)(alone)
    }
}

#[test]
fn bc01_what_is_not_answered_is_closed_before_its_ticket_counts() {
    for log2 in 1..5 {
        let (queue, behind) = Behind::closing(log2);
        let one = queue.submit(&behind, &[SILENT]).unwrap();
        // It stands there, and has not counted.
        assert_eq!(behind.head(), Ok(Place::new(1, false)));
        assert_eq!(queue.poll(&behind, one), Ok(true));
        let executed = behind.fake.commands();
        assert_eq!(executed, [66, 1, 66, 77]);
        assert_eq!(behind.resumed.get(), 2);
        assert_eq!(queue.check_alive(UNIT), Ok(()));
        let next = queue.submit(&behind, &[Entry::Command(2)]).unwrap();
        assert_eq!(queue.poll(&behind, next), Ok(true));
    }
}

/// However many ask it, it is given its time twice: before it is known that it does not answer, and to know who it is.
#[test]
fn bc01_what_asks_it_and_is_not_read_yet_is_taken_out() {
    for log2 in 3..6 {
        let (queue, behind) = Behind::closing(log2);
        let mut tickets = Vec::new();
        for number in 0..(1 << log2) / 4 {
            let batch = [SILENT, Entry::Command(100 + number)];
            tickets.push(queue.submit(&behind, &batch[..1]).unwrap());
            tickets.push(queue.submit(&behind, &batch[1..]).unwrap());
            if number == 0 {
                assert_eq!(behind.fake.commands(), [66]);
            }
        }
        let steps = queue.mending_steps();
        assert_eq!(queue.poll(&behind, tickets[0]), Ok(true));
        let mut expected = Vec::from([66]);
        expected.extend((0..(1 << log2) / 4).map(|number| 100 + number));
        expected.extend([1, 66, 77]);
        assert_eq!(behind.fake.commands(), expected);
        assert_eq!(behind.resumed.get(), 2);
        // The hold, what was reserved, what was read, one that answers, one that does not, its end, and the queue's.
        assert_eq!(queue.mending_steps() - steps, 7);
        for ticket in tickets {
            assert_eq!(queue.poll(&behind, ticket), Ok(true));
        }
    }
}

/// What a reset asks for may stand behind what was asked in the ring of before.
#[test]
fn bc15_a_reset_goes_on_past_what_does_not_answer() {
    let (queue, behind) = Behind::closing(4);
    let ticket = queue.submit(&behind, &[Entry::Command(2)]).unwrap();
    queue.wedge();
    let anew = queue.restart(&behind).ok().unwrap();
    behind.fake.restart();
    behind.unanswered.set(true);
    anew.submit_and_wait(&behind, &[Entry::Command(3)], "a flush")
        .unwrap();
    assert_eq!(behind.resumed.get(), 1);
    assert_eq!(queue.poll(&behind, ticket), Err(WEDGED));
    anew.revive();
    assert_eq!(queue.poll(&behind, ticket), Ok(true));
}

/// A full ring is waited for as well.
#[test]
fn who_waits_for_room_behind_what_is_not_answered_mends() {
    let (queue, behind) = Behind::closing(2);
    let one = queue.submit(&behind, &[SILENT]).unwrap();
    let two = queue.submit(&behind, &[Entry::Command(2)]).unwrap();
    let three = queue.submit(&behind, &[Entry::Command(3)]).unwrap();
    assert_eq!(behind.fake.commands(), [66, 2, 1, 66, 77, 3]);
    for ticket in [one, two, three] {
        assert_eq!(queue.poll(&behind, ticket), Ok(true));
    }
}

#[test]
fn bc01_nobody_else_submits_or_finds_anything_done_while_it_is_mended() {
    let (queue, behind) = Behind::new(4, |alone| {
        alone.tell(&[CLOSE], "an end")?;
        // Another CPU, whose registers say the same.
        let (queue, other) = (alone.queue(), shared(4, Ends::WrapBit).1);
        other.head.set(alone.port().head()?);
        let first = FlushTicket::alone(2);
        assert_eq!(queue.poll(&other, first), Ok(false));
        let busy = queue.submit(&other, &[Entry::Command(5)]).unwrap_err();
        assert!(matches!(busy, UnitError::Busy { .. }), "{busy}");
        assert_eq!(queue.repair(&other), Ok(false));
        assert_eq!(
            queue.restart(&other).err(),
            Some(UnitError::NotWedged { unit: UNIT })
        );
        Ok(())
    });
    let ticket = queue.submit(&behind, &[SILENT]).unwrap();
    assert_eq!(queue.poll(&behind, ticket), Ok(true));
    let next = queue.submit(&behind, &[Entry::Command(2)]).unwrap();
    assert_eq!(queue.poll(&behind, next), Ok(true));
    assert_eq!(behind.fake.commands(), [66, 77, 2]);
}

/// A port that knows of nothing behind its unit is not one that says so.
#[test]
fn a_mending_that_fails_wedges_and_a_reset_lets_go() {
    let (queue, behind) = Behind::new(4, |alone| {
        Err(UnitError::Wedged {
            unit: alone.port().unit(),
        })
    });
    let ticket = queue.submit(&behind, &[SILENT]).unwrap();
    assert_eq!(queue.poll(&behind, ticket), Err(WEDGED));
    assert_eq!(queue.submit(&behind, &[]), Err(WEDGED));
    let anew = queue.restart(&behind).ok().unwrap();
    behind.fake.restart();
    anew.submit_and_wait(&behind, &[Entry::Command(2)], "a flush")
        .unwrap();
    anew.revive();
    assert_eq!(queue.poll(&behind, ticket), Ok(true));
    let next = queue.submit(&behind, &[Entry::Command(3)]).unwrap();
    assert_eq!(queue.poll(&behind, next), Ok(true));
    assert_eq!(behind.fake.commands(), [66, 2, 3]);
}
