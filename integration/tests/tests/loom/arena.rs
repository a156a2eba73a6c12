//! The memory of the models: frames of two words that notice a use after free, a double free and a
//! word that was never written; and, for walkers that do not snoop, a second copy behind the caches.

#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, OutOfFrames, PhysMemory};
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};
use loom::cell::UnsafeCell;

/// Words per table: one index bit per level.
pub(crate) const WORDS: usize = 2;
/// What memory holds that nobody wrote: present for hardware and software, and leading nowhere.
const POISON: u64 = 0x000d_ead0_0000_0003;
/// Where the frames of tables begin.
const TABLES: u64 = 0x1000;
/// How many CPUs there are, each with its own list of free frames.
const CPUS: usize = 3;

loom::thread_local! {
    static CPU: Cell<u32> = Cell::new(0);
}

/// Makes the running thread this CPU.
pub(crate) fn become_cpu(number: u32) {
    CPU.with(|cpu| cpu.set(number));
}

/// Something that many reach and that one has alone at times, before or after. Loom refuses the run
/// unless every reaching is ordered with every such time.
pub(crate) struct Use(UnsafeCell<()>);

// SAFETY: the cell holds nothing; loom tracks its accesses, whichever thread they come from.
unsafe impl Sync for Use {}

impl Use {
    pub(crate) fn new() -> Self {
        Self(UnsafeCell::new(()))
    }

    pub(crate) fn reach(&self) {
        self.0.with(|_| ());
    }

    pub(crate) fn have_alone(&self) {
        self.0.with_mut(|_| ());
    }
}

struct Frame {
    /// What the CPUs see.
    words: [AtomicU64; WORDS],
    /// What a walker sees that does not snoop.
    memory: [AtomicU64; WORDS],
    life: Use,
    alive: AtomicBool,
}

/// The frames, and which of them are free.
pub(crate) struct Arena {
    frames: Vec<Frame>,
    /// Plain, so that taking a frame orders nothing between CPUs.
    free: Mutex<[Vec<usize>; CPUS]>,
    /// A word that nobody changes. Loading it lets the other actors run.
    moment: AtomicU64,
}

impl Arena {
    /// `per_cpu` free frames for each CPU.
    ///
    /// They hold [`POISON`], also when they are taken. Frame sources have to give zeroed frames, but
    /// a table that did not clear its page itself would depend on how that store was published.
    pub(crate) fn new(per_cpu: [usize; CPUS]) -> Self {
        let mut free = per_cpu.map(|_| Vec::new());
        let mut frames = Vec::new();
        for (list, count) in free.iter_mut().zip(per_cpu) {
            for _ in 0..count {
                list.push(frames.len());
                frames.push(Frame {
                    words: std::array::from_fn(|_| AtomicU64::new(POISON)),
                    memory: std::array::from_fn(|_| AtomicU64::new(POISON)),
                    life: Use::new(),
                    alive: AtomicBool::new(false),
                });
            }
        }
        Self {
            frames,
            free: Mutex::new(free),
            moment: AtomicU64::new(0),
        }
    }

    /// How many frames are free.
    pub(crate) fn free_frames(&self) -> usize {
        self.free.lock().unwrap().iter().map(Vec::len).sum()
    }

    /// How many frames there are.
    pub(crate) fn frames(&self) -> usize {
        self.frames.len()
    }

    /// The live frame at `at`.
    fn frame(&self, at: PhysAddr) -> &Frame {
        let index = at.as_u64().checked_sub(TABLES).map(|bytes| bytes >> 12);
        let frame = index.and_then(|index| self.frames.get(index as usize));
        let frame = frame.unwrap_or_else(|| panic!("{at} is not the frame of a table"));
        frame.life.reach();
        // ORDERING: Relaxed, loom runs one thread at a time; `life` checks the order.
        assert!(frame.alive.load(Ordering::Relaxed), "{at} was freed");
        frame
    }

    /// Lets the other actors run.
    pub(crate) fn pause(&self) {
        // ORDERING: Relaxed, nobody ever writes it.
        self.moment.load(Ordering::Relaxed);
    }

    /// What a walker that snoops reads.
    pub(crate) fn snoop(&self, table: PhysAddr, index: usize) -> u64 {
        // ORDERING: Acquire: a walker reads the table behind a link after the link, by dependency.
        self.frame(table).words[index].load(Ordering::Acquire)
    }

    /// What a walker reads that does not snoop.
    pub(crate) fn read_memory(&self, table: PhysAddr, index: usize) -> u64 {
        // ORDERING: Acquire, as in `snoop`.
        self.frame(table).memory[index].load(Ordering::Acquire)
    }

    /// The cache writes a link back by itself, as it may at any moment.
    pub(crate) fn evict(&self, table: PhysAddr, index: usize) {
        // ORDERING: Acquire: what memory held before the link was made, it still holds.
        let word = self.frame(table).words[index].load(Ordering::Acquire);
        // Links never go away, so that writing an older one back again changes nothing.
        if word & 3 != 0 {
            // ORDERING: Release, as above: memory never goes back in time.
            self.frame(table).memory[index].store(word, Ordering::Release);
        }
    }
}

impl FrameSource for Arena {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        assert_eq!(pages, PageCount::ONE, "tables are single frames");
        let cpu = self.current_cpu().index();
        let index = self.free.lock().unwrap()[cpu].pop();
        let index = index.ok_or(OutOfFrames { pages, align })?;
        // ORDERING: Relaxed, as in `frame`.
        self.frames[index].alive.store(true, Ordering::Relaxed);
        let at = PhysAddr::new(TABLES + ((index as u64) << 12));
        let range = PhysRange::new(at, pages).unwrap();
        // SAFETY: the frame was on a free list, which named it once, and is RAM of the model.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let at = run.into_range().start();
        let frame = self.frame(at);
        // ORDERING: Relaxed, as in `frame`.
        frame.alive.store(false, Ordering::Relaxed);
        frame.life.have_alone();
        for word in &frame.words {
            // ORDERING: Relaxed, nobody may read it.
            word.store(POISON, Ordering::Relaxed);
        }
        for word in &frame.memory {
            // ORDERING: Relaxed, as above.
            word.store(POISON, Ordering::Relaxed);
        }
        let index = (at.as_u64() - TABLES) >> 12;
        self.free.lock().unwrap()[self.current_cpu().index()].push(index as usize);
    }
}

// SAFETY: `cells` reaches the words of the one frame that is asked for. Models have no frames whose
// bytes are read or written.
unsafe impl PhysMemory for Arena {
    type Cell = AtomicU64;

    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        &self.frame(frame).words
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

impl CacheMaintenance for Arena {
    /// Copies what was asked for and not one word more.
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        let table = from.align_down(PageSize::Size4K);
        let first = (from.as_u64() - table.as_u64()) / 8;
        let end = (first + bytes.div_ceil(8)).min(WORDS as u64);
        let frame = self.frame(table);
        for index in first as usize..end as usize {
            // ORDERING: Relaxed: at least what this CPU wrote, or read, which is what it asks for.
            let word = frame.words[index].load(Ordering::Relaxed);
            // ORDERING: Release: when this returns, a walker sees it, before all that comes later.
            frame.memory[index].store(word, Ordering::Release);
        }
    }

    /// Nothing: CPUs must not depend on a fence that is made for walkers.
    fn walker_fence(&self) {}
}

// SAFETY: each thread of a model makes itself another CPU.
unsafe impl Cpus for Arena {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(CPU.with(Cell::get))
    }

    fn cpu_count(&self) -> usize {
        CPUS
    }
}
