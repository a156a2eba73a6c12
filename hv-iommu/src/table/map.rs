//! Mapping a range that the caller owns: tables first, then leaves that cannot fail.

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PageSize, Perms, PhysAddr};

use super::walk::{CellOf, Missing, Page, Part};
use super::{MapOutcome, MemoryHandle, Table, TableError};
use crate::format::{Entry, Format, Level, RootPointer};
use crate::quiesce::Guard;

/// What is being mapped.
#[derive(Clone, Copy)]
struct Job {
    from: u64,
    to: PhysAddr,
    perms: Perms,
    largest: Level,
}

impl Job {
    /// The physical address that `at` is to lead to.
    fn target(&self, at: u64) -> u64 {
        self.to.as_u64().wrapping_add(at.wrapping_sub(self.from))
    }
}

/// Private pages and counts that the first pass carries along.
#[derive(Default)]
struct Linked {
    spare: Option<PhysAddr>,
    tables: u64,
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    pub(super) fn map_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
    ) -> Result<MapOutcome, TableError> {
        let root = self.root_for(range.last())?;
        let job = Job {
            from: range.start().as_u64(),
            to,
            perms: if Fault::IgnorePermissions.is_on() {
                Perms::ReadWrite
            } else {
                perms
            },
            largest: Level::of(largest).min(self.geometry().largest_leaf),
        };
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let mut linked = Linked::default();
        let prepared = self.prepare(guard, root, &job, first, last, &mut linked);
        self.give_back_spare(linked.spare.take());
        match prepared {
            Ok(()) => {}
            Err(TableError::OutOfFrames { .. }) => {
                let missing =
                    self.count_missing(guard, Some(root.page), root.level, &job, first, last);
                return Err(TableError::OutOfFrames { missing });
            }
            Err(error) => return Err(error),
        }
        self.fill(guard, root, &job, first, last);
        if !Fault::SkipMapFence.is_on() {
            self.memory().walker_fence();
        }
        Ok(MapOutcome {
            tables: linked.tables,
        })
    }

    /// The root, if the table translates addresses up to `last`.
    pub(super) fn root_for(&self, last: Iova) -> Result<RootPointer, TableError> {
        let root = self.root().ok_or(TableError::Ended)?;
        let bits = Self::shift(root.level) + F::INDEX_BITS;
        if last.as_u64() >> bits != 0 {
            return Err(TableError::TooWide { last, bits });
        }
        Ok(root)
    }

    /// Whether this part can be one leaf of its level, as far as sizes and alignment go.
    fn fits(&self, job: &Job, level: Level, part: Part) -> bool {
        level <= job.largest && part.whole && job.target(part.first) & (self.span(level) - 1) == 0
    }

    /// First pass: links every table that the leaves need and checks that the leaves' words are
    /// empty. The second pass takes the same decisions, since nobody else writes these words.
    fn prepare(
        &self,
        guard: &Guard<'_>,
        table: RootPointer,
        job: &Job,
        first: u64,
        last: u64,
        linked: &mut Linked,
    ) -> Result<(), TableError> {
        let page = self.page(guard, table.page);
        for part in self.parts(table.level, first, last) {
            let at = Iova::new(part.first);
            let fits = self.fits(job, table.level, part);
            if fits && self.is_empty(&page, part, table.level)? {
                continue;
            }
            let Some(below) = table.level.below() else {
                return Err(TableError::Occupied { at });
            };
            let install = Missing::Install {
                spare: &mut linked.spare,
                installed: &mut linked.tables,
            };
            if let Some(child) = self.child(&page, part.index, table.level, at, install)? {
                let child = RootPointer {
                    page: child,
                    level: below,
                };
                self.prepare(guard, child, job, part.first, part.last, linked)?;
            }
        }
        Ok(())
    }

    /// Whether the word is empty; `false` when it links a table.
    fn is_empty(
        &self,
        page: &Page<'_, CellOf<H>>,
        part: Part,
        level: Level,
    ) -> Result<bool, TableError> {
        let at = Iova::new(part.first);
        let Some(cell) = page.cell(part.index) else {
            return Err(TableError::Damaged { at, word: 0 });
        };
        // ORDERING: Acquire, as every read of a walk.
        let word = cell.load(Ordering::Acquire);
        match self.format.decode(word, level) {
            Entry::Empty => Ok(true),
            Entry::Table { .. } => Ok(false),
            Entry::Leaf { .. } | Entry::Pending { .. } => Err(TableError::Occupied { at }),
            Entry::Unknown(word) => Err(TableError::Damaged { at, word }),
        }
    }

    /// Second pass: writes the leaves. Every table is there.
    fn fill(&self, guard: &Guard<'_>, table: RootPointer, job: &Job, first: u64, last: u64) {
        let page = self.page(guard, table.page);
        let mut written: Option<(usize, usize)> = None;
        for part in self.parts(table.level, first, last) {
            if self.fits(job, table.level, part)
                && self.is_empty(&page, part, table.level) == Ok(true)
            {
                let to = self.target(job, table.level, part.first, last);
                let leaf = self.format.leaf(table.level, to, job.perms);
                if let Some(cell) = page.cell(part.index) {
                    // ORDERING: Release: what the page holds comes before the device can reach it.
                    cell.store(leaf, Ordering::Release);
                }
                written = Some((written.map_or(part.index, |(from, _)| from), part.index));
                continue;
            }
            let at = Iova::new(part.first);
            let Some(below) = table.level.below() else {
                continue;
            };
            if let Ok(Some(child)) = self.child(&page, part.index, table.level, at, Missing::Skip) {
                let child = RootPointer {
                    page: child,
                    level: below,
                };
                self.fill(guard, child, job, part.first, part.last);
            }
        }
        if let Some((from, to)) = written
            && !self.geometry().coherent
            && !Fault::SkipLeafWriteBack.is_on()
        {
            let bytes = (to - from + 1) * size_of::<u64>();
            self.memory().write_back(page.word_at(from), bytes as u64);
        }
    }

    /// The page that `at` is to lead to.
    fn target(&self, job: &Job, level: Level, at: u64, last: u64) -> PhysAddr {
        let neighbour = at ^ self.span(Level::LEAF);
        let has_neighbour = level == Level::LEAF && (job.from..=last).contains(&neighbour);
        if Fault::SwapNeighbours.is_on() && has_neighbour {
            return PhysAddr::new(job.target(neighbour));
        }
        PhysAddr::new(job.target(at))
    }

    /// How many tables one page of `size` at `at` still needs.
    pub(super) fn count_missing_for_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        size: PageSize,
    ) -> u64 {
        let Some(root) = self.root() else { return 0 };
        let job = Job {
            from: at.as_u64(),
            to,
            perms: Perms::ReadWrite,
            largest: Level::of(size),
        };
        let last = job.from | (self.span(job.largest) - 1);
        self.count_missing(guard, Some(root.page), root.level, &job, job.from, last)
    }

    /// How many tables are not there yet; `table` is `None` for one of them.
    fn count_missing(
        &self,
        guard: &Guard<'_>,
        table: Option<PhysAddr>,
        level: Level,
        job: &Job,
        first: u64,
        last: u64,
    ) -> u64 {
        let page = table.map(|table| self.page(guard, table));
        let Some(below) = level.below() else { return 0 };
        let mut missing = 0_u64;
        for part in self.parts(level, first, last) {
            let at = Iova::new(part.first);
            let child = match &page {
                Some(page) => self
                    .child(page, part.index, level, at, Missing::Skip)
                    .ok()
                    .flatten(),
                None => None,
            };
            if child.is_none() {
                if self.fits(job, level, part) {
                    continue;
                }
                missing += 1;
            }
            missing += self.count_missing(guard, child, below, job, part.first, part.last);
        }
        missing
    }
}
