//! The queue against a unit in memory: order, room, errors, and what comes in between, on one thread.

use core::cell::Cell;
use core::time::Duration;
use std::boxed::Box;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::vec::Vec;

use hv_core::platform::{Clock, Instant};

use super::*;

mod each;
mod held_up;
mod refused;
mod stalled;
mod unanswered;

const UNIT: UnitIndex = match UnitIndex::new(3) {
    Some(unit) => unit,
    None => unreachable!(),
};
const WEDGED: UnitError = UnitError::Wedged { unit: UNIT };
const DEADLINE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Command(u32),
    Sync(u64),
}

/// Where something can come in between.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Point {
    Put,
    Ring,
    Head,
    Check,
    Clock,
}

/// A clock that moves a millisecond with each look.
#[derive(Default)]
struct Ticks(Mutex<u64>);

impl Clock for Ticks {
    fn now(&self) -> Instant {
        let mut ticks = self.0.lock().unwrap();
        *ticks += 1;
        Instant::from_nanos(*ticks * 1_000_000)
    }
}

type Job = Box<dyn FnOnce(&Fake)>;

/// A unit, which reads only when told to.
struct Fake {
    shape: QueueShape,
    clock: Ticks,
    ring: Vec<Cell<Option<Entry>>>,
    tail: Cell<Place>,
    head: Cell<Place>,
    rung: Cell<usize>,
    /// Whether it reads as soon as its doorbell rings.
    eager: Cell<bool>,
    executed: Mutex<Vec<Entry>>,
    word: Cell<Option<u32>>,
    broken: Cell<bool>,
    planned: Mutex<Option<(Point, Job)>>,
}

impl Fake {
    fn new(log2: u8, ends: Ends) -> (CommandQueue, Self) {
        Self::of(QueueShape::new(log2, ends, DEADLINE).unwrap())
    }

    fn of(shape: QueueShape) -> (CommandQueue, Self) {
        let fake = Self {
            shape,
            clock: Ticks::default(),
            ring: (0..shape.entries()).map(|_| Cell::new(None)).collect(),
            tail: Cell::new(Place::new(0, false)),
            head: Cell::new(Place::new(0, false)),
            rung: Cell::new(0),
            eager: Cell::new(true),
            executed: Mutex::default(),
            word: Cell::new(None),
            broken: Cell::new(false),
            planned: Mutex::new(None),
        };
        (CommandQueue::new(shape).unwrap(), fake)
    }

    fn plan(&self, point: Point, job: impl FnOnce(&Self) + 'static) {
        *self.planned.lock().unwrap() = Some((point, Box::new(job)));
    }

    fn pass(&self, point: Point) {
        let planned = self.planned.lock().unwrap().take_if(|(at, _)| *at == point);
        if let Some((_, job)) = planned {
            job(self);
        }
    }

    /// Reads up to `most` entries.
    fn read(&self, most: usize) {
        for _ in 0..most {
            let head = self.head.get();
            if head == self.tail.get() {
                return;
            }
            let entry = self.ring[head.index()].get().unwrap();
            self.executed.lock().unwrap().push(entry);
            if let (Entry::Sync(sequence), Some(_)) = (entry, self.word.get()) {
                self.word.set(Some(sequence as u32));
            }
            let next = self.shape.count(head).unwrap() + 1;
            self.head.set(self.shape.place(next % self.shape.period()));
        }
    }

    fn commands(&self) -> Vec<u32> {
        let executed = self.executed.lock().unwrap();
        let commands = executed.iter().filter_map(|entry| match entry {
            Entry::Command(number) => Some(*number),
            Entry::Sync(_) => None,
        });
        commands.collect()
    }

    /// Turns the queue off and on.
    fn restart(&self) {
        self.tail.set(Place::new(0, false));
        self.head.set(Place::new(0, false));
    }
}

impl QueuePort for Fake {
    type Entry = Entry;
    type Clock = Ticks;
    const FENCED: bool = false;

    fn clock(&self) -> &Ticks {
        self.pass(Point::Clock);
        &self.clock
    }
    fn unit(&self) -> UnitIndex {
        UNIT
    }
    fn put(&self, index: usize, entry: Entry) -> Result<(), UnitError> {
        self.pass(Point::Put);
        if self.broken.get() {
            return Err(hardware());
        }
        self.ring[index].set(Some(entry));
        Ok(())
    }
    fn sync(&self, ticket: FlushTicket) -> Entry {
        Entry::Sync(ticket.sequence)
    }
    fn ring(&self, tail: Place) {
        self.pass(Point::Ring);
        self.rung.set(self.rung.get() + 1);
        self.tail.set(tail);
        if self.eager.get() {
            self.read(usize::MAX);
        }
    }
    fn head(&self) -> Result<Place, UnitError> {
        let head = self.head.get();
        self.pass(Point::Head);
        Ok(head)
    }
    fn completion(&self) -> Completion {
        self.word.get().map_or(Completion::Head, Completion::Word)
    }
    fn check(&self) -> Result<Going, UnitError> {
        let failed = self.broken.get();
        self.pass(Point::Check);
        if failed {
            Err(hardware())
        } else {
            Ok(Going::On)
        }
    }
}

/// As [`Fake`], for hardware that needs a sync between commands.
struct Fenced(Fake);

impl QueuePort for Fenced {
    type Entry = Entry;
    type Clock = Ticks;
    const FENCED: bool = true;

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
        self.0.check()
    }
}

const fn hardware() -> UnitError {
    UnitError::Hardware {
        unit: UNIT,
        what: "an error",
        expected: 0,
        found: 1,
    }
}

fn shared(log2: u8, ends: Ends) -> (&'static CommandQueue, Fake) {
    let (queue, fake) = Fake::new(log2, ends);
    (Box::leak(Box::new(queue)), fake)
}

/// Drives a ring against a queue that knows no wrap, with as many entries waiting as `fill` says.
fn agrees_with_a_queue(log2: u8, ends: Ends) {
    let most = (1 << log2) - usize::from(ends == Ends::OneFree);
    for fill in 2..=most {
        let (queue, fake) = Fake::new(log2, ends);
        fake.eager.set(false);
        let mut model = VecDeque::new();
        let mut expected = Vec::new();
        for number in 0..3 << log2 {
            while model.len() + 2 > fill {
                fake.read(1);
                expected.extend(model.pop_front());
            }
            let ticket = queue.submit(&fake, &[Entry::Command(number)]).unwrap();
            model.push_back(Entry::Command(number));
            model.push_back(Entry::Sync(ticket.sequence));
            assert_eq!(ticket.sequence, 2 * u64::from(number) + 2);
            assert_eq!(queue.poll(&fake, ticket), Ok(false));
        }
        fake.read(usize::MAX);
        expected.extend(model);
        assert_eq!(*fake.executed.lock().unwrap(), expected);
    }
}

/// Shows: bc14.
#[test]
fn queue_arithmetic_holds_at_every_wrap() {
    for (log2, ends) in [
        (2, Ends::OneFree),
        (3, Ends::OneFree),
        (5, Ends::OneFree),
        (1, Ends::WrapBit),
        (2, Ends::WrapBit),
        (5, Ends::WrapBit),
    ] {
        agrees_with_a_queue(log2, ends);
    }
}

/// Shows: bc14.
#[test]
fn a_full_ring_has_no_room_and_is_not_empty() {
    for (ends, fits) in [(Ends::OneFree, 3), (Ends::WrapBit, 4)] {
        let (queue, fake) = Fake::new(3, ends);
        fake.eager.set(false);
        for number in 0..fits {
            queue.submit(&fake, &[Entry::Command(number)]).unwrap();
        }
        match queue.submit(&fake, &[Entry::Command(fits)]) {
            Err(UnitError::Timeout { waited, .. }) => assert!(waited >= DEADLINE),
            other => panic!("{other:?}"),
        }
        assert_eq!(queue.submit(&fake, &[]), Err(WEDGED));
        fake.read(usize::MAX);
        assert_eq!(fake.commands(), (0..fits).collect::<Vec<_>>());
    }
}

#[test]
fn a_batch_is_in_order_with_what_the_vendor_needs_between() {
    let commands = [1, 2, 3].map(Entry::Command);
    let (queue, fake) = Fake::new(4, Ends::WrapBit);
    let ticket = queue.submit(&fake, &commands).unwrap();
    assert_eq!(ticket.sequence, 4);
    let [a, b, c] = commands;
    assert_eq!(*fake.executed.lock().unwrap(), [a, b, c, Entry::Sync(4)]);
    let (queue, fake) = Fake::new(4, Ends::WrapBit);
    let fake = Fenced(fake);
    queue.submit(&fake, &commands).unwrap();
    let syncs = [2, 4, 6].map(Entry::Sync);
    let [after_a, after_b, after_c] = syncs;
    let expected = [a, after_a, b, after_b, c, after_c];
    assert_eq!(*fake.0.executed.lock().unwrap(), expected);
    // A wait alone.
    let ticket = queue.submit(&fake, &[]).unwrap();
    assert_eq!((ticket.sequence, fake.0.rung.get()), (7, 2));
}

#[test]
fn a_batch_that_no_ring_takes_is_refused_and_wedges_nothing() {
    let (queue, fake) = Fake::new(2, Ends::OneFree);
    let commands = [Entry::Command(1); 3];
    match queue.submit(&fake, &commands) {
        Err(UnitError::Hardware {
            expected, found, ..
        }) => assert_eq!((expected, found), (2, 3)),
        other => panic!("{other:?}"),
    }
    assert!(queue.submit(&fake, &commands[..2]).is_ok());
}

/// Shows: bc14.
#[test]
fn bc14_a_head_outside_the_ring_or_past_the_tail_wedges() {
    let lies = [
        (Ends::OneFree, Place::new(4, false), (3, 4)),
        (Ends::OneFree, Place::new(0, true), (3, 0)),
        (Ends::OneFree, Place::new(3, false), (2, 3)),
        (Ends::WrapBit, Place::new(1, true), (0, 1)),
    ];
    for (ends, lie, said) in lies {
        let (queue, fake) = Fake::new(2, ends);
        fake.eager.set(false);
        let fits = match ends {
            Ends::OneFree => 1,
            Ends::WrapBit => 2,
        };
        for number in 0..fits {
            queue.submit(&fake, &[Entry::Command(number)]).unwrap();
        }
        fake.head.set(lie);
        match queue.submit(&fake, &[Entry::Command(9); 2]) {
            Err(UnitError::Hardware {
                expected, found, ..
            }) => assert_eq!((expected, found), said),
            other => panic!("{lie:?}: {other:?}"),
        }
        assert_eq!(queue.submit(&fake, &[]), Err(WEDGED));
    }
}

#[test]
fn a_command_that_was_read_is_not_done_before_its_sync() {
    let (queue, fake) = Fake::new(4, Ends::WrapBit);
    fake.eager.set(false);
    let ticket = queue.submit(&fake, &[Entry::Command(1)]).unwrap();
    fake.read(1);
    assert_eq!(queue.poll(&fake, ticket), Ok(false));
    fake.read(1);
    assert_eq!(queue.poll(&fake, ticket), Ok(true));
    let next = FlushTicket::alone(ticket.sequence + 1);
    assert_eq!(queue.poll(&fake, next), Ok(false));
}

#[test]
fn who_comes_between_a_reservation_and_its_doorbell_is_busy_and_nothing_is_lost() {
    for point in [Point::Put, Point::Ring] {
        let (queue, fake) = shared(4, Ends::WrapBit);
        fake.plan(point, |fake| {
            let error = queue.submit(fake, &[Entry::Command(2)]).unwrap_err();
            assert!(matches!(error, UnitError::Busy { .. }), "{error}");
        });
        let ticket = queue.submit(&fake, &[Entry::Command(1)]).unwrap();
        assert_eq!(queue.poll(&fake, ticket), Ok(true));
        // The holder of the bell has rung for what was left.
        assert_eq!(fake.commands(), [1, 2]);
        assert_eq!(fake.executed.lock().unwrap().last(), Some(&Entry::Sync(4)));
        assert_eq!(queue.check_alive(UNIT), Ok(()));
    }
}

#[test]
fn a_ring_that_a_stalled_submitter_keeps_full_is_no_fault_of_the_unit() {
    // While it fills its entry, or writes the doorbell.
    for point in [Point::Put, Point::Ring] {
        let (queue, fake) = shared(2, Ends::WrapBit);
        fake.plan(point, |fake| {
            // One more fits; a third does not, and hardware was told of nothing.
            for number in [2, 3] {
                let error = queue.submit(fake, &[Entry::Command(number)]).unwrap_err();
                assert!(matches!(error, UnitError::Busy { .. }), "{error}");
            }
        });
        queue.submit(&fake, &[Entry::Command(1)]).unwrap();
        assert_eq!(fake.commands(), [1, 2]);
    }
}

#[test]
fn a_place_that_cannot_be_filled_wedges_and_holds_up_no_reset() {
    let (queue, fake) = Fake::new(4, Ends::WrapBit);
    fake.broken.set(true);
    assert_eq!(queue.submit(&fake, &[Entry::Command(1)]), Err(hardware()));
    assert_eq!(fake.rung.get(), 0, "hardware is told of nothing");
    fake.broken.set(false);
    assert_eq!(queue.submit(&fake, &[]), Err(WEDGED));
    let anew = queue.restart(&fake).ok().unwrap();
    fake.restart();
    anew.submit_and_wait(&fake, &[Entry::Command(2)], "a flush")
        .unwrap();
    anew.revive();
    queue.submit(&fake, &[Entry::Command(3)]).unwrap();
    assert_eq!(fake.commands(), [2, 3]);
}

#[test]
fn a_reset_has_the_ring_alone_and_waits_for_who_fills_it() {
    let (queue, fake) = shared(4, Ends::WrapBit);
    let refused = queue.restart(&fake).err();
    assert_eq!(refused, Some(UnitError::NotWedged { unit: UNIT }));
    fake.plan(Point::Put, |fake| {
        queue.wedge();
        let busy = queue.restart(fake).err().unwrap();
        assert!(matches!(busy, UnitError::Busy { .. }), "{busy}");
    });
    assert_eq!(queue.submit(&fake, &[Entry::Command(1)]), Err(WEDGED));
    let anew = queue.restart(&fake).ok().unwrap();
    let busy = queue.restart(&fake).err().unwrap();
    assert!(matches!(busy, UnitError::Busy { .. }), "{busy}");
    assert_eq!(queue.repair(&fake), Ok(false));
    drop(anew);
    assert_eq!(queue.submit(&fake, &[]), Err(WEDGED));
    assert!(queue.restart(&fake).is_ok());
}

/// What a CPU reads before or in a reset and judges after it wedges nothing.
#[test]
fn an_error_of_before_a_reset_does_not_wedge_after_it() {
    let reset = |queue: &'static CommandQueue, fake: &Fake| {
        queue.wedge();
        fake.broken.set(false);
        let anew = queue.restart(fake).ok().unwrap();
        fake.restart();
        fake.eager.set(true);
        anew.submit_and_wait(fake, &[Entry::Command(7)], "a flush")
            .unwrap();
        anew.revive();
    };
    for point in [Point::Check, Point::Head] {
        let (queue, fake) = shared(4, Ends::WrapBit);
        fake.eager.set(false);
        let ticket = queue.submit(&fake, &[Entry::Command(1)]).unwrap();
        fake.broken.set(true);
        if point == Point::Head {
            fake.head.set(Place::new(9, true));
        }
        fake.plan(point, move |fake| reset(queue, fake));
        assert_eq!(queue.poll(&fake, ticket), Err(WEDGED));
        assert_eq!(queue.check_alive(UNIT), Ok(()));
        assert_eq!(queue.poll(&fake, ticket), Ok(true));
        let next = queue.submit(&fake, &[Entry::Command(2)]).unwrap();
        assert!(next > ticket);
        assert_eq!(queue.poll(&fake, next), Ok(true));
    }
}

/// The same for who does not submit, but looks at what a unit says of itself.
#[test]
fn what_was_found_of_a_unit_wedges_it_as_it_was_seen() {
    let (queue, fake) = Fake::new(4, Ends::WrapBit);
    let seen = queue.alive().unwrap();
    let other = queue.alive().unwrap();
    assert!(
        queue.wedge_as_seen(seen) && !queue.wedge_as_seen(other),
        "new once"
    );
    assert_eq!(queue.check_alive(UNIT), Err(WEDGED));
    assert!(queue.alive().is_none());
    let anew = queue.restart(&fake).ok().unwrap();
    fake.restart();
    assert!(queue.alive().is_none() && !queue.wedge_as_seen(seen));
    anew.revive();
    assert!(!queue.wedge_as_seen(seen));
    assert_eq!(queue.check_alive(UNIT), Ok(()));
    let seen = queue.alive().unwrap();
    queue.submit(&fake, &[Entry::Command(1)]).unwrap();
    assert!(queue.wedge_as_seen(seen), "no reset came between");
}

/// Shows: bc01, bc14.
#[test]
fn a_status_word_tells_sequences_across_its_own_wrap() {
    let (queue, fake) = Fake::new(4, Ends::OneFree);
    fake.word.set(Some(0));
    queue.wedge();
    let anew = queue.restart(&fake).ok().unwrap();
    let past = FlushTicket::alone((9 << 32) - 40);
    anew.skip_past(UNIT, past).unwrap();
    fake.word.set(Some(past.sequence as u32));
    fake.restart();
    anew.revive();
    let mut before = past;
    for round in 0..40 {
        fake.eager.set(round % 3 != 0);
        let ticket = queue.submit(&fake, &[Entry::Command(round)]).unwrap();
        assert!(ticket > before);
        before = ticket;
        assert_eq!(queue.poll(&fake, ticket), Ok(fake.eager.get()));
        fake.read(usize::MAX);
        assert_eq!(queue.poll(&fake, ticket), Ok(true));
    }
    assert!(before.sequence > 9 << 32);
    fake.word.set(Some(before.sequence as u32 + 1));
    assert!(matches!(
        queue.poll(&fake, before),
        Err(UnitError::Hardware { .. })
    ));
    assert_eq!(queue.poll(&fake, before), Err(WEDGED));
}

/// The second of two that reset one wedged queue, at each place where the first may end meanwhile.
#[test]
fn bc14_a_reset_gets_no_ring_that_another_has_revived() {
    fn after(fake: &Fake, looks: u32, queue: &'static CommandQueue) {
        fake.plan(Point::Clock, move |fake| {
            if looks > 0 {
                return after(fake, looks - 1, queue);
            }
            let other = queue.restart(fake).ok().unwrap();
            fake.restart();
            other.revive();
            queue.submit(fake, &[Entry::Command(2)]).unwrap();
        });
    }
    for looks in [0, 1] {
        let (queue, fake) = shared(4, Ends::WrapBit);
        queue.submit(&fake, &[Entry::Command(1)]).unwrap();
        queue.wedge();
        after(&fake, looks, queue);
        let refused = queue.restart(&fake).err();
        assert_eq!(refused, Some(UnitError::NotWedged { unit: UNIT }));
        queue.submit(&fake, &[Entry::Command(3)]).unwrap();
        assert_eq!(fake.commands(), [1, 2, 3]);
    }
}
