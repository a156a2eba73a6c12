//! Frames for tables on the host that many threads take and give back at once, and that tell of misuse: a
//! frame given back twice, reached or written while it was free, or not given back at all.

#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, OutOfFrames, PhysMemory};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};
use hv_rig::cpus;

use crate::host::lock;

/// Words of a table page.
const WORDS: usize = 512;
/// Where the frames begin.
const BASE: u64 = 0x0000_2ab0_4000_0000;
/// What a free frame holds, and one that was just taken: present, and leading nowhere.
const POISON: u64 = 0x0000_7bad_dead_d003;

thread_local! {
    /// How many tables this thread has looked into.
    static LOOKS: Cell<u32> = const { Cell::new(0) };
}

struct Frame {
    words: Vec<AtomicU64>,
    taken: AtomicBool,
}

/// A frame source and the memory behind it, for many threads.
pub struct Pool {
    frames: Vec<Frame>,
    free: Mutex<Vec<usize>>,
}

impl Pool {
    /// This many frames.
    pub fn new(frames: usize) -> Self {
        let frame = |_| Frame {
            words: (0..WORDS).map(|_| AtomicU64::new(POISON)).collect(),
            taken: AtomicBool::new(false),
        };
        Self {
            frames: (0..frames).map(frame).collect(),
            free: Mutex::new((0..frames).rev().collect()),
        }
    }

    /// How many frames are taken.
    pub fn taken(&self) -> usize {
        self.frames.len() - lock(&self.free).len()
    }

    /// A word of a table, as a walker that snoops reads it.
    ///
    /// # Panics
    /// When the frame is free: hardware uses a table that was given back.
    pub fn snoop(&self, table: u64, index: usize) -> u64 {
        let frame = self.live(table);
        // ORDERING: Acquire, as a walker's reads depend on each other.
        let word = frame.words[index].load(Ordering::Acquire);
        // Not freed between the look and the read either.
        self.live(table);
        word
    }

    /// Sets bits in a word as hardware does, if it is still the one that was read.
    pub fn note(&self, table: u64, index: usize, word: u64, bits: u64) {
        let cell = &self.live(table).words[index];
        // ORDERING: AcqRel, as hardware's locked update; on failure nothing is done.
        let _ = cell.compare_exchange(word, word | bits, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn frame(&self, at: u64) -> (usize, &Frame) {
        let index = at
            .checked_sub(BASE)
            .map_or(usize::MAX, |at| at as usize >> 12);
        let frame = self.frames.get(index).filter(|_| at.is_multiple_of(4096));
        let frame = frame.unwrap_or_else(|| panic!("{at:#x} is no frame of the pool"));
        (index, frame)
    }

    fn live(&self, at: u64) -> &Frame {
        let (_, frame) = self.frame(at);
        // ORDERING: Acquire pairs with the release where the frame was taken or given back.
        let taken = frame.taken.load(Ordering::Acquire);
        assert!(taken, "{at:#x} is reached while it is free");
        frame
    }
}

impl FrameSource for Pool {
    /// A frame that nobody zeroed: only for tables, all of whose words are written first.
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        assert_eq!(pages, PageCount::ONE, "tables are single frames");
        let index = lock(&self.free).pop().ok_or(OutOfFrames { pages, align })?;
        let frame = &self.frames[index];
        for word in &frame.words {
            // ORDERING: Relaxed, the frame is this thread's since it left the list.
            let found = word.load(Ordering::Relaxed);
            assert_eq!(found, POISON, "a free frame was written");
        }
        // ORDERING: AcqRel, what was done to the free frame comes before.
        let taken = frame.taken.swap(true, Ordering::AcqRel);
        assert!(!taken, "a frame was given out twice");
        let at = PhysAddr::new(BASE + ((index as u64) << 12));
        let range = PhysRange::new(at, pages).unwrap();
        // SAFETY: the frame was on the free list, which names it once, and is the pool's memory.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let range = run.into_range();
        assert_eq!(range.pages(), PageCount::ONE, "tables are single frames");
        let (index, frame) = self.frame(range.start().as_u64());
        // ORDERING: AcqRel, all that the thread did with the frame comes before.
        let taken = frame.taken.swap(false, Ordering::AcqRel);
        assert!(taken, "{} is given back twice", range.start());
        for word in &frame.words {
            // ORDERING: Relaxed, the list's lock publishes it.
            word.store(POISON, Ordering::Relaxed);
        }
        lock(&self.free).push(index);
    }
}

// SAFETY: `cells` reaches the words of the one frame that is asked for, and panics for others. The pool has
// no frames whose bytes are read or written.
unsafe impl PhysMemory for Pool {
    type Cell = AtomicU64;

    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        // Others get a chance between the read of a link and that of the table behind it.
        let looks = LOOKS.get().wrapping_add(1);
        LOOKS.set(looks);
        if looks.is_multiple_of(251) {
            for _ in 0..looks / 251 % 16 * 500 {
                std::hint::spin_loop();
            }
        }
        &self.live(frame.as_u64()).words
    }

    unsafe fn read(&self, from: PhysAddr, _out: &mut [u8]) {
        panic!("a table reads {from} as bytes");
    }

    unsafe fn write(&self, to: PhysAddr, _bytes: &[u8]) {
        panic!("a table writes {to} as bytes");
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        panic!("a table reads {from} as a status word");
    }
}

impl CacheMaintenance for Pool {
    fn write_back(&self, _from: PhysAddr, _bytes: u64) {}

    fn write_back_and_drop(&self, _from: PhysAddr, _bytes: u64) {}

    fn walker_fence(&self) {
        // ORDERING: SeqCst, the strongest that a walker on another thread can need.
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

// SAFETY: a thread keeps the lowest number that no live thread has, from its first call to its end, and
// calls run on their thread from beginning to end.
unsafe impl Cpus for Pool {
    fn current_cpu(&self) -> CpuId {
        cpus::current()
    }

    fn cpu_count(&self) -> usize {
        cpus::CPUS
    }
}
