//! What all models of a table share: one table, its memory, its epochs, and checks of the outcome.

#![expect(
    unsafe_code,
    reason = "mapping what is vacant, redeeming and draining are unsafe"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, Ordering, fence, spin_hint};
use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::{Guard, Quiescence};
use hv_iommu::table::{Drain, DrainStep, Geometry, LeafPlace, ReclaimStep, Table, TableError};
use hv_iommu::{Level, RootPointer, RootTables};
use loom::thread::JoinHandle;

use crate::arena::{Arena, Use, become_cpu};
use crate::explore::saw;
use crate::hardware::{Reads, Walker};
use crate::words::{Format, format};

/// How many frames models map.
const FRAMES: usize = 4;

/// One table of two words per level, shared by the actors of a model.
pub(crate) struct World {
    pub(crate) arena: Arc<Arena>,
    pub(crate) table: Table<Format, Arc<Arena>>,
    pub(crate) quiescence: Quiescence,
    root: RootPointer,
    /// What actors have told: bit n, that the mapping of page n is done; the rest is the model's.
    pub(crate) told: AtomicU64,
    /// The content of the frames: written by who maps one, read by devices that reach it.
    contents: [Use; FRAMES],
}

/// The frame number `number` of those that models map.
pub(crate) fn frame(number: u64) -> PhysAddr {
    PhysAddr::new(0x10_0000 + (number << 12))
}

/// The first byte of page `page`.
pub(crate) fn iova(page: u64) -> Iova {
    Iova::new(page << 12)
}

/// `count` pages from page `first`.
pub(crate) fn pages(first: u64, count: u64) -> IovaRange {
    IovaRange::new(iova(first), PageCount::new(count).unwrap()).unwrap()
}

/// That flush number 0 was asked for; the bits above are further flushes.
const ASKED: u64 = 1 << 32;
/// That flush number 0 has completed.
const FORGOTTEN: u64 = 1 << 48;

fn show_pages(at: Iova, level: Level, show: &mut impl FnMut(u64)) {
    let first = at.as_u64() >> 12;
    (first..first + (1 << (level.number() - 1))).for_each(show);
}

/// Where an attempt to reclaim stands when the actors start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has not begun.
    Linked,
    /// Links are frozen, and the grace period has begun.
    Frozen,
    /// Tombstones stand where tables were linked, and a flush is owed.
    Unlinked,
}

/// What a world is like.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// How many levels the table has.
    pub(crate) levels: u8,
    pub(crate) reads: Reads,
    /// CPU `n` has this many frames for tables; CPU 0, which makes the world, needs one for the root.
    pub(crate) frames: [usize; 3],
    /// How many CPUs walk in tables. Fewer make epochs cheaper.
    pub(crate) cpus: usize,
    /// Whether walkers write dirty bits.
    pub(crate) dirty: bool,
}

impl Setup {
    /// Two CPUs walk in a table of two levels, and walkers snoop and write nothing.
    pub(crate) fn two(frames: [usize; 3]) -> Self {
        Self {
            levels: 2,
            reads: Reads::Snooping,
            frames,
            cpus: 2,
            dirty: false,
        }
    }

    pub(crate) fn build(self) -> Arc<World> {
        let arena = Arc::new(Arena::new(self.frames, self.reads == Reads::Snooping));
        let geometry = Geometry {
            root: Level::new(self.levels).unwrap(),
            root_tables: RootTables::ONE,
            largest_leaf: Level::new(self.levels.min(3)).unwrap(),
            coherent: self.reads == Reads::Snooping,
            live_resize: true,
            dirty: self.dirty,
        };
        // SAFETY: a model has one quiescence for all guards, and one arena for all CPUs.
        let table = unsafe { Table::new(format(self.dirty), geometry, arena.clone()) }.unwrap();
        let root = table.root().unwrap();
        Arc::new(World {
            arena,
            table,
            quiescence: Quiescence::new(self.cpus).unwrap(),
            root,
            told: AtomicU64::new(0),
            contents: std::array::from_fn(|_| Use::new()),
        })
    }
}

impl World {
    /// An empty table of `levels` levels for walkers that read as `reads` says, and three CPUs that walk
    /// in it.
    pub(crate) fn new(levels: u8, reads: Reads, frames: [usize; 3]) -> Arc<Self> {
        let setup = Setup {
            levels,
            reads,
            frames,
            cpus: 3,
            dirty: false,
        };
        setup.build()
    }

    /// Runs an actor as CPU `cpu`.
    pub(crate) fn on_cpu<T: 'static>(
        self: &Arc<Self>,
        cpu: u32,
        act: impl FnOnce(&Self) -> T + 'static,
    ) -> JoinHandle<T> {
        let world = self.clone();
        loom::thread::spawn(move || {
            become_cpu(cpu);
            act(&world)
        })
    }

    pub(crate) fn pin(&self) -> Guard<'_> {
        self.quiescence.pin(&*self.arena)
    }

    /// Writes a frame and maps page `page` to it. Gives the number of tables that were linked.
    pub(crate) fn map(&self, page: u64, to: PhysAddr) -> Result<u64, TableError> {
        self.map_run(page, 1, to, PageSize::Size4K)
    }

    /// The same for `count` pages, with pages up to `largest`.
    pub(crate) fn map_run(
        &self,
        first: u64,
        count: u64,
        to: PhysAddr,
        largest: PageSize,
    ) -> Result<u64, TableError> {
        let guard = self.pin();
        // After the guard's fence, so that only the leaf's store can publish it.
        for page in 0..count {
            self.content(PhysAddr::new(to.as_u64() + (page << 12)))
                .have_alone();
        }
        let range = pages(first, count);
        let (perms, spares) = (Perms::ReadWrite, Some(&mut self.table.spares()));
        // SAFETY: actors map pages that nobody else has and that were redeemed, as owners of ranges do.
        let outcome = unsafe {
            self.table
                .map_vacant(&guard, range, to, perms, largest, spares)
        };
        outcome.map(|outcome| outcome.tables)
    }

    /// Writes a frame and maps page `page` to it. Gives where its leaf stands.
    pub(crate) fn map_page(&self, page: u64, to: PhysAddr) -> LeafPlace {
        let guard = self.pin();
        self.content(to).have_alone();
        // SAFETY: as in `map_run`.
        let place = unsafe {
            self.table
                .map_page(&guard, pages(page, 1), to, Perms::ReadWrite)
        };
        place.unwrap().expect("walkers note nothing")
    }

    /// Unmaps what is mapped at a place, without a guard.
    pub(crate) fn unmap_page(&self, place: LeafPlace) {
        // SAFETY: actors know places of pages that they mapped, and end the table when all are done.
        unsafe { self.table.unmap_page(place) };
    }

    /// Empties what was unmapped there, without a guard.
    pub(crate) fn redeem_page(&self, place: LeafPlace, to: PhysAddr) {
        // SAFETY: as in `unmap_page`; models say themselves when a device has forgotten.
        let redeemed = unsafe { self.table.redeem_page(place, to) };
        assert!(redeemed, "pending is content");
    }

    /// The content of a frame.
    pub(crate) fn content(&self, at: PhysAddr) -> &Use {
        let number = (at.as_u64() - frame(0).as_u64()) >> 12;
        &self.contents[number as usize]
    }

    /// Tells the other actors `bits`.
    pub(crate) fn tell(&self, bits: u64) {
        // ORDERING: Release: who sees the bits sees what was done before.
        self.told.fetch_or(bits, Ordering::Release);
    }

    /// Whether `bits` were told.
    pub(crate) fn is_told(&self, bits: u64) -> bool {
        // ORDERING: Acquire pairs with `tell`.
        self.told.load(Ordering::Acquire) & bits == bits
    }

    pub(crate) fn walker(&self, reads: Reads) -> Walker<'_> {
        Walker::new(&self.arena, self.root, reads)
    }

    /// A device accesses `page`, which only one of `may` is ever mapped at: it never gets anywhere
    /// else, and does not fault once the mapping was told before the access began.
    pub(crate) fn access(&self, walker: &mut Walker<'_>, page: u64, may: &[PhysAddr]) {
        let mapped = self.is_told(1 << page);
        match walker.walk(page) {
            Some(to) => {
                assert!(may.contains(&to), "page {page} leads to {to}");
                self.content(to).reach();
            }
            None => assert!(!mapped, "page {page} is mapped and faults"),
        }
    }

    /// Where the engine says that `page` leads.
    pub(crate) fn translate(&self, page: u64) -> Option<PhysAddr> {
        let found = self.table.translate(&self.pin(), iova(page));
        found.map(|found| found.to)
    }

    /// Empties what was unmapped of a range that was mapped to the run at `to`.
    pub(crate) fn redeem(&self, range: IovaRange, to: PhysAddr) -> Result<u64, TableError> {
        self.redeem_and_harvest(range, to, |_| ())
    }

    /// The same, and shows the pages that a device has written.
    pub(crate) fn redeem_and_harvest(
        &self,
        range: IovaRange,
        to: PhysAddr,
        mut show: impl FnMut(u64),
    ) -> Result<u64, TableError> {
        let dirty = |at: Iova, level: Level| show_pages(at, level, &mut show);
        // SAFETY: models say themselves when a device has forgotten; some leave that out on purpose.
        let redeemed = unsafe { self.table.redeem(&self.pin(), range, to, dirty) };
        redeemed.map(|redeemed| redeemed.tables)
    }

    /// Has leaves get the bits of tables that merges replaced.
    pub(crate) fn take_merged_bits(&self, range: IovaRange, merges: u64) {
        // SAFETY: as in `redeem`.
        let looked = unsafe { self.table.take_merged_bits(&self.pin(), merges, range) };
        assert!(looked, "nobody else is at it");
    }

    /// Pages of a range that a device has written; with `clear`, forgets that it did.
    pub(crate) fn dirty(&self, range: IovaRange, clear: bool) -> BTreeSet<u64> {
        let mut dirty = BTreeSet::new();
        let mut show = |page| {
            dirty.insert(page);
        };
        let each = |at: Iova, level: Level| show_pages(at, level, &mut show);
        match clear {
            true => self.table.dirty_and_clear(&self.pin(), range, each),
            false => self.table.dirty(&self.pin(), range, each),
        }
        dirty
    }

    /// Leaves an empty table below the word for `page`, and nothing else.
    pub(crate) fn leave_empty_table(&self, page: u64) {
        self.map(page, frame(0)).unwrap();
        let range = pages(page, 1);
        let _ = self.table.unmap(&self.pin(), range);
        assert_eq!(self.redeem(range, frame(0)), Ok(0));
    }

    /// Brings an attempt to this stage, while nobody else runs. Gives its number where it has one.
    pub(crate) fn bring_to(&self, stage: Stage) -> Option<u64> {
        match stage {
            Stage::Linked => None,
            Stage::Frozen => {
                assert_eq!(self.reclaim(), ReclaimStep::Again);
                None
            }
            Stage::Unlinked => Some(self.reclaim_to_flush(5).expect("nothing to unlink")),
        }
    }

    /// One step of reclaim.
    pub(crate) fn reclaim(&self) -> ReclaimStep {
        self.table.reclaim(&self.quiescence, &*self.arena)
    }

    /// Steps of reclaim, at most `steps`, until one asks for a flush: the number of the attempt.
    pub(crate) fn reclaim_to_flush(&self, steps: usize) -> Option<u64> {
        (0..steps).find_map(|_| match self.reclaim() {
            ReclaimStep::Flush { attempt, .. } => Some(attempt),
            _ => None,
        })
    }

    /// The flush for an attempt has completed.
    pub(crate) fn reclaim_flushed(&self, attempt: u64) -> ReclaimStep {
        // SAFETY: as in `redeem`.
        unsafe {
            self.table
                .reclaim_flushed(&self.quiescence, &*self.arena, attempt)
        }
    }

    /// Steps of reclaim where no device is, so that each flush has completed at once. How many pages came
    /// back.
    pub(crate) fn reclaim_alone(&self, steps: usize) -> u64 {
        self.reclaim_rounds(steps, false)
    }

    /// The same; with `again`, looks at everything once more when there is nothing left.
    pub(crate) fn reclaim_rounds(&self, steps: usize, again: bool) -> u64 {
        let mut freed = 0;
        for _ in 0..steps {
            let before = self.arena.free_frames();
            match self.reclaim() {
                ReclaimStep::Flush { attempt, .. } => {
                    saw("a table is unlinked");
                    self.reclaim_flushed(attempt);
                }
                ReclaimStep::Done if again => self.table.reclaim_rewind(),
                ReclaimStep::Done => break,
                ReclaimStep::Again | ReclaimStep::Swept | ReclaimStep::Busy => {}
            }
            freed += self.arena.free_frames().saturating_sub(before) as u64;
        }
        if freed != 0 {
            saw("a table is freed");
        }
        freed
    }

    /// Asks the device for flush `number` after all that was done before.
    pub(crate) fn ask(&self, number: u32) {
        // ORDERING: SeqCst, as a flush begins.
        fence(Ordering::SeqCst);
        self.tell(ASKED << number);
    }

    /// Whether flush `number` has completed, looked at `looks` times.
    pub(crate) fn has_receipt(&self, number: u32, looks: usize) -> bool {
        (0..looks).any(|_| self.is_told(FORGOTTEN << number))
    }

    /// Serves flush `number` if the device was asked for it.
    pub(crate) fn serve(&self, number: u32, walker: &mut Walker<'_>) -> bool {
        self.serve_by(number, walker, |walker| walker.invalidate())
    }

    /// The same, by an invalidation of this kind.
    pub(crate) fn serve_by(
        &self,
        number: u32,
        walker: &mut Walker<'_>,
        forget: fn(&mut Walker<'_>),
    ) -> bool {
        let asked = self.is_told(ASKED << number);
        if asked {
            forget(walker);
            self.tell(FORGOTTEN << number);
        }
        asked
    }

    /// Drains the closed table. Gives what it named and how often.
    pub(crate) fn drain(&self, root: RootPointer) -> BTreeMap<u64, u64> {
        // SAFETY: callers closed the table and waited until all guards of before had ended, or try
        // whether loom notices that they did not; no walker of theirs reaches it.
        let mut drain = unsafe { Drain::new(root) };
        let mut named = BTreeMap::new();
        loop {
            match drain.step(&self.table, usize::MAX) {
                DrainStep::Frames(run) => {
                    for index in 0..run.pages().get() {
                        *named.entry(run.page(index).unwrap().as_u64()).or_insert(0) += 1;
                    }
                }
                // Or another CPU holds the lock.
                DrainStep::More => spin_hint(),
                DrainStep::Done => return named,
            }
        }
    }

    /// What was drained is exactly `mapped`, and every frame came back.
    pub(crate) fn check_drained(&self, named: &BTreeMap<u64, u64>, mapped: &[PhysAddr]) {
        let expected: BTreeMap<u64, u64> = mapped.iter().map(|to| (to.as_u64(), 1)).collect();
        assert_eq!(*named, expected, "frames handed out at the end");
        // These faults leak by their nature. What they do besides is what models are to notice.
        let leaking = [Fault::SkipTombstone, Fault::SkipRelink, Fault::SplitByStore];
        if leaking.into_iter().any(Fault::is_on) {
            return;
        }
        assert_eq!(
            self.arena.free_frames(),
            self.arena.frames(),
            "tables leaked"
        );
    }

    /// Ends the table when all actors are gone: it names exactly `mapped`, and every frame comes
    /// back.
    pub(crate) fn end(&self, mapped: &[PhysAddr]) {
        let root = self.table.close().expect("ended twice");
        let named = self.drain(root);
        self.check_drained(&named, mapped);
    }
}
