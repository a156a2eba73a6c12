//! Memory for tables on the host: frames that notice every misuse, a copy of what reached memory, and
//! the order of the steps that walkers depend on.

#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use hv_core::platform::{CacheMaintenance, Cpus, FrameSource, OutOfFrames, PhysMemory};
use hv_core::{CpuId, EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};

/// Words of a table page.
const WORDS: usize = 512;
/// Where the arena's frames begin: high, so that lost address bits show.
const BASE: u64 = 0x0000_3fe5_5000_0000;
/// What memory holds that nobody wrote: present, and leading nowhere.
const POISON: u64 = 0x0000_2ead_dead_d003;

thread_local! {
    /// What the engine did since the last [`Arena::check_order`]. One thread runs one arena.
    static STEPS: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
    /// A word, and the bits that hardware sets in it right after the engine has read it.
    static LATE: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// A step that a walker may see, in program order.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write { at: u64, old: u64, new: u64 },
    WriteBack { from: u64, bytes: u64 },
    Fence,
}

fn record(step: Step) {
    STEPS.with_borrow_mut(|steps| steps.push(step));
}

/// One word of a frame. Knows its address, to record what is written where.
#[derive(Debug)]
pub struct TracedCell {
    at: u64,
    word: AtomicU64,
}

impl TracedCell {
    fn written(&self, old: u64, new: u64) {
        record(Step::Write {
            at: self.at,
            old,
            new,
        });
    }
}

impl EntryCell for TracedCell {
    fn load(&self, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        let word = self.word.load(order);
        if let Some((at, bits)) = LATE.get()
            && at == self.at
        {
            LATE.set(None);
            // ORDERING: AcqRel, as hardware's locked update.
            self.word.fetch_or(bits, Ordering::AcqRel);
        }
        word
    }

    fn store(&self, word: u64, _order: Ordering) {
        // ORDERING: AcqRel, stronger than what was asked for; the arena runs on one thread.
        self.written(self.word.swap(word, Ordering::AcqRel), word);
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        // ORDERING: the caller's.
        let outcome = self.word.compare_exchange(current, new, success, failure);
        if let Ok(old) = outcome {
            self.written(old, new);
        }
        outcome
    }

    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        let old = self.word.fetch_or(bits, order);
        self.written(old, old | bits);
        old
    }

    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        let old = self.word.fetch_and(bits, order);
        self.written(old, old & bits);
        old
    }

    fn swap(&self, word: u64, order: Ordering) -> u64 {
        // ORDERING: the caller's.
        let old = self.word.swap(word, order);
        self.written(old, word);
        old
    }
}

struct Frame {
    cells: Vec<TracedCell>,
    /// What a walker reads that does not snoop.
    memory: Vec<AtomicU64>,
    alive: AtomicBool,
}

impl Frame {
    fn new(at: u64) -> Self {
        let cell = |index| TracedCell {
            at: at + index * 8,
            word: AtomicU64::new(POISON),
        };
        Self {
            cells: (0..WORDS as u64).map(cell).collect(),
            memory: (0..WORDS).map(|_| AtomicU64::new(POISON)).collect(),
            alive: AtomicBool::new(false),
        }
    }
}

/// Which frames are free, and how many may be taken.
struct Stock {
    free: Vec<usize>,
    /// Frames that may still be taken.
    budget: usize,
}

/// A frame source and the memory behind it, for one thread.
pub struct Arena {
    frames: Vec<OnceLock<Frame>>,
    stock: Mutex<Stock>,
    /// The tables that walkers reached when [`Arena::check_order`] last looked.
    reached: Mutex<BTreeSet<u64>>,
    /// What a walker takes from a word: nothing when it is not present, and no bit that is ignored.
    visible: fn(u64) -> u64,
    /// Whether one word may be written over another while walkers read it.
    may_change: fn(u64, u64) -> bool,
}

impl Arena {
    /// An arena of `frames` frames, all of which may be taken, for tables of VT-d.
    pub fn new(frames: usize) -> Self {
        Self::for_words(frames, |word| match word & 3 {
            0 => 0,
            _ => word & 0x000f_ffff_ffff_f083,
        })
    }

    /// The same for tables in whose words a walker sees this much.
    pub fn for_words(frames: usize, visible: fn(u64) -> u64) -> Self {
        STEPS.take();
        Self {
            frames: (0..frames).map(|_| OnceLock::new()).collect(),
            stock: Mutex::new(Stock {
                free: (0..frames).rev().collect(),
                budget: usize::MAX,
            }),
            reached: Mutex::default(),
            visible,
            may_change: |_, _| true,
        }
    }

    /// From now on, words in tables that walkers reach change only as this allows.
    pub fn watch_changes(mut self, may_change: fn(u64, u64) -> bool) -> Self {
        self.may_change = may_change;
        self
    }

    /// How many frames are taken.
    pub fn taken(&self) -> usize {
        self.frames.len() - self.stock.lock().unwrap().free.len()
    }

    /// From now on, `frames` frames may be taken.
    pub fn set_budget(&self, frames: usize) {
        self.stock.lock().unwrap().budget = frames;
    }

    /// How many frames may still be taken.
    pub fn budget(&self) -> usize {
        self.stock.lock().unwrap().budget
    }

    /// Whether the frame at `at` is taken.
    pub fn is_taken(&self, at: u64) -> bool {
        // ORDERING: Relaxed, the arena runs on one thread.
        self.frame(at).alive.load(Ordering::Relaxed)
    }

    /// The word at index `index` of the frame at `at`, as a walker that snoops reads it.
    pub fn snoop(&self, at: u64, index: usize) -> u64 {
        // ORDERING: Acquire, as a walker's reads depend on each other.
        self.live(at).cells[index].word.load(Ordering::Acquire)
    }

    /// The same word, as a walker reads it that does not snoop.
    pub fn read_memory(&self, at: u64, index: usize) -> u64 {
        // ORDERING: Acquire, as above.
        self.live(at).memory[index].load(Ordering::Acquire)
    }

    /// Sets bits in a word as hardware does: without a step of the engine.
    pub fn note(&self, at: u64, index: usize, bits: u64) {
        // ORDERING: AcqRel, as hardware's locked update.
        self.live(at).cells[index]
            .word
            .fetch_or(bits, Ordering::AcqRel);
    }

    /// From now on, hardware waits for the engine to read this word, and sets bits in it right after that.
    pub fn note_late(&self, at: u64, index: usize, bits: u64) {
        LATE.set(Some((at + index as u64 * 8, bits)));
    }

    /// Hardware waits no longer. Whether it has set the bits.
    pub fn was_noted(&self) -> bool {
        LATE.take().is_none()
    }

    fn frame(&self, at: u64) -> &Frame {
        let index = at
            .checked_sub(BASE)
            .map_or(usize::MAX, |at| at as usize >> 12);
        let frame = self.frames.get(index);
        let frame = frame.unwrap_or_else(|| panic!("{at:#x} is no frame of the arena"));
        assert_eq!(at & 0xfff, 0, "{at:#x} is not the start of a frame");
        frame.get_or_init(|| Frame::new(at))
    }

    fn live(&self, at: u64) -> &Frame {
        let frame = self.frame(at);
        // ORDERING: Relaxed, the arena runs on one thread.
        assert!(frame.alive.load(Ordering::Relaxed), "{at:#x} is not taken");
        frame
    }

    fn is_table(&self, word: u64) -> bool {
        let at = word & 0x000f_ffff_ffff_f000;
        (self.visible)(word) != 0 && (BASE..BASE + ((self.frames.len() as u64) << 12)).contains(&at)
    }

    /// Checks the steps of the operations since the last call against what walkers rely on:
    ///
    /// * between the last write to a table and the link to it there is a fence, and for walkers that
    ///   do not snoop the table was written back before;
    /// * a word changes into another one only where walkers can follow that;
    /// * a link changes in bits that walkers ignore only when it is in memory and a fence came after;
    /// * after the last page or absence that a walker can tell from what was there before, there is a
    ///   fence; a link to an empty table means what an empty word means;
    /// * for walkers that do not snoop, memory means what the words mean, and what was written back in
    ///   tables that they reach has arrived: a flush may be asked for next. Marks that hardware ignores,
    ///   those of a reclaimer among them, need none of this.
    pub fn check_order(&self, coherent: bool) {
        let mut unfenced = BTreeSet::new();
        let mut dirty = BTreeMap::new();
        let mut on_its_way = Vec::new();
        let mut private_links = BTreeMap::new();
        let mut reached = self.reached.lock().unwrap();
        for step in STEPS.take() {
            match step {
                Step::Write { at, old, new } => {
                    assert!(
                        !reached.contains(&(at & !0xfff)) || (self.may_change)(old, new),
                        "{old:#x} becomes {new:#x} at {at:#x} without a gap"
                    );
                    if self.is_table(new) && !self.is_table(old) {
                        private_links.insert(at, new & 0x000f_ffff_ffff_f000);
                        // What is below a table that nobody reaches yet comes into reach with it.
                        let mut linked = match reached.contains(&(at & !0xfff)) {
                            true => vec![new & 0x000f_ffff_ffff_f000],
                            false => vec![],
                        };
                        while let Some(table) = linked.pop() {
                            let words = table..table + 4096;
                            assert!(
                                unfenced.range(words.clone()).next().is_none(),
                                "{new:#x} at {at:#x} links a table before a fence"
                            );
                            assert!(
                                coherent || dirty.range(words.clone()).next().is_none(),
                                "{new:#x} at {at:#x} links a table that is not in memory"
                            );
                            reached.insert(table);
                            linked.extend(private_links.range(words).map(|(_, below)| *below));
                        }
                    }
                    if self.is_table(old) && self.is_table(new) {
                        let travels = on_its_way
                            .iter()
                            .any(|words: &Range<u64>| words.contains(&at));
                        assert!(
                            !travels && !dirty.contains_key(&at),
                            "{new:#x} at {at:#x} is marked before it is in memory"
                        );
                    }
                    dirty.insert(at, new);
                    // A walker sees no bit of a word that is not present, nor the software's bits.
                    if (self.visible)(old) != (self.visible)(new) || new == 0 {
                        unfenced.insert(at);
                    }
                }
                Step::WriteBack { from, bytes } => {
                    dirty.retain(|at, _| !(from..from + bytes).contains(at));
                    on_its_way.push(from..from + bytes);
                }
                Step::Fence => {
                    unfenced.clear();
                    on_its_way.clear();
                }
            }
        }
        // An operation keeps no private tables: what is taken at its end is linked.
        let stock = self.stock.lock().unwrap();
        let free: BTreeSet<usize> = stock.free.iter().copied().collect();
        let taken = (0..self.frames.len()).filter(|index| !free.contains(index));
        let before = std::mem::take(&mut *reached);
        *reached = taken.map(|index| BASE + ((index as u64) << 12)).collect();
        drop(stock);
        let (_, unfenced): (Vec<_>, Vec<u64>) = unfenced
            .into_iter()
            .partition(|at| self.needs_no_fence(*at));
        assert!(unfenced.is_empty(), "no fence after {unfenced:#x?}");
        if coherent {
            return;
        }
        let travels = on_its_way
            .iter()
            .find(|words| before.contains(&(words.start & !0xfff)));
        assert_eq!(travels, None, "no fence after a write-back");
        for at in dirty.into_keys() {
            let (frame, index) = (self.frame(at & !0xfff), (at & 0xfff) as usize / 8);
            // ORDERING: Relaxed, the arena runs on one thread.
            let word = frame.cells[index].word.load(Ordering::Relaxed);
            // ORDERING: Relaxed, as above.
            let memory = frame.memory[index].load(Ordering::Relaxed);
            assert_eq!(
                (self.visible)(word),
                (self.visible)(memory),
                "{at:#x} is not in memory"
            );
        }
    }

    fn hand_out(&self, index: usize, pages: PageCount) -> FrameRun<Hypervisor> {
        let first = BASE + ((index as u64) << 12);
        for page in 0..pages.get() {
            let frame = self.frame(first + (page << 12));
            // ORDERING: Relaxed, the arena runs on one thread.
            frame.alive.store(true, Ordering::Relaxed);
        }
        let range = PhysRange::new(PhysAddr::new(first), pages).unwrap();
        // SAFETY: the frames were on the free list, which names each once, and are the arena's memory.
        unsafe { FrameRun::from_raw(range, ()) }
    }

    fn needs_no_fence(&self, at: u64) -> bool {
        let frame = self.frame(at & !0xfff);
        // ORDERING: Relaxed, the arena runs on one thread.
        let word = frame.cells[(at & 0xfff) as usize / 8]
            .word
            .load(Ordering::Relaxed);
        // ORDERING: Relaxed, as above.
        word == 0 || self.is_table(word) || !frame.alive.load(Ordering::Relaxed)
    }
}

impl FrameSource for Arena {
    /// Frames that nobody zeroed: only for tables, all of whose words are written first.
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        assert_eq!(pages, PageCount::ONE, "tables are single frames");
        let mut stock = self.stock.lock().unwrap();
        if stock.budget == 0 {
            return Err(OutOfFrames { pages, align });
        }
        let index = stock.free.pop().ok_or(OutOfFrames { pages, align })?;
        stock.budget -= 1;
        drop(stock);
        Ok(self.hand_out(index, pages))
    }

    /// Tables that stand side by side.
    fn alloc_table_run(&self, pages: PageCount) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        let align = PageSize::Size4K;
        if pages == PageCount::ONE {
            return self.alloc_frames(pages, align);
        }
        let count = pages.get() as usize;
        let mut stock = self.stock.lock().unwrap();
        let free: BTreeSet<usize> = stock.free.iter().copied().collect();
        let starts = (0..self.frames.len()).step_by(count);
        let run = starts
            .map(|first| first..first + count)
            .find(|run| run.clone().all(|index| free.contains(&index)));
        let run = run.filter(|_| stock.budget >= count);
        let run = run.ok_or(OutOfFrames { pages, align })?;
        stock.budget -= count;
        stock.free.retain(|index| !run.contains(index));
        drop(stock);
        Ok(self.hand_out(run.start, pages))
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        let range = run.into_range();
        assert_eq!(range.pages(), PageCount::ONE, "tables are single frames");
        let at = range.start().as_u64();
        let frame = self.live(at);
        // ORDERING: Relaxed, the arena runs on one thread.
        frame.alive.store(false, Ordering::Relaxed);
        let words = frame.cells.iter().map(|cell| &cell.word);
        for word in words.chain(&frame.memory) {
            // ORDERING: Relaxed, as above.
            word.store(POISON, Ordering::Relaxed);
        }
        let mut stock = self.stock.lock().unwrap();
        stock.free.push((at - BASE) as usize >> 12);
        stock.budget = stock.budget.saturating_add(1);
    }
}

// SAFETY: `cells` reaches the words of the one frame that is asked for, and panics for others. The
// arena has no frames whose bytes are read or written.
unsafe impl PhysMemory for Arena {
    type Cell = TracedCell;

    unsafe fn cells(&self, frame: PhysAddr) -> &[TracedCell] {
        &self.live(frame.as_u64()).cells
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
    /// Copies exactly what was asked for; real caches write whole lines back.
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        let from = from.as_u64();
        let frame = self.live(from & !0xfff);
        let first = (from & 0xfff) as usize / 8;
        let last = ((from & 0xfff) + bytes - 1) as usize / 8;
        for index in first..=last {
            // ORDERING: Relaxed, the arena runs on one thread.
            let word = frame.cells[index].word.load(Ordering::Relaxed);
            // ORDERING: Relaxed, as above.
            frame.memory[index].store(word, Ordering::Relaxed);
        }
        record(Step::WriteBack { from, bytes });
    }

    /// Walkers only: no device of this platform goes past the caches.
    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.write_back(from, bytes);
    }

    fn walker_fence(&self) {
        record(Step::Fence);
    }
}

// SAFETY: one thread runs one arena, so there is one CPU.
unsafe impl Cpus for Arena {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(0)
    }

    fn cpu_count(&self) -> usize {
        1
    }
}
