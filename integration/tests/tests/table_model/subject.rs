//! The table under test beside the model of it, and what must hold between the two.

#![expect(
    unsafe_code,
    reason = "redeeming without a flush and draining a closed table are unsafe"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::{Guard, Quiescence};
use hv_iommu::table::{Drain, DrainStep, Geometry, ReclaimStep, Table, TableError, Translation};
use hv_iommu::{Level, RootTables};
use hv_tests::arena::Arena;
use hv_tests::walker::Found;

use crate::reclaimer::Reclaimer;
use crate::under_test::{self, Format, Walker};

/// What a table looks like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// 3 for 39 address bits, 4 for 48.
    pub(crate) levels: u32,
    /// Log2 of the tables that stand side by side as the root: so many more address bits.
    pub(crate) root_tables: u32,
    /// The highest level of leaves, 1 to 3.
    pub(crate) largest: u32,
    /// Whether walkers snoop.
    pub(crate) coherent: bool,
    /// Whether walkers follow a change of page size.
    pub(crate) live_resize: bool,
    /// Whether walkers note accesses and writes.
    pub(crate) dirty: bool,
}

impl Shape {
    /// A table of this depth with pages up to this level, whose walkers can follow changes and note nothing.
    pub(crate) const fn plain(levels: u32, largest: u32, coherent: bool) -> Self {
        Self {
            levels,
            root_tables: 0,
            largest,
            coherent,
            live_resize: true,
            dirty: false,
        }
    }

    /// Log2 of the pages that the table translates.
    pub(crate) const fn page_bits(&self) -> u32 {
        9 * self.levels + self.root_tables
    }
}

/// A table: its level, and its first page divided by the pages that it maps.
pub(crate) type TableAt = (u32, u64);

/// The pages that a table maps: the first, and the first behind.
pub(crate) fn span_of((level, prefix): TableAt) -> (u64, u64) {
    let pages = pages_of(level + 1);
    (prefix * pages, (prefix + 1) * pages)
}

/// One page of the table: its first 4 KiB page and its level.
pub(crate) type Leaf = (u64, u32);

/// What became of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Devices reach it.
    Mapped,
    /// Unmapped, waits for its receipt.
    Pending,
    /// Unmapped, and the pending value is lost.
    Forgotten,
}

/// One mapping, in 4 KiB pages.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) first: u64,
    pub(crate) pages: u64,
    pub(crate) to: u64,
    pub(crate) perms: Perms,
    pub(crate) state: State,
    /// Whether it is a page of a shared range.
    pub(crate) shared: bool,
    pub(crate) leaves: Vec<Leaf>,
    /// The first pages of the leaves that a device wrote through.
    pub(crate) dirty: BTreeSet<u64>,
}

impl Region {
    pub(crate) fn end(&self) -> u64 {
        self.first + self.pages
    }

    pub(crate) fn range(&self) -> IovaRange {
        range(self.first, self.pages)
    }
}

/// What is to be mapped, in 4 KiB pages; `to` is a page number too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) first: u64,
    pub(crate) pages: u64,
    pub(crate) to: u64,
    pub(crate) perms: Perms,
    pub(crate) largest: PageSize,
    pub(crate) shared: bool,
    /// How many frames for tables are handed in.
    pub(crate) spares: u64,
}

/// The table and its model.
pub(crate) struct Subject {
    pub(crate) shape: Shape,
    pub(crate) arena: Arc<Arena>,
    pub(crate) table: Table<Format, Arc<Arena>>,
    pub(crate) quiescence: Quiescence,
    root: u64,
    pub(crate) regions: BTreeMap<u64, Region>,
    /// The tables that are linked, with the root: level, and addresses divided by the level's span.
    pub(crate) linked: BTreeSet<TableAt>,
    /// The tables that were detached with a region, by its first page, and wait with it.
    pub(crate) detached: BTreeMap<u64, BTreeSet<TableAt>>,
    pub(crate) reclaimer: Reclaimer,
    /// Leaves that hardware has cached: their words, and the first page.
    pub(crate) cached: Vec<((u64, usize), u64)>,
}

pub(crate) fn range(first: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova::new(first << 12), PageCount::new(pages).unwrap()).unwrap()
}

/// 4 KiB pages in a page of a level.
pub(crate) fn pages_of(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

/// The size of the pages of a level, 1 to 3.
pub(crate) fn size_of_level(level: u32) -> PageSize {
    [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G][level as usize - 1]
}

fn level_of(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => 1,
        PageSize::Size2M => 2,
        _ => 3,
    }
}

impl Subject {
    pub(crate) fn new(shape: Shape) -> Self {
        let arena = Arc::new(under_test::arena(2048, &shape));
        let level = |number: u32| Level::new(number.try_into().unwrap()).unwrap();
        let geometry = Geometry {
            root: level(shape.levels),
            root_tables: RootTables::new(shape.root_tables as u8).unwrap(),
            largest_leaf: level(shape.largest),
            coherent: shape.coherent,
            live_resize: shape.live_resize,
            dirty: shape.dirty,
        };
        // SAFETY: all guards and all of reclaim are of this value's one quiescence, on its one CPU.
        let table =
            unsafe { Table::new(under_test::format(&shape), geometry, arena.clone()) }.unwrap();
        let root = table.root().unwrap().page().as_u64();
        let subject = Self {
            shape,
            arena,
            table,
            quiescence: Quiescence::new(1).unwrap(),
            root,
            regions: BTreeMap::new(),
            linked: (0..1 << shape.root_tables)
                .map(|number| (shape.levels, number))
                .collect(),
            detached: BTreeMap::new(),
            reclaimer: Reclaimer::default(),
            cached: Vec::new(),
        };
        subject.arena.check_order(shape.coherent);
        subject
    }

    /// A second table of the same shape in the same memory.
    pub(crate) fn another_table(&self) -> Result<Table<Format, Arc<Arena>>, TableError> {
        let geometry = self.table.geometry();
        // SAFETY: no guard is made for it.
        unsafe {
            Table::new(
                under_test::format(&self.shape),
                geometry,
                self.arena.clone(),
            )
        }
    }

    pub(crate) fn guard(&self) -> Guard<'_> {
        self.quiescence.pin(&*self.arena)
    }

    pub(crate) fn walker(&self) -> Walker<impl Fn(u64, usize) -> u64> {
        let read = |at: u64, index: usize| match self.shape.coherent {
            true => self.arena.snoop(at, index),
            false => self.arena.read_memory(at, index),
        };
        under_test::walker(read, self.root, &self.shape)
    }

    /// The first region that shares a page with these, and which of its pages that is.
    fn overlap(&self, first: u64, pages: u64) -> Option<u64> {
        let before = self.regions.range(..=first).next_back();
        let inside = self.regions.range(first..first + pages).next();
        let overlapping = |region: &&Region| region.end() > first && region.first < first + pages;
        let region = before
            .into_iter()
            .chain(inside)
            .map(|(_, region)| region)
            .find(overlapping)?;
        Some(region.first.max(first))
    }

    /// Whether the table translates the last of these pages.
    fn reaches(&self, first: u64, pages: u64) -> bool {
        (first + pages - 1) >> self.shape.page_bits() == 0
    }

    /// The leaves that a map has to write: the largest pages that sizes, alignment, the caller and the
    /// tables in the way allow.
    fn leaves(&self, job: &Job) -> Vec<Leaf> {
        let largest = level_of(job.largest).min(self.shape.largest);
        let (mut leaves, mut page) = (Vec::new(), job.first);
        while page < job.first + job.pages {
            let fits = |level: &u32| {
                let pages = pages_of(*level);
                page.is_multiple_of(pages)
                    && page + pages <= job.first + job.pages
                    && (job.to + page - job.first).is_multiple_of(pages)
                    && !self.is_there((level - 1, page / pages))
            };
            let level = (1..=largest).rev().find(fits).unwrap();
            leaves.push((page, level));
            page += pages_of(level);
        }
        leaves
    }

    /// Whether a mapper finds a table there, which it then fills.
    fn is_there(&self, table: TableAt) -> bool {
        self.linked.contains(&table) || self.reclaimer.tombstones.contains(&table)
    }

    /// The tables that these leaves need.
    fn tables_for(&self, leaves: &[Leaf]) -> BTreeSet<TableAt> {
        let above = |(page, level): &Leaf| {
            let page = *page;
            (*level..self.shape.levels).map(move |table| (table, page >> (9 * table)))
        };
        leaves.iter().flat_map(above).collect()
    }

    /// Calls the engine.
    pub(crate) fn try_map(&self, job: &Job) -> Result<u64, TableError> {
        let to = PhysAddr::new(job.to << 12);
        let guard = self.guard();
        if job.shared {
            let at = Iova::new(job.first << 12);
            let outcome = self
                .table
                .map_shared(&guard, at, to, job.perms, job.largest);
            return outcome.map(|outcome| outcome.tables);
        }
        let range = range(job.first, job.pages);
        if job.spares == 0 {
            let outcome = self.table.map(&guard, range, to, job.perms, job.largest);
            return outcome.map(|outcome| outcome.tables);
        }
        let mut spares = self.table.spares();
        spares.reserve(job.spares).unwrap();
        let outcome = self
            .table
            .map_from(&guard, range, to, job.perms, job.largest, &mut spares);
        // What was handed in is used first, and what is not needed stays.
        let used = outcome.map_or(0, |outcome| outcome.tables);
        assert_eq!(spares.count(), job.spares.saturating_sub(used), "{job:x?}");
        outcome.map(|outcome| outcome.tables)
    }

    /// What the engine must answer.
    fn expected(&self, job: &Job) -> Result<Vec<Leaf>, TableError> {
        if !self.reaches(job.first, job.pages) {
            return Err(TableError::TooWide {
                last: Iova::new(((job.first + job.pages) << 12) - 1),
                bits: 12 + self.shape.page_bits(),
            });
        }
        let at = |page: u64| Iova::new(page << 12);
        let level = level_of(job.largest);
        let in_the_way = job.shared && self.is_there((level - 1, job.first / pages_of(level)));
        match self.overlap(job.first, job.pages) {
            _ if in_the_way => Err(TableError::TableInTheWay { at: at(job.first) }),
            Some(page) => Err(TableError::Occupied { at: at(page) }),
            None => Ok(self.leaves(job)),
        }
    }

    /// Maps, and compares the outcome with the model's.
    pub(crate) fn map(&mut self, job: &Job) {
        let expected = self.expected(job);
        let mapped = self.try_map(job);
        self.arena.check_order(self.shape.coherent);
        // Up to where it failed, if it did, it went through tables that a reclaimer had marked or unlinked.
        let (last, level) = match (job.shared, expected.as_ref().err()) {
            (true, _) => (job.first, level_of(job.largest)),
            (false, Some(TableError::Occupied { at })) => (at.as_u64() >> 12, 1),
            (false, _) => (job.first + job.pages - 1, 1),
        };
        if self.reaches(job.first, job.pages) {
            self.opened(job.first, last, level);
        }
        match (mapped, expected) {
            (Ok(tables), Ok(leaves)) => self.mapped(job, tables, leaves),
            (Err(error), Err(expected)) => {
                assert_eq!(error, expected, "{job:x?}");
                self.look_for_tables();
            }
            (mapped, expected) => panic!("{job:x?} gave {mapped:x?}, expected {expected:x?}"),
        }
    }

    /// Notes a mapping that the engine made.
    pub(crate) fn mapped(&mut self, job: &Job, tables: u64, leaves: Vec<Leaf>) {
        let needed = self.tables_for(&leaves);
        let new = needed.difference(&self.linked).count();
        assert_eq!(tables, new as u64, "tables linked by {job:x?}");
        self.linked.extend(needed);
        let region = Region {
            first: job.first,
            pages: job.pages,
            to: job.to,
            perms: job.perms,
            state: State::Mapped,
            shared: job.shared,
            leaves,
            dirty: BTreeSet::new(),
        };
        self.regions.insert(job.first, region);
        self.look_for_tables();
    }

    /// The leaves of a job that the engine can do now.
    pub(crate) fn possible(&self, job: &Job) -> Option<Vec<Leaf>> {
        self.expected(job).ok()
    }

    /// Reads all words: each is one that hardware accepts, and the linked tables are those that the
    /// model knows, and all that is taken besides those that wait.
    pub(crate) fn look_for_tables(&self) {
        let mut found = BTreeSet::new();
        let shown = self.walker().tables(|level, prefix| {
            assert!(found.insert((level, prefix)));
        });
        shown.unwrap();
        assert_eq!(found, self.linked, "tables that are linked");
        let known = found.len() + self.waiting();
        assert_eq!(self.arena.taken(), known, "frames that no word names");
        assert_eq!(self.table.table_pages(), known as u64, "the engine's count");
    }

    /// How many table pages are taken and not linked.
    fn waiting(&self) -> usize {
        let detached: usize = self.detached.values().map(BTreeSet::len).sum();
        detached + self.reclaimer.waiting()
    }

    /// Compares engine, model and walker at one byte.
    pub(crate) fn compare(&self, at: u64) {
        let below = self.regions.range(..=at >> 12).next_back();
        let region = below.map(|(_, region)| region);
        let region =
            region.filter(|region| at >> 12 < region.end() && region.state == State::Mapped);
        let expected = region.map(|region| {
            let after = region.leaves.partition_point(|(page, _)| *page <= at >> 12);
            Found {
                to: at - (region.first << 12) + (region.to << 12),
                readable: region.perms.readable(),
                writable: region.perms.writable(),
                level: region.leaves[after - 1].1,
            }
        });
        assert_eq!(
            self.walker().walk(at).unwrap(),
            expected,
            "the walk of {at:#x}"
        );
        let found = |found: Translation| Found {
            to: found.to.as_u64(),
            readable: found.perms.readable(),
            writable: found.perms.writable(),
            level: found.level.number().into(),
        };
        let guard = self.guard();
        let translated = self.table.translate(&guard, Iova::new(at)).map(found);
        assert_eq!(translated, expected, "the translation of {at:#x}");
        let starts = |found: Found| at.is_multiple_of(pages_of(found.level) << 12);
        let boundary = self.table.is_leaf_boundary(&guard, Iova::new(at));
        assert_eq!(
            boundary,
            expected.is_none_or(starts),
            "the boundary at {at:#x}"
        );
    }

    /// Compares at both ends of every leaf of a region, and around it.
    pub(crate) fn compare_region(&self, region: &Region) {
        for (page, level) in &region.leaves {
            self.compare(page << 12);
            self.compare(((page + pages_of(*level)) << 12) - 1);
        }
        self.compare_edges(region);
    }

    /// Compares at the edges of every region.
    pub(crate) fn compare_all(&self) {
        for region in self.regions.values() {
            self.compare_edges(region);
        }
    }

    fn compare_edges(&self, region: &Region) {
        let (first, end) = (region.first << 12, region.end() << 12);
        for at in [first.wrapping_sub(1), first, first + 1, end - 1, end] {
            self.compare(at);
        }
    }

    /// Unmaps a mapped region.
    pub(crate) fn unmap(&mut self, first: u64) {
        let region = self.regions[&first].clone();
        if region.shared {
            let guard = self.guard();
            let (at, size) = (region.range().start(), size_of_level(region.leaves[0].1));
            let to = self.table.unmap_shared(&guard, at, size);
            assert_eq!(to, Ok(PhysAddr::new(region.to << 12)));
            let again = self.table.unmap_shared(&guard, at, size);
            assert_eq!(again, Err(TableError::NotMapped { at }));
        } else {
            let unmapped = self.table.unmap(&self.guard(), region.range());
            let inside = |table: &&TableAt| {
                let (first, end) = span_of(**table);
                table.0 < self.shape.levels && first >= region.first && end <= region.end()
            };
            let gone: BTreeSet<_> = self.linked.iter().filter(inside).copied().collect();
            assert_eq!(unmapped.tables, !gone.is_empty(), "tables of {region:x?}");
            self.linked.retain(|table| !gone.contains(table));
            self.reclaimer.frozen.retain(|table| !gone.contains(table));
            self.detached.insert(first, gone);
        }
        self.arena.check_order(self.shape.coherent);
        self.regions.get_mut(&first).unwrap().state = State::Pending;
        self.look_for_tables();
    }

    /// Redeems a range of the engine. Gives how many table pages came back, and which pages were written by
    /// a device.
    pub(crate) fn try_redeem(
        &self,
        range: IovaRange,
        to: PhysAddr,
    ) -> Result<(u64, BTreeSet<u64>), TableError> {
        let mut written = BTreeSet::new();
        // A page that was noted before a merge and after it is told twice.
        let dirty = |at: Iova, _| written.extend([at.as_u64() >> 12]);
        // SAFETY: the walker of this test keeps nothing, and one thread has no other guard.
        let redeemed = unsafe { self.table.redeem(&self.guard(), range, to, dirty) };
        redeemed.map(|redeemed| (redeemed.tables, written))
    }

    /// Redeems a region, which the engine refuses unless it is pending.
    pub(crate) fn redeem(&mut self, first: u64) {
        let region = self.regions[&first].clone();
        let guard = self.guard();
        let (at, to) = (region.range().start(), PhysAddr::new(region.to << 12));
        let redeemed = if region.shared {
            let size = size_of_level(region.leaves[0].1);
            let written = self.table.redeem_shared(&guard, at, to, size);
            written.map(|written| (0, written.then_some(first).into_iter().collect()))
        } else {
            self.try_redeem(region.range(), to)
        };
        drop(guard);
        self.arena.check_order(self.shape.coherent);
        if region.state == State::Pending {
            let tables = self.detached.remove(&first).unwrap_or_default().len() as u64;
            let mut written = region.dirty.clone();
            if !region.shared {
                written.extend(self.written_before_merges(first, region.end()));
            }
            assert_eq!(redeemed, Ok((tables, written)), "at {first:#x}");
            self.regions.remove(&first);
            self.look_for_tables();
        } else {
            assert_eq!(redeemed, Err(TableError::NotMapped { at }), "{region:x?}");
        }
    }

    /// Splits a mapped region in front of one of its leaves.
    pub(crate) fn split(&mut self, first: u64, leaf: usize) {
        let left = self.regions.get_mut(&first).unwrap();
        let leaves = left.leaves.split_off(leaf);
        let middle = leaves[0].0;
        let mut right = left.clone();
        right.first = middle;
        right.pages = left.end() - middle;
        right.to = left.to + (middle - left.first);
        right.leaves = leaves;
        right.dirty = left.dirty.split_off(&middle);
        left.pages = middle - left.first;
        self.regions.insert(middle, right);
    }

    /// Joins a mapped region with the next one, if that goes on where it ends.
    pub(crate) fn join(&mut self, first: u64) {
        let left = &self.regions[&first];
        let Some(right) = self.regions.get(&left.end()) else {
            return;
        };
        let goes_on = right.to == left.to + left.pages && right.perms == left.perms;
        if right.state != State::Mapped || right.shared || left.shared || !goes_on {
            return;
        }
        let right = self.regions.remove(&left.end()).unwrap();
        let left = self.regions.get_mut(&first).unwrap();
        left.pages += right.pages;
        left.leaves.extend(right.leaves);
        left.dirty.extend(right.dirty);
    }

    /// Whether the engine finds nothing in a range, which it must exactly if the model does.
    pub(crate) fn check_vacancy(&self, first: u64, pages: u64) {
        let vacant = self.table.is_vacant(&self.guard(), range(first, pages));
        let expected = self.reaches(first, pages) && self.overlap(first, pages).is_none();
        assert_eq!(vacant, expected, "vacancy of {pages} pages at {first:#x}");
    }

    /// Ends the table: it hands out every leaf once, pending or not, in order, and gives every frame
    /// back.
    pub(crate) fn end(self) {
        let root = self.table.close().unwrap();
        assert_eq!(self.table.close(), None);
        let everything = range(0, 1 << self.shape.page_bits());
        assert!(self.table.translate(&self.guard(), Iova::new(0)).is_none());
        let unmapped = self.table.unmap(&self.guard(), everything);
        assert!(!unmapped.tables);
        let redeemed = self.try_redeem(everything, PhysAddr::new(0));
        assert_eq!(redeemed, Err(TableError::Ended));
        let step = self.table.reclaim(&self.quiescence, &*self.arena);
        let waits = matches!(
            step,
            ReclaimStep::Again | ReclaimStep::Swept | ReclaimStep::Flush { .. }
        );
        assert!(waits || step == ReclaimStep::Done, "{step:?}");
        // SAFETY: the table was closed above, no guard is held, and the walker reads when told to.
        let mut drain = unsafe { Drain::new(root) };
        let mut next = || loop {
            match drain.step(&self.table, 100) {
                DrainStep::More => {}
                step => return step,
            }
        };
        for region in self.regions.values() {
            for (page, level) in &region.leaves {
                let DrainStep::Frames(run) = next() else {
                    panic!("a leaf of {region:x?} was lost");
                };
                let to = (region.to + page - region.first) << 12;
                let found = (run.start().as_u64(), run.pages().get());
                assert_eq!(found, (to, pages_of(*level)), "of {region:x?}");
            }
        }
        assert_eq!(next(), DrainStep::Done);
        let tables = self.linked.len() + self.waiting();
        assert_eq!(drain.tables_freed(), tables as u64);
        assert_eq!(self.arena.taken(), 0, "tables leaked");
    }
}
