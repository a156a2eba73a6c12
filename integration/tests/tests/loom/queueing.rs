//! Models of the command queue: submitters on several CPUs, hardware that reads the ring, stalls, resets, lies.

pub(crate) mod asking;
pub(crate) mod each;
pub(crate) mod refusing;
pub(crate) mod stalls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use hv_core::platform::{Clock, Instant};
use hv_core::sync::{AtomicBool, AtomicU64, Ordering, spin_hint};
use hv_iommu::queue::{
    Alone, CommandQueue, Completion, Ends, Going, Place, QueuePort, QueueShape, Refused,
};
use hv_iommu::{CommandCode, FlushTicket, UnitError, UnitIndex};

use crate::explore::{models, must_fail, saw};

/// What sets a sync apart from a command, which is a small number.
const SYNC: u64 = 1 << 32;
const DEADLINE: Duration = Duration::from_secs(1);
/// From here on commands are for something behind the unit, which never answers.
const SILENT: u64 = 16;
/// What keeps it from everything.
const CLOSE: u64 = 8;
/// What stands in the place of something that is not asked.
const SPARED: u64 = 15;
/// Why hardware stands.
const UNANSWERED: u64 = 1;
const REFUSED: u64 = 2;

/// What hardware has done, and what was done to it. Plain state: it orders nothing.
#[derive(Default)]
struct Done {
    /// Up to which position the doorbell was rung, and hardware has read.
    rung: u64,
    read: u64,
    /// What was last written to the tail register.
    tail: u64,
    /// Commands that were read and have no completed sync behind them yet, and those that have.
    begun: Vec<u64>,
    done: BTreeSet<u64>,
    syncs: usize,
    /// Whether something was asked since the last sync that does not answer.
    unanswered: bool,
    /// How often hardware stood, and how often the queue was mended.
    stood: usize,
    mended: usize,
    /// How often somebody looked at the clock.
    looks: u64,
    /// At which look, if at one, another CPU resets the unit and revives it.
    revives_at: Option<u64>,
}

/// A unit with its queue, and what an entry of it is: one word.
struct Unit {
    queue: CommandQueue,
    ring: Vec<AtomicU64>,
    /// The registers.
    tail: AtomicU64,
    head: AtomicU64,
    /// Why hardware stands; zero while it does not.
    stands: AtomicU64,
    /// The command that hardware refuses; zero for none.
    refuses: u64,
    /// Not zero while it reads: where CPUs other than the holder of the bell have it go on.
    engine: AtomicU64,
    /// Whether they do.
    goes_on: bool,
    /// Whether hardware goes on as soon as somebody has found that it stands.
    is_hasty: bool,
    /// Whether hardware that may go on does so at the next write of the doorbell only.
    is_deaf: bool,
    done: Mutex<Done>,
    /// Whether hardware reads in the middle of the doorbell's write, on the CPU that rings.
    eager: bool,
    /// Whether time goes on, so that deadlines pass.
    runs: bool,
    /// Whoever fills this entry stops until `go`.
    stall: u64,
    go: AtomicBool,
}

impl Unit {
    fn new(log2: u8) -> Self {
        let shape = QueueShape::new(log2, Ends::WrapBit, DEADLINE).unwrap();
        let shape = each::asked(shape);
        Self {
            queue: CommandQueue::new(shape).unwrap(),
            ring: (0..1 << log2).map(|_| AtomicU64::new(0)).collect(),
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            stands: AtomicU64::new(0),
            refuses: 0,
            engine: AtomicU64::new(0),
            goes_on: false,
            is_hasty: false,
            is_deaf: false,
            done: Mutex::default(),
            eager: false,
            runs: false,
            stall: 0,
            go: AtomicBool::new(false),
        }
    }

    fn entries(&self) -> u64 {
        self.ring.len() as u64
    }

    /// Whether hardware needs a sync behind each command.
    fn has_sync_each(&self) -> bool {
        self.queue.shape().has_sync_each()
    }

    /// Another CPU resets the unit, of which nothing was asked yet, and says so.
    fn reset_by_another(&self) {
        let anew = self.queue.restart(self).unwrap();
        // The registers are at zero, and positions go on with the next time round of both halves.
        let start = 2 * self.entries();
        {
            let done = &mut *self.done.lock().unwrap();
            (done.rung, done.read) = (start, start);
        }
        anew.revive();
        // ORDERING: Release, as somebody who is told that the unit is back comes after that.
        self.go.store(true, Ordering::Release);
    }

    /// Hardware reads all that it was told of, on the CPU that told it. It is one, whoever that is.
    fn read_all(&self) {
        if !self.goes_on {
            while self.step() {}
            return;
        }
        // ORDERING: Relaxed, all: hardware orders nothing between CPUs. What it has of its own is read by what reads the
        // latest.
        while self.engine.swap(1, Ordering::Relaxed) != 0 {
            spin_hint();
        }
        while self.step() {}
        // ORDERING: as above.
        self.engine.swap(0, Ordering::Relaxed);
    }

    /// Hardware reads one entry and moves its head, if it was told of one.
    fn step(&self) -> bool {
        // The latest, where hardware may have read on another CPU.
        let latest = |word: &AtomicU64, order| match self.goes_on {
            true => word.fetch_add(0, order),
            false => word.load(order),
        };
        // ORDERING: Relaxed, hardware's own.
        let head = latest(&self.head, Ordering::Relaxed);
        // ORDERING: Acquire pairs with the doorbell.
        let tail = latest(&self.tail, Ordering::Acquire);
        if tail == head {
            return false;
        }
        let place = (head % self.entries()) as usize;
        // ORDERING: Acquire pairs with `resume`.
        if self.goes_on && self.stands.fetch_add(0, Ordering::Acquire) != 0 {
            return false;
        }
        // ORDERING: Relaxed, as weak as can be.
        let entry = self.ring[place].load(Ordering::Relaxed);
        if entry & SYNC != 0 && std::mem::take(&mut self.done.lock().unwrap().unanswered) {
            self.done.lock().unwrap().stood += 1;
            // ORDERING: Release, as hardware says that there is an error.
            self.stands.store(UNANSWERED, Ordering::Release);
            return false;
        }
        if self.refuses != 0 && entry == self.refuses {
            // ORDERING: as above.
            self.stands.store(REFUSED, Ordering::Release);
            return false;
        }
        self.execute(entry);
        let next = (head + 1) % (2 * self.entries());
        // ORDERING: Release, both: what was done before the head moved. What others look at by what counts as a write has one
        // order for loom only if this is of that kind too.
        match self.goes_on {
            true => drop(self.head.swap(next, Ordering::Release)),
            false => self.head.store(next, Ordering::Release),
        }
        true
    }

    fn execute(&self, entry: u64) {
        let done = &mut *self.done.lock().unwrap();
        done.read += 1;
        if entry & SYNC != 0 {
            assert_eq!(entry & !SYNC, done.read, "a sync where it does not belong");
            done.done.extend(done.begun.drain(..));
            done.syncs += 1;
        } else if entry != SPARED {
            assert_ne!(entry, 0, "a place that was not filled");
            let again = done.done.contains(&entry) || done.begun.contains(&entry);
            assert!(!again, "command {entry} is done twice");
            let alone = !self.has_sync_each() || done.begun.is_empty();
            assert!(alone, "no sync is in front of command {entry}");
            done.unanswered |= entry >= SILENT && !done.done.contains(&CLOSE);
            done.begun.push(entry);
        }
    }

    fn has_done(&self, command: u64) -> bool {
        self.done.lock().unwrap().done.contains(&command)
    }

    fn submit(&self, command: u64) -> Result<FlushTicket, UnitError> {
        self.queue.submit(self, &[command])
    }

    /// Submits a command, waits, and finds it done.
    fn flush(&self, command: u64) {
        let ticket = self.submit(command).unwrap();
        while !self.queue.poll(self, ticket).unwrap() {
            spin_hint();
        }
        assert!(self.has_done(command), "command {command} is not done");
    }

    /// Waits, and finds that what does not answer is kept from everything.
    fn wait_silent(&self, ticket: FlushTicket) {
        while !self.queue.poll(self, ticket).unwrap() {
            spin_hint();
        }
        assert!(
            self.has_done(CLOSE),
            "it goes on by what it should have forgotten"
        );
    }

    /// Hardware reads until it has done these.
    fn run(&self, commands: &[u64]) {
        while !commands.iter().all(|&command| self.has_done(command)) {
            if !self.step() {
                spin_hint();
            }
        }
    }
}

impl Clock for Unit {
    fn now(&self) -> Instant {
        let (looks, is_due) = {
            let mut done = self.done.lock().unwrap();
            done.looks += u64::from(self.runs);
            (done.looks, done.revives_at == Some(done.looks))
        };
        if is_due {
            self.reset_by_another();
        }
        Instant::from_nanos(looks * 700_000_000)
    }
}

impl QueuePort for Unit {
    type Entry = u64;
    type Clock = Self;

    const FENCED: bool = false;

    fn clock(&self) -> &Self {
        self
    }

    fn unit(&self) -> UnitIndex {
        UnitIndex::new(0).unwrap()
    }

    fn put(&self, index: usize, entry: u64) -> Result<(), UnitError> {
        if entry == self.stall {
            // ORDERING: Relaxed, orders nothing.
            while !self.go.load(Ordering::Relaxed) {
                spin_hint();
            }
        }
        // ORDERING: Relaxed, as a port should.
        self.ring[index].store(entry, Ordering::Relaxed);
        Ok(())
    }

    fn sync(&self, ticket: FlushTicket) -> u64 {
        SYNC | ticket.sequence
    }

    fn ring(&self, tail: Place) {
        let entries = self.entries();
        let count = tail.index() as u64 + u64::from(tail.wrap()) * entries;
        if self.has_sync_each() {
            let last = &self.ring[((count + entries - 1) % entries) as usize];
            // ORDERING: Relaxed: what is told of is there.
            let last = last.load(Ordering::Relaxed);
            assert_ne!(last & SYNC, 0, "no sync is behind command {last}");
        }
        // ORDERING: Relaxed: the last write is seen where what orders the holders of the bell orders their writes. Release, as a
        // write to a register comes after all stores to memory. One exchange where hardware reads it on any CPU, by what
        // counts as a write here.
        let before = match self.goes_on {
            true => self.tail.swap(count, Ordering::Release),
            false => {
                let before = self.tail.load(Ordering::Relaxed);
                self.tail.store(count, Ordering::Release);
                before
            }
        };
        let mut done = self.done.lock().unwrap();
        assert_eq!(before, done.tail, "two writes of the tail have no order");
        done.tail = count;
        done.rung += (count + 2 * entries - before) % (2 * entries);
        assert!(
            done.rung - done.read <= entries,
            "{} entries that were not read in a ring of {entries}",
            done.rung - done.read
        );
        drop(done);
        if self.eager {
            self.read_all();
        }
    }

    fn head(&self) -> Result<Place, UnitError> {
        // ORDERING: Acquire, as a read of a register. What is refused shows in another one: behind that this is what hardware has now.
        let count = match self.refuses != 0 {
            true => self.head.fetch_add(0, Ordering::Acquire),
            false => self.head.load(Ordering::Acquire),
        };
        let entries = self.entries();
        Ok(Place::new((count % entries) as usize, count >= entries))
    }

    fn completion(&self) -> Completion {
        Completion::Head
    }

    fn check(&self) -> Result<Going, UnitError> {
        // ORDERING: Acquire, as a read of a register.
        match self.stands.load(Ordering::Acquire) {
            0 => Ok(Going::On),
            REFUSED => Ok(Going::Refused),
            _ => {
                if self.is_hasty {
                    self.resume();
                }
                Ok(Going::Unanswered)
            }
        }
    }

    fn spare(&self, index: usize) -> Result<(), UnitError> {
        // ORDERING: Relaxed, both, as a port should.
        let entry = self.ring[index].load(Ordering::Relaxed);
        if entry & SYNC == 0 && entry >= SILENT {
            // ORDERING: as above.
            self.ring[index].store(SPARED, Ordering::Relaxed);
        }
        Ok(())
    }

    fn refused(&self, index: usize) -> Result<Refused<u64>, UnitError> {
        // ORDERING: Relaxed, as a port should.
        let entry = self.ring[index].load(Ordering::Relaxed);
        Ok(Refused {
            entry,
            code: CommandCode(entry as u8),
            is_waited_for: entry & SYNC == 0,
        })
    }

    fn resume(&self) {
        // ORDERING: Release, as a write to a register comes after all stores to memory.
        self.stands.swap(0, Ordering::Release);
        if !self.is_deaf {
            self.read_all();
        }
    }

    fn awaits_bell(&self) -> bool {
        self.is_deaf
    }

    fn settle(&self, alone: &Alone<'_, '_, Self>) -> Result<(), UnitError> {
        self.done.lock().unwrap().mended += 1;
        alone.tell(&[CLOSE], "an end")
    }
}

/// Two CPUs flush around the end of a ring of four, of which half was used. Each may ring for the other, and hardware
/// reads what it finds then.
fn two_producers_around_the_end() {
    let unit = Arc::new(Unit {
        eager: true,
        ..Unit::new(2)
    });
    unit.flush(3);
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.flush(1))
    };
    unit.flush(2);
    other.join().unwrap();
    assert!(unit.done.lock().unwrap().read >= 5);
}

/// One CPU submits twice to such a ring, and hardware reads meanwhile.
fn a_producer_behind_hardware() {
    let unit = Arc::new(Unit::new(1));
    let hardware = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.run(&[1, 2]))
    };
    let first = unit.submit(1).unwrap();
    unit.flush(2);
    assert_eq!(unit.queue.poll(&*unit, first), Ok(true));
    hardware.join().unwrap();
}

/// Two CPUs submit around the end of a ring of eight, of which half was used, one of them twice, and hardware reads
/// afterwards.
fn two_producers_and_one_sync() {
    let unit = Arc::new(Unit::new(3));
    for command in [1, 2] {
        unit.submit(command).unwrap();
    }
    while unit.step() {}
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.submit(3).unwrap())
    };
    let first = unit.submit(4).unwrap();
    let second = unit.submit(5).unwrap();
    let theirs = other.join().unwrap();
    if [first, second]
        .iter()
        .any(|ours| ours.sequence == theirs.sequence)
    {
        saw("two share a sync");
    }
    while unit.step() {}
    for (command, ticket) in [(3, theirs), (4, first), (5, second)] {
        assert_eq!(unit.queue.poll(&*unit, ticket), Ok(true));
        assert!(unit.has_done(command), "command {command} is not done");
    }
    match unit.done.lock().unwrap().syncs {
        4 => saw("one sync for two"),
        5 => saw("a sync each"),
        syncs => panic!("{syncs} syncs"),
    }
}

/// Such a unit, which stands at the sync behind a command that is not answered. Gives the ticket.
fn standing(is_hasty: bool) -> (Arc<Unit>, FlushTicket) {
    let unit = Arc::new(Unit {
        eager: true,
        goes_on: true,
        is_hasty,
        ..Unit::new(2)
    });
    let ticket = unit.submit(SILENT).unwrap();
    (unit, ticket)
}

/// Two CPUs wait for what does not answer. Hardware reads whenever it is told to go on.
fn two_wait_for_no_answer() {
    let unit = two_wait(false);
    assert_eq!(unit.done.lock().unwrap().mended, 1);
}

fn two_wait(is_hasty: bool) -> Arc<Unit> {
    let (unit, ticket) = standing(is_hasty);
    let other = {
        let unit = unit.clone();
        loom::thread::spawn(move || unit.wait_silent(ticket))
    };
    unit.wait_silent(ticket);
    other.join().unwrap();
    unit
}

/// The head moves past what the unit was given while the ring is full: nothing unread is written over.
fn a_head_lies() {
    let unit = Arc::new(Unit::new(1));
    unit.submit(1).unwrap();
    let liar = {
        let unit = unit.clone();
        loom::thread::spawn(move || {
            // ORDERING: Release, as hardware moves its head.
            unit.head.store(3, Ordering::Release);
        })
    };
    // Waits for room, so it ends when the lie is seen.
    match unit.submit(2) {
        Err(UnitError::Hardware { found, .. }) => assert_eq!(found, 1),
        other => panic!("{other:?}"),
    }
    liar.join().unwrap();
    // ORDERING: Relaxed, everybody else has ended.
    assert_eq!(unit.ring[0].load(Ordering::Relaxed), 1);
    let wedged = UnitError::Wedged { unit: unit.unit() };
    assert_eq!(unit.submit(3), Err(wedged));
}

models! {
    /// Every command is done once, before its ticket completes, and the tail never goes back or past the head.
    /// Shows: bc14.
    bc14_two_producers_wrap_the_ring: Two(2), sees [], two_producers_around_the_end;

    /// A place is filled again only when hardware has read it.
    /// Shows: bc14.
    bc14_a_producer_wraps_behind_hardware: Two(3), sees [], a_producer_behind_hardware;

    /// Who shares a sync has it behind its own commands.
    /// Shows: bc14.
    bc14_two_producers_share_a_sync: Two(2),
        sees ["two share a sync", "one sync for two", "a sync each"], two_producers_and_one_sync;

    /// A head that cannot be is not believed.
    /// Shows: bc14.
    bc14_a_head_past_the_tail_makes_no_room: Two(3), sees [], a_head_lies;

    /// Nobody's ticket counts because hardware was told to go on past what does not answer.
    /// Shows: bc01.
    bc01_who_waits_for_what_does_not_answer_goes_on_behind_the_mending: Two(1),
        sees [], two_wait_for_no_answer;
}

must_fail! {
    /// Hardware that goes on past what does not answer before the queue is held: a ticket counts too early.
    hardware_that_goes_on_by_itself_is_noticed: Two(1), || {
        two_wait(true);
    };
}
