//! The memory of the models: frames of two words that notice a use after free, a double free and a
//! word that was never written; and, for walkers that do not snoop, what of them was written back.

#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, OutOfFrames, PhysMemory};
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{CpuId, EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};
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

/// One word of a table: what the CPUs see, and how much of that has reached memory.
///
/// Memory is an index into all that the word ever was. So it never goes back in time, whoever writes the word
/// back, and however late: a copy that is made in two steps could bring an older word back.
pub(crate) struct Word {
    word: AtomicU64,
    history: Mutex<Vec<u64>>,
    in_memory: AtomicU64,
}

impl Word {
    fn new() -> Self {
        Self {
            word: AtomicU64::new(POISON),
            history: Mutex::new(vec![POISON]),
            in_memory: AtomicU64::new(0),
        }
    }

    /// Notes what the word has just become. Loom switches threads before an access, never behind it.
    fn became(&self, word: u64) {
        self.history.lock().unwrap().push(word);
    }

    /// Brings the newest word to memory.
    fn write_back(&self) {
        // ORDERING: Acquire: reads the newest word, as a cache has it; what reached memory before that word
        // was written is there.
        self.word.fetch_or(0, Ordering::Acquire);
        let newest = self.history.lock().unwrap().len() as u64 - 1;
        // ORDERING: AcqRel: when this returns, a walker sees it, before all that comes later.
        self.in_memory.fetch_max(newest, Ordering::AcqRel);
    }

    /// What a walker reads that does not snoop.
    fn memory(&self) -> u64 {
        // ORDERING: Acquire: a walker reads the table behind a link after the link, by dependency.
        let index = self.in_memory.load(Ordering::Acquire);
        self.history.lock().unwrap()[index as usize]
    }
}

impl EntryCell for Word {
    fn load(&self, order: Ordering) -> u64 {
        // ORDERING: the engine's, as in all of these.
        self.word.load(order)
    }
    fn store(&self, word: u64, order: Ordering) {
        // ORDERING: the engine's.
        self.word.store(word, order);
        self.became(word);
    }
    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        // ORDERING: the engine's.
        let before = self.word.compare_exchange(current, new, success, failure)?;
        self.became(new);
        Ok(before)
    }
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the engine's.
        let before = self.word.fetch_or(bits, order);
        self.became(before | bits);
        before
    }
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the engine's.
        let before = self.word.fetch_and(bits, order);
        self.became(before & bits);
        before
    }
    fn swap(&self, word: u64, order: Ordering) -> u64 {
        // ORDERING: the engine's.
        let before = self.word.swap(word, order);
        self.became(word);
        before
    }
}

struct Frame {
    words: [Word; WORDS],
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
    /// Whether all walkers snoop, so that nobody asks what memory holds.
    coherent: bool,
}

impl Arena {
    /// `per_cpu` free frames for each CPU.
    ///
    /// They hold [`POISON`], also when they are taken. Frame sources have to give zeroed frames, but
    /// a table that did not clear its page itself would depend on how that store was published.
    pub(crate) fn new(per_cpu: [usize; CPUS], coherent: bool) -> Self {
        let mut free = per_cpu.map(|_| Vec::new());
        let mut frames = Vec::new();
        for (list, count) in free.iter_mut().zip(per_cpu) {
            for _ in 0..count {
                list.push(frames.len());
                frames.push(Frame {
                    words: std::array::from_fn(|_| Word::new()),
                    life: Use::new(),
                    alive: AtomicBool::new(false),
                });
            }
        }
        Self {
            frames,
            free: Mutex::new(free),
            moment: AtomicU64::new(0),
            coherent,
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
        self.frame(table).words[index].memory()
    }

    /// The cache writes a word back by itself, as it may at any moment.
    pub(crate) fn evict(&self, table: PhysAddr, index: usize) {
        self.frame(table).words[index].write_back();
    }

    /// A walker replaces the word that it read, unless that has changed. Whether it did.
    pub(crate) fn note(&self, table: PhysAddr, index: usize, read: u64, noted: u64) -> bool {
        let word = &self.frame(table).words[index];
        // ORDERING: AcqRel: what the device did, and will do, is on its side of the bit; Relaxed on failure,
        // the walk begins anew.
        word.compare_exchange(read, noted, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
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
            if !self.coherent {
                word.write_back();
            }
        }
        let index = (at.as_u64() - TABLES) >> 12;
        self.free.lock().unwrap()[self.current_cpu().index()].push(index as usize);
    }
}

// SAFETY: `cells` reaches the words of the one frame that is asked for. Models have no frames whose
// bytes are read or written.
unsafe impl PhysMemory for Arena {
    type Cell = Word;

    unsafe fn cells(&self, frame: PhysAddr) -> &[Word] {
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
        for word in &frame.words[first as usize..end as usize] {
            word.write_back();
        }
    }

    /// Walkers only: no device of this platform goes past the caches.
    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.write_back(from, bytes);
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
