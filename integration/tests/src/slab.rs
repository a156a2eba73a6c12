//! Memory for tables of more than one frame: one piece, whose frames can be reached together.

#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, OutOfFrames, PhysMemory};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};

/// Words of a frame.
const WORDS: usize = 512;
/// Where the frames begin: at no multiple of anything larger than a frame.
const BASE: u64 = 0x0000_1fe5_5000_3000;
/// The same of memory that takes addresses of more than 48 bits.
const HIGH: u64 = 0x000b_1fe5_5000_3000;
/// What a frame holds that nobody wrote: valid, and leading nowhere.
const POISON: u64 = 0x0000_2ead_dead_d003;

/// Frames one behind the other, for one thread. It finds no aligned runs: that is left to the trait.
pub struct Slab {
    cells: Vec<AtomicU64>,
    /// What a walker reads that does not snoop.
    memory: Vec<AtomicU64>,
    free: Mutex<BTreeSet<usize>>,
    alive: Vec<AtomicBool>,
    joined: bool,
    base: u64,
}

impl Slab {
    /// So many frames, all of them free.
    pub fn new(frames: usize) -> Self {
        let words = || {
            (0..frames * WORDS)
                .map(|_| AtomicU64::new(POISON))
                .collect()
        };
        Self {
            cells: words(),
            memory: words(),
            free: Mutex::new((0..frames).collect()),
            alive: (0..frames).map(|_| AtomicBool::new(false)).collect(),
            joined: true,
            base: BASE,
        }
    }

    /// The same at addresses of more than 48 bits.
    pub fn high(frames: usize) -> Self {
        Self {
            base: HIGH,
            ..Self::new(frames)
        }
    }

    /// The same where frames are reached one by one.
    pub fn apart(frames: usize) -> Self {
        Self {
            joined: false,
            ..Self::new(frames)
        }
    }

    /// How many frames are taken.
    pub fn taken(&self) -> usize {
        self.cells.len() / WORDS - self.free.lock().unwrap().len()
    }

    /// The word with this index of the frame at `at`, as a walker reads it.
    pub fn read(&self, at: u64, index: usize, snoops: bool) -> u64 {
        let first = self.first(at, 1) + index;
        let words = if snoops { &self.cells } else { &self.memory };
        // ORDERING: Acquire, as a walker's reads depend on each other.
        words[first].load(Ordering::Acquire)
    }

    fn mark(&self, first: usize, count: usize, alive: bool) {
        for frame in &self.alive[first..first + count] {
            // ORDERING: Relaxed, one thread runs the slab.
            frame.store(alive, Ordering::Relaxed);
        }
    }

    /// The number of the first word of frames that are taken.
    fn first(&self, at: u64, frames: usize) -> usize {
        assert_eq!(at & 0xfff, 0, "{at:#x} is not the start of a frame");
        let frame = (at.checked_sub(self.base).expect("a frame of the slab") >> 12) as usize;
        // ORDERING: Relaxed, one thread runs the slab.
        let taken = |frame: &AtomicBool| frame.load(Ordering::Relaxed);
        let taken = self.alive[frame..frame + frames].iter().all(taken);
        assert!(taken, "{at:#x} is not taken");
        frame * WORDS
    }
}

impl FrameSource for Slab {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        assert_eq!(align, PageSize::Size4K, "no more is known to be kept");
        let count = pages.get() as usize;
        let mut free = self.free.lock().unwrap();
        let fits = |first: &usize| free.range(*first..first + count).count() == count;
        let first = free.iter().copied().find(fits);
        let first = first.ok_or(OutOfFrames { pages, align })?;
        free.retain(|frame| !(first..first + count).contains(frame));
        self.mark(first, count, true);
        let at = PhysAddr::new(self.base + ((first as u64) << 12));
        let range = PhysRange::new(at, pages).unwrap();
        // SAFETY: the frames were free, each once, and are the slab's memory.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let range = run.into_range();
        let count = range.pages().get() as usize;
        let first = self.first(range.start().as_u64(), count);
        for index in first..first + count * WORDS {
            for words in [&self.cells, &self.memory] {
                // ORDERING: Relaxed, one thread runs the slab.
                words[index].store(POISON, Ordering::Relaxed);
            }
        }
        self.mark(first / WORDS, count, false);
        let frames = first / WORDS..first / WORDS + count;
        self.free.lock().unwrap().extend(frames);
    }
}

// SAFETY: `cells` and `cells_of` reach the words of the frames that are asked for, and panic for others. The slab has
// no frames whose bytes are read or written.
unsafe impl PhysMemory for Slab {
    type Cell = AtomicU64;

    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        let first = self.first(frame.as_u64(), 1);
        &self.cells[first..first + WORDS]
    }

    unsafe fn cells_of(&self, first: PhysAddr, frames: PageCount) -> Option<&[AtomicU64]> {
        let frames = frames.get() as usize;
        assert_eq!(
            first.as_u64() & ((frames as u64) << 12).wrapping_sub(1),
            0,
            "a table at {first} is not aligned to its size"
        );
        let first = self.first(first.as_u64(), frames);
        self.joined
            .then(|| &self.cells[first..first + frames * WORDS])
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

impl CacheMaintenance for Slab {
    /// Copies exactly what was asked for; real caches write whole lines back.
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        let at = from.as_u64();
        let frames = ((at & 0xfff) + bytes).div_ceil(4096) as usize;
        let first = self.first(at & !0xfff, frames) + (at & 0xfff) as usize / 8;
        for index in first..first + bytes as usize / 8 {
            // ORDERING: Relaxed, one thread runs the slab.
            let word = self.cells[index].load(Ordering::Relaxed);
            // ORDERING: Relaxed, as above.
            self.memory[index].store(word, Ordering::Relaxed);
        }
    }

    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.write_back(from, bytes);
    }

    fn walker_fence(&self) {}
}

// SAFETY: one thread runs the slab, so there is one CPU.
unsafe impl Cpus for Slab {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(0)
    }

    fn cpu_count(&self) -> usize {
        1
    }
}
