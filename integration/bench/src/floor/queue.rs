//! A command queue behind one spin lock, and the unit that it and the subsystem's queue are for.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

/// The logarithm of [`ENTRIES`].
pub const ENTRIES_LOG2: u8 = 8;
/// Entries of the ring, two words each.
pub const ENTRIES: u64 = 1 << ENTRIES_LOG2;

/// What sets a wait apart from a command; its low half is what the wait writes.
pub const WAIT: u64 = 1 << 63;

/// A unit that does everything in the middle of the doorbell's write, on the CPU that rings, as QEMU's do.
#[derive(Debug)]
pub struct Unit {
    ring: Vec<[AtomicU64; 2]>,
    head: AtomicU64,
    /// What the last wait has written.
    status: AtomicU64,
    /// Commands, waits and doorbells.
    done: [AtomicU64; 3],
    /// How many ticks of the clock the doorbell's write takes.
    doorbell: u64,
}

impl Unit {
    /// A unit whose ring is empty. The write of its doorbell takes this long, which the CPU that rings waits for.
    pub fn new(doorbell: Duration) -> Self {
        Self {
            ring: (0..ENTRIES).map(|_| Default::default()).collect(),
            head: AtomicU64::new(0),
            status: AtomicU64::new(0),
            done: Default::default(),
            doorbell: match doorbell.is_zero() {
                true => 0,
                false => (doorbell.as_secs_f64() * 1e9 / clock::tick_nanos()) as u64,
            },
        }
    }

    /// Fills an entry.
    #[inline]
    pub fn put(&self, place: u64, [low, high]: [u64; 2]) {
        if let Some(entry) = self.ring.get((place % ENTRIES) as usize) {
            // ORDERING: Relaxed, the doorbell comes after.
            entry[0].store(low, Ordering::Relaxed);
            // ORDERING: as above.
            entry[1].store(high, Ordering::Relaxed);
        }
    }

    /// Moves the tail register. One CPU at a time.
    #[inline]
    pub fn ring(&self, tail: u64) {
        if self.doorbell != 0 {
            let start = clock::ticks();
            while clock::ticks() - start < self.doorbell {
                spin_loop();
            }
        }
        let mut found = [0, 0, 1];
        // ORDERING: Relaxed, all of the unit's: who rings has it alone and comes after who rang before.
        let mut head = self.head.load(Ordering::Relaxed);
        while head % ENTRIES != tail % ENTRIES {
            let Some([low, _]) = self.ring.get((head % ENTRIES) as usize) else {
                return;
            };
            // ORDERING: as above.
            let low = low.load(Ordering::Relaxed);
            head += 1;
            if low & WAIT == 0 {
                found[0] += 1;
            } else {
                found[1] += 1;
                // ORDERING: Release: what was done before the wait.
                self.status.store(low & !WAIT, Ordering::Release);
            }
        }
        // ORDERING: Release: the places are read.
        self.head.store(head, Ordering::Release);
        for (count, found) in self.done.iter().zip(found) {
            // ORDERING: as above.
            count.store(count.load(Ordering::Relaxed) + found, Ordering::Relaxed);
        }
    }

    /// The place that is read next.
    #[inline]
    pub fn head(&self) -> u64 {
        // ORDERING: Acquire pairs with `ring`.
        self.head.load(Ordering::Acquire) % ENTRIES
    }

    /// What the last wait has written.
    #[inline]
    pub fn status(&self) -> u64 {
        // ORDERING: Acquire pairs with `ring`.
        self.status.load(Ordering::Acquire)
    }

    /// How many commands, waits and doorbells there were.
    pub fn done(&self) -> [u64; 3] {
        // ORDERING: Relaxed, nobody rings any more.
        self.done
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed))
    }
}

/// The queue that needs the least: one lock around a command, its wait and the doorbell. It knows no errors, no
/// deadlines and no resets.
#[derive(Debug)]
pub struct LockedQueue {
    /// What it drives.
    pub unit: Unit,
    taken: AtomicBool,
    tail: AtomicU64,
}

impl LockedQueue {
    /// An empty queue of a unit with such a doorbell.
    pub fn new(doorbell: Duration) -> Self {
        Self {
            unit: Unit::new(doorbell),
            taken: AtomicBool::new(false),
            tail: AtomicU64::new(0),
        }
    }

    /// Submits a command with a wait behind it, and waits for that.
    #[inline]
    pub fn flush(&self, command: [u64; 2]) {
        // ORDERING: Acquire pairs with the Release below; the rest of the ring is the holder's.
        while self.taken.swap(true, Ordering::Acquire) {
            // ORDERING: Relaxed, only a look.
            while self.taken.load(Ordering::Relaxed) {
                spin_loop();
            }
        }
        // ORDERING: Relaxed, the holder's.
        let tail = self.tail.load(Ordering::Relaxed);
        while tail.wrapping_sub(self.unit.head()) % ENTRIES > ENTRIES - 3 {
            spin_loop();
        }
        self.unit.put(tail, command);
        self.unit.put(tail + 1, [WAIT | (tail + 2), 0]);
        // ORDERING: Relaxed, the holder's.
        self.tail.store(tail + 2, Ordering::Relaxed);
        self.unit.ring(tail + 2);
        // ORDERING: Release, as said above.
        self.taken.store(false, Ordering::Release);
        while self.unit.status() < tail + 2 {
            spin_loop();
        }
    }
}
