//! CPUs that are held up between a look and the clock, that others overtake, or that have to do with hardware that lies.

use super::*;

/// Moves the clock past every deadline, and has the unit do all that it was told of.
fn hold_up(fake: &Fake) {
    *fake.clock.0.lock().unwrap() += 10 * DEADLINE.as_millis() as u64;
    fake.read(usize::MAX);
}

#[test]
fn who_waits_and_is_held_up_behind_its_look_wedges_nobody() {
    let (queue, fake) = Fake::new(3, Ends::WrapBit);
    fake.eager.set(false);
    // The first look is before anybody waits.
    fake.plan(Point::Check, |fake| fake.plan(Point::Check, hold_up));
    let done = queue.submit_and_wait(&fake, &[Entry::Command(1)], "a flush");
    assert_eq!(done, Ok(()));
    assert_eq!(queue.check_alive(UNIT), Ok(()));
    assert_eq!(fake.commands(), [1]);
}

#[test]
fn who_wants_room_and_is_held_up_behind_its_look_wedges_nobody() {
    let (queue, fake) = Fake::new(1, Ends::WrapBit);
    fake.eager.set(false);
    queue.submit(&fake, &[Entry::Command(1)]).unwrap();
    // The first time begins the wait.
    fake.plan(Point::Clock, |fake| fake.plan(Point::Clock, hold_up));
    let ticket = queue.submit(&fake, &[Entry::Command(2)]);
    assert_eq!(queue.check_alive(UNIT), Ok(()));
    fake.read(usize::MAX);
    assert_eq!(queue.poll(&fake, ticket.unwrap()), Ok(true));
    assert_eq!(fake.commands(), [1, 2]);
}

/// Another CPU takes the room that the unit makes, each time that somebody looks at the clock.
fn overtake(queue: &'static CommandQueue) -> Job {
    Box::new(move |fake| {
        fake.read(usize::MAX);
        queue.submit(fake, &[Entry::Command(1)]).unwrap();
        fake.plan(Point::Clock, overtake(queue));
    })
}

#[test]
fn who_is_overtaken_again_and_again_gives_up_in_time() {
    let (queue, fake) = shared(1, Ends::WrapBit);
    fake.eager.set(false);
    queue.submit(&fake, &[Entry::Command(1)]).unwrap();
    fake.plan(Point::Clock, overtake(queue));
    match queue.submit(&fake, &[Entry::Command(2)]) {
        Err(UnitError::Busy { unit: UNIT, waited }) => {
            assert!(waited > 8 * DEADLINE && waited < 10 * DEADLINE);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(queue.check_alive(UNIT), Ok(()));
    assert!(!fake.commands().contains(&2));
}

/// A unit that says at every other look that it refuses something, and does not stand.
struct Flipping(Fake, Cell<bool>);

impl QueuePort for Flipping {
    type Entry = Entry;
    type Clock = Ticks;
    const FENCED: bool = false;

    fn clock(&self) -> &Ticks {
        self.0.clock()
    }
    fn unit(&self) -> UnitIndex {
        self.0.unit()
    }
    fn put(&self, index: usize, entry: Entry) -> Result<(), UnitError> {
        self.0.put(index, entry)
    }
    fn sync(&self, ticket: FlushTicket) -> Entry {
        self.0.sync(ticket)
    }
    fn ring(&self, tail: Place) {
        self.0.ring(tail);
    }
    fn head(&self) -> Result<Place, UnitError> {
        self.0.head()
    }
    fn completion(&self) -> Completion {
        self.0.completion()
    }
    fn check(&self) -> Result<Going, UnitError> {
        match self.1.replace(!self.1.get()) {
            true => Ok(Going::On),
            false => Ok(Going::Refused),
        }
    }
}

#[test]
fn a_unit_that_flips_between_well_and_stopped_runs_into_the_deadline() {
    let (queue, fake) = Fake::new(3, Ends::WrapBit);
    fake.eager.set(false);
    let flipping = Flipping(fake, Cell::new(false));
    match queue.submit_and_wait(&flipping, &[Entry::Command(1)], "a flush") {
        Err(UnitError::Timeout { unit: UNIT, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(queue.check_alive(UNIT), Err(WEDGED));
}
