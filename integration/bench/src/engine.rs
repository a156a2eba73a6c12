//! The one place that calls the engine: a table with the order of its pages, and the loops that are timed.
//!
//! Every loop is a function of its own, so that what is measured can be found in a disassembly, and counts failures
//! instead of stopping, as a caller's check of the result.

#![expect(
    unsafe_code,
    reason = "reads the table as a device would, and ends it when nobody walks it"
)]

use std::hint::black_box;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::{Guard, Quiescence, Stay};
use hv_iommu::table::{Geometry, ReclaimStep, Table};
use hv_iommu::{Level, RootTables};

use crate::clock;
use crate::format::{self, Tables, WORDS};
use crate::lane::{self, Mapped, Subject};
use crate::order::Order;
use crate::platform::{Memory, SNOOPED, UNSNOOPED};
use crate::stats::Histogram;
use crate::window::{LEVELS, PAGES_2M, iova, leaves, phys};

/// A table of the engine in the memory of a platform.
type EngineTable<const SNOOPS: bool> = Table<Tables, &'static Memory<SNOOPS>>;

/// Pages of each range, and the ranges.
type Cuts = (u64, Arc<[IovaRange]>);

/// A platform of the benchmark.
pub trait Walkers: Sized {
    /// Its one value.
    fn platform() -> &'static Self;
}

impl Walkers for Memory<true> {
    fn platform() -> &'static Self {
        &SNOOPED
    }
}

impl Walkers for Memory<false> {
    fn platform() -> &'static Self {
        &UNSNOOPED
    }
}

/// Leaves of the ranges that rows are made ready in.
const PART: u64 = 256;

/// What the words of the window hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Vacant,
    Filled,
    Pending,
}

/// The state that the whole window has between rounds.
struct Known(AtomicU8);

impl Known {
    const fn new(state: State) -> Self {
        Self(AtomicU8::new(state as u8))
    }

    fn set(&self, state: State) {
        // ORDERING: Relaxed: rounds begin and end on one thread, which joins the others.
        self.0.store(state as u8, Ordering::Relaxed);
    }

    fn get(&self) -> State {
        // ORDERING: Relaxed, as above.
        match self.0.load(Ordering::Relaxed) {
            0 => State::Vacant,
            1 => State::Filled,
            _ => State::Pending,
        }
    }
}

/// A table of the engine, whose window is vacant, filled or pending as a whole between rounds.
pub struct Engine<const SNOOPS: bool> {
    table: ManuallyDrop<EngineTable<SNOOPS>>,
    quiescence: Quiescence,
    memory: &'static Memory<SNOOPS>,
    pages: u64,
    size: PageSize,
    state: Known,
    /// Pages of the ranges that the window was unmapped in last: it is redeemed in the same.
    unmapped_by: AtomicU64,
    /// The window cut into ranges of so many pages.
    cuts: Mutex<Vec<Cuts>>,
}

fn new_table<const SNOOPS: bool>(
    memory: &'static Memory<SNOOPS>,
    dirty: bool,
) -> EngineTable<SNOOPS> {
    let geometry = Geometry {
        root: Level::new(LEVELS as u8).expect("the engine has that many levels"),
        root_tables: RootTables::ONE,
        largest_leaf: Level::of(PageSize::Size1G),
        coherent: SNOOPS,
        live_resize: true,
        dirty,
    };
    // SAFETY: an engine has one quiescence for all its guards and reclaim, and one platform for all CPUs.
    let table = unsafe { Table::new(format::tables(SNOOPS, dirty), geometry, memory) };
    table.expect("the arena has frames for a root")
}

/// The range of `pages` pages from `page` of the window on.
pub fn range(page: u64, pages: u64) -> IovaRange {
    let pages = PageCount::new(pages).unwrap_or(PageCount::ONE);
    IovaRange::new(Iova::new(iova(page)), pages).expect("the window is a range")
}

/// Where a range of the window leads.
#[inline(always)]
fn target(range: IovaRange) -> PhysAddr {
    PhysAddr::new(
        range
            .start()
            .as_u64()
            .wrapping_sub(iova(0))
            .wrapping_add(phys(0)),
    )
}

/// The range of one page, as a caller makes it for a call.
#[inline(always)]
fn one(page: u64) -> Option<IovaRange> {
    IovaRange::new(Iova::new(iova(page)), PageCount::ONE).ok()
}

impl<const SNOOPS: bool> Engine<SNOOPS>
where
    Memory<SNOOPS>: Walkers,
{
    /// An empty table whose window has `pages` pages of 4 KiB, which are filled by leaves up to `size`.
    pub fn new(pages: u64, size: PageSize) -> Self {
        Self::with_dirty(pages, size, false)
    }

    /// The same where walkers may note what was written through.
    pub fn with_dirty(pages: u64, size: PageSize, dirty: bool) -> Self {
        let memory = Memory::<SNOOPS>::platform();
        Self {
            table: ManuallyDrop::new(new_table(memory, dirty)),
            quiescence: Quiescence::new(crate::arena::THREADS).expect("the host has memory"),
            memory,
            pages,
            size,
            state: Known::new(State::Vacant),
            unmapped_by: AtomicU64::new(1),
            cuts: Mutex::new(Vec::new()),
        }
    }

    /// Ends the table and begins an empty one.
    pub fn renew(&mut self) {
        let dirty = self.table.geometry().dirty;
        let new = ManuallyDrop::new(new_table(self.memory, dirty));
        let old = std::mem::replace(&mut self.table, new);
        ManuallyDrop::into_inner(old).discard();
        self.state.set(State::Vacant);
    }

    fn pin(&self) -> Guard<'_> {
        self.quiescence.pin(self.memory)
    }

    /// Begins a stay of this CPU: until it ends, guards cost next to nothing.
    pub fn enter(&self) -> Stay<'_> {
        self.quiescence.enter(self.memory)
    }

    /// Does `act` for every item under one guard, or under a guard for each.
    #[inline(always)]
    fn each<T, const PIN: bool>(
        &self,
        items: impl Iterator<Item = T>,
        mut act: impl FnMut(&Guard<'_>, T) -> bool,
    ) {
        let mut failed = 0_u64;
        if PIN {
            for item in items {
                failed |= u64::from(!act(&self.pin(), item));
            }
        } else {
            let guard = self.pin();
            for item in items {
                failed |= u64::from(!act(&guard, item));
            }
        }
        lane::check(failed, "the engine");
    }

    /// Maps each page in shared words.
    #[inline(never)]
    pub fn map_shared<O: Order, const PIN: bool>(&self, order: &O) {
        self.each::<_, PIN>(order.pages(), |guard, page| {
            let (at, to) = (Iova::new(iova(page)), PhysAddr::new(phys(page)));
            self.table
                .map_shared(guard, at, to, Perms::ReadWrite, PageSize::Size4K)
                .is_ok()
        });
        self.state.set(State::Filled);
    }

    /// Unmaps each page in shared words.
    #[inline(never)]
    pub fn unmap_shared<O: Order, const PIN: bool>(&self, order: &O) {
        self.each::<_, PIN>(order.pages(), |guard, page| {
            self.table
                .unmap_shared(guard, Iova::new(iova(page)), PageSize::Size4K)
                .is_ok()
        });
        self.pending_by(1);
    }

    /// Maps and unmaps each page in shared words.
    #[inline(never)]
    pub fn pair_shared<O: Order, const PIN: bool>(&self, order: &O) {
        self.each::<_, PIN>(order.pages(), |guard, page| {
            let (at, to) = (Iova::new(iova(page)), PhysAddr::new(phys(page)));
            let mapped = self
                .table
                .map_shared(guard, at, to, Perms::ReadWrite, PageSize::Size4K);
            let unmapped = self.table.unmap_shared(guard, at, PageSize::Size4K);
            mapped.is_ok() && unmapped.is_ok()
        });
        self.pending_by(1);
    }

    /// Maps a range as the owner of a free range does, who knows that it is vacant.
    #[inline(always)]
    fn map_vacant(&self, guard: &Guard<'_>, range: IovaRange, largest: PageSize) -> bool {
        // SAFETY: rows map what the round before left vacant (`vacate`), each page by one thread.
        let mapped = unsafe {
            self.table
                .map_vacant(guard, range, target(range), Perms::ReadWrite, largest, None)
        };
        mapped.is_ok()
    }

    /// Maps each page in words that the caller owns.
    #[inline(never)]
    pub fn map_owned<O: Order, const PIN: bool>(&self, order: &O) {
        self.each::<_, PIN>(order.pages(), |guard, page| {
            let Some(range) = one(page) else { return false };
            self.map_vacant(guard, range, PageSize::Size4K)
        });
        self.state.set(State::Filled);
    }

    /// Maps each page in words that the caller owns, each of which is seen to be empty.
    #[inline(never)]
    pub fn map_checked<O: Order>(&self, order: &O) {
        self.each::<_, false>(order.pages(), |guard, page| {
            let Some(range) = one(page) else { return false };
            self.table
                .map(guard, range, target(range), Perms::ReadWrite, self.size)
                .is_ok()
        });
        self.state.set(State::Filled);
    }

    /// Unmaps each page in words that the caller owns.
    #[inline(never)]
    pub fn unmap_owned<O: Order, const PIN: bool>(&self, order: &O) {
        self.each::<_, PIN>(order.pages(), |guard, page| {
            let Some(range) = one(page) else { return false };
            !self.table.unmap(guard, range).tables
        });
        self.pending_by(1);
    }

    /// Empties each page's pending word, as after a receipt.
    #[inline(never)]
    pub fn redeem_owned<O: Order, const PIN: bool>(&self, order: &O) {
        let mut written = 0;
        self.each::<_, PIN>(order.pages(), |guard, page| {
            let Some(range) = one(page) else { return false };
            self.redeem(guard, range, &mut written)
        });
        black_box(written);
        self.state.set(State::Vacant);
    }

    /// Opens what an unmap of `range` has left.
    #[inline(always)]
    fn redeem(&self, guard: &Guard<'_>, range: IovaRange, written: &mut u64) -> bool {
        // SAFETY: no device walks the benchmark's tables, and the guard of the unmap ended when its round did.
        let redeemed = unsafe {
            self.table
                .redeem(guard, range, target(range), |_, _| *written += 1)
        };
        redeemed.is_ok()
    }

    /// Maps and unmaps each page in words that the caller owns.
    #[inline(never)]
    pub fn pair_owned<O: Order, const PIN: bool>(&self, order: &O) {
        self.each::<_, PIN>(order.pages(), |guard, page| {
            let Some(range) = one(page) else { return false };
            let mapped = self.map_vacant(guard, range, PageSize::Size4K);
            let unmapped = self.table.unmap(guard, range);
            mapped && !unmapped.tables
        });
        self.pending_by(1);
    }

    /// Looks each page up.
    #[inline(never)]
    pub fn translate<O: Order, const PIN: bool>(&self, order: &O) -> u64 {
        let mut sum = 0_u64;
        self.each::<_, PIN>(order.pages(), |guard, page| {
            match self.table.translate(guard, Iova::new(iova(page))) {
                Some(found) => {
                    sum = sum.wrapping_add(found.to.as_u64());
                    true
                }
                None => false,
            }
        });
        sum
    }

    /// Maps the window in ranges of `pages` pages.
    #[inline(never)]
    pub fn map_ranges<const PIN: bool>(&self, pages: u64) {
        self.each::<_, PIN>(self.cuts(pages).iter(), |guard, range| {
            self.map_vacant(guard, *range, self.size)
        });
        self.state.set(State::Filled);
    }

    /// Unmaps the window in ranges of `pages` pages.
    #[inline(never)]
    pub fn unmap_ranges<const PIN: bool>(&self, pages: u64) {
        let mut tables = false;
        self.each::<_, PIN>(self.cuts(pages).iter(), |guard, range| {
            tables |= self.table.unmap(guard, *range).tables;
            true
        });
        black_box(tables);
        self.pending_by(pages);
    }

    /// Empties the window's pending words in ranges of `pages` pages.
    #[inline(never)]
    pub fn redeem_ranges<const PIN: bool>(&self, pages: u64) {
        let mut written = 0;
        self.each::<_, PIN>(self.cuts(pages).iter(), |guard, range| {
            self.redeem(guard, *range, &mut written)
        });
        black_box(written);
        self.state.set(State::Vacant);
    }

    /// Maps and unmaps each of `ranges`.
    #[inline(never)]
    pub fn pair_ranges<const PIN: bool>(&self, ranges: &[IovaRange]) {
        let mut tables = false;
        self.each::<_, PIN>(ranges.iter(), |guard, range| {
            let mapped = self.map_vacant(guard, *range, self.size);
            tables |= self.table.unmap(guard, *range).tables;
            mapped
        });
        black_box(tables);
    }

    /// Maps the `pages` pages from `first` on, detaches their tables, waits for who walks in them, and opens them.
    pub fn cycle_tables(&self, first: u64, pages: u64) {
        let range = range(first, pages);
        let mapped = {
            let guard = self.pin();
            let mapped = self
                .table
                .map(&guard, range, target(range), Perms::ReadWrite, self.size);
            black_box(self.table.unmap(&guard, range).tables);
            mapped
        };
        assert!(mapped.is_ok(), "the range was not the caller's alone");
        let epoch = self.quiescence.retire_epoch();
        while !self.quiescence.has_passed(epoch) {
            std::hint::spin_loop();
        }
        assert!(self.redeem(&self.pin(), range, &mut 0));
    }

    /// Gives empty tables back, as a flush and a grace period allow, until none is left.
    pub fn reclaim(&self) {
        self.table.reclaim_rewind();
        while !self.reclaim_step() {}
    }

    /// One step of reclaim, with a flush of no device. Whether all of the table was looked at.
    pub fn reclaim_step(&self) -> bool {
        match self.table.reclaim(&self.quiescence, self.memory) {
            ReclaimStep::Done => true,
            ReclaimStep::Busy | ReclaimStep::Again | ReclaimStep::Swept => false,
            ReclaimStep::Flush { attempt, .. } => {
                // SAFETY: no device walks the benchmark's tables, so there is nothing to flush.
                let step = unsafe {
                    self.table
                        .reclaim_flushed(&self.quiescence, self.memory, attempt)
                };
                black_box(step);
                false
            }
        }
    }

    /// How many table pages there are, by the engine's own count.
    pub fn table_pages(&self) -> u64 {
        self.table.table_pages()
    }

    /// Empties the pending words of each of `ranges`.
    pub fn redeem_each(&self, ranges: &[IovaRange]) {
        let guard = self.pin();
        for range in ranges {
            assert!(self.redeem(&guard, *range, &mut 0));
        }
    }

    /// Empties each page's pending word in shared words, as after a receipt. Not timed by any row.
    pub fn redeem_shared<O: Order>(&self, order: &O) {
        self.each::<_, false>(order.pages(), |guard, page| {
            let (at, to) = (Iova::new(iova(page)), PhysAddr::new(phys(page)));
            self.table
                .redeem_shared(guard, at, to, PageSize::Size4K)
                .is_ok()
        });
        self.state.set(State::Vacant);
    }

    /// Maps each page in shared words, and counts what each took in ticks beyond `empty`.
    #[inline(never)]
    pub fn map_timed<O: Order>(&self, order: &O, empty: u64, out: &mut Histogram) {
        self.each::<_, false>(order.pages(), |guard, page| {
            let (at, to) = (Iova::new(iova(page)), PhysAddr::new(phys(page)));
            let start = clock::ticks();
            let mapped = self
                .table
                .map_shared(guard, at, to, Perms::ReadWrite, PageSize::Size4K);
            out.add((clock::ticks() - start).saturating_sub(empty));
            mapped.is_ok()
        });
    }

    /// Unmaps each page in shared words, and counts what each took in ticks beyond `empty`.
    #[inline(never)]
    pub fn unmap_timed<O: Order>(&self, order: &O, empty: u64, out: &mut Histogram) {
        self.each::<_, false>(order.pages(), |guard, page| {
            let at = Iova::new(iova(page));
            let start = clock::ticks();
            let unmapped = self.table.unmap_shared(guard, at, PageSize::Size4K);
            out.add((clock::ticks() - start).saturating_sub(empty));
            unmapped.is_ok()
        });
    }

    /// Looks each page up, and counts what each took in ticks beyond `empty`.
    #[inline(never)]
    pub fn translate_timed<O: Order>(&self, order: &O, empty: u64, out: &mut Histogram) {
        self.each::<_, false>(order.pages(), |guard, page| {
            let at = Iova::new(iova(page));
            let start = clock::ticks();
            let found = self.table.translate(guard, at);
            out.add((clock::ticks() - start).saturating_sub(empty));
            found.is_some()
        });
    }

    /// Whether each 2 MiB of the window is empty.
    #[inline(never)]
    pub(crate) fn is_vacant_by_tables(&self) {
        self.each::<_, false>(self.cuts(PAGES_2M).iter(), |guard, range| {
            self.table.is_vacant(guard, *range)
        });
    }

    fn pending_by(&self, pages: u64) {
        // ORDERING: Relaxed: rounds begin and end on one thread, which joins the others.
        self.unmapped_by.store(pages, Ordering::Relaxed);
        self.state.set(State::Pending);
    }

    /// The window in ranges of `pages` pages, made once: who owns a range has it at hand.
    fn cuts(&self, pages: u64) -> Arc<[IovaRange]> {
        let mut known = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cuts)) = known.iter().find(|(of, _)| *of == pages) {
            return cuts.clone();
        }
        let first = (0..self.pages).step_by(pages as usize);
        let cuts: Arc<[IovaRange]> = first
            .map(|page| range(page, pages.min(self.pages - page)))
            .collect();
        known.push((pages, cuts.clone()));
        cuts
    }

    /// Brings every word of the window to a leaf, with the tables in place and in the caches.
    pub fn fill(&self) {
        self.vacate();
        self.map_ranges::<false>(self.part());
    }

    /// Fills the window, if it is not filled.
    pub fn fill_once(&self) {
        if self.state.get() != State::Filled {
            self.fill();
        }
    }

    /// Brings every word of the window to pending.
    pub fn leave_pending(&self) {
        self.fill();
        self.unmap_ranges::<false>(self.part());
    }

    /// Brings every word of the window to empty, with the tables in place and in the caches.
    pub fn vacate(&self) {
        if self.state.get() == State::Vacant {
            self.map_ranges::<false>(self.part());
        }
        if self.state.get() == State::Filled {
            self.unmap_ranges::<false>(self.part());
        }
        // ORDERING: Relaxed, as where it is stored.
        self.redeem_ranges::<false>(self.unmapped_by.load(Ordering::Relaxed));
    }

    /// Pages of the ranges that rows are made ready in: less than a table, so that tables stay where they are.
    fn part(&self) -> u64 {
        let leaf = self.size.pages();
        self.pages.min(PART * leaf)
    }
}

impl<const SNOOPS: bool> Subject for Engine<SNOOPS>
where
    Memory<SNOOPS>: Walkers,
{
    fn mapped(&self) -> Vec<Mapped> {
        let root = self.table.root().expect("the table has not ended");
        // SAFETY: the root of a table in the arena, which is at rest.
        unsafe {
            leaves(
                root.page().as_u64(),
                u32::from(root.level().number()),
                &WORDS,
            )
        }
    }
}

impl<const SNOOPS: bool> Drop for Engine<SNOOPS> {
    fn drop(&mut self) {
        // SAFETY: the table is taken once, and nobody uses the engine after its drop.
        let table = unsafe { ManuallyDrop::take(&mut self.table) };
        table.discard();
    }
}
