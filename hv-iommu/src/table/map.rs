//! Mapping a range that the caller owns: all tables first, then leaves that cannot fail.

#![expect(unsafe_code, reason = "writes table pages that are still private")]

use core::ops::Range;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};

use super::spares::{Private, Spares};
use super::walk::{CellOf, Page, Slot, leading_empty, store_run};
use super::{MapOutcome, MemoryHandle, Table, TableError};
use crate::format::{Entry, Format, Level, RootPointer};
use crate::quiesce::Guard;

/// Where a table's frames come from.
pub(super) type SparesOf<'m, H> = Spares<'m, <H as core::ops::Deref>::Target>;

/// What is being mapped.
#[derive(Clone, Copy)]
pub(super) struct Job {
    from: u64,
    to: u64,
    perms: Perms,
    largest: Level,
}

impl Job {
    /// The address that `at` is to lead to.
    fn target(&self, at: u64) -> PhysAddr {
        PhysAddr::new(self.to.wrapping_add(at.wrapping_sub(self.from)))
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    #[inline]
    pub(super) fn map_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
        spares: &mut SparesOf<'_, H>,
    ) -> Result<MapOutcome, TableError> {
        let root = self.root_for(range.last())?;
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let perms = if Fault::IgnorePermissions.is_on() {
            Perms::ReadWrite
        } else {
            perms
        };
        // Too short for anything but leaves of the last table, all of them in one: most calls.
        let pages = range.pages().get();
        let one_table = (first ^ last) >> (Self::shift(Level::LEAF) + F::INDEX_BITS) == 0;
        if one_table
            && pages < 1 << F::INDEX_BITS
            && let Some(page) = self.descend::<1>(guard, root, first, self.clear_link())
        {
            let index = Self::index(Level::LEAF, first);
            // Not beyond the table's last word: the range lies in one table.
            let cells = page.run(index..index + pages as usize);
            let clear = leading_empty(cells);
            if clear != cells.len() {
                return Err(self.in_the_way(page, index + clear, first + Self::bytes(clear)));
            }
            store_run(
                cells,
                self.format.leaf(Level::LEAF, to, perms),
                Self::span(Level::LEAF),
            );
            self.finish_run(page, Level::LEAF, index..index + cells.len());
            if !Fault::SkipMapFence.is_on() {
                self.memory().walker_fence();
            }
            return Ok(MapOutcome::default());
        }
        let job = Job {
            from: first,
            to: to.as_u64(),
            perms,
            largest: Level::of(largest).min(self.geometry().largest_leaf),
        };
        self.map_with_tables(guard, root, job, last, spares)
    }

    /// The bytes of this many leaves of the last table.
    fn bytes(leaves: usize) -> u64 {
        leaves as u64 * Self::span(Level::LEAF)
    }

    #[cold]
    fn in_the_way(&self, page: Page<'_, CellOf<H>>, index: usize, at: u64) -> TableError {
        let Some(slot) = page.slot(index, Level::LEAF, at) else {
            return TableError::Damaged {
                at: Iova::new(at),
                word: 0,
            };
        };
        match self.open(slot) {
            Err(error) => error,
            Ok(_) => slot.occupied(),
        }
    }

    #[inline(never)]
    fn map_with_tables(
        &self,
        guard: &Guard<'_>,
        root: RootPointer,
        job: Job,
        last: u64,
        spares: &mut SparesOf<'_, H>,
    ) -> Result<MapOutcome, TableError> {
        let missing = self.prepare(guard, root, &job, job.from, last)?;
        spares
            .reserve(missing)
            .map_err(|missing| TableError::OutOfFrames { missing })?;
        let mut outcome = MapOutcome::default();
        self.fill(guard, root, &job, (job.from, last), spares, &mut outcome);
        self.count_tables(outcome.tables as i64);
        if !Fault::SkipMapFence.is_on() {
            self.memory().walker_fence();
        }
        Ok(outcome)
    }

    /// Whether whole words of this level become leaves.
    fn fits(job: &Job, level: Level) -> bool {
        level <= job.largest && (job.to ^ job.from) & (Self::span(level) - 1) == 0
    }

    /// First pass: checks that the leaves' words are empty, goes through every table that is there, and
    /// counts those that are missing. What it went through stays linked while the guard lives (rule 7), so
    /// the second pass needs no more than these.
    fn prepare(
        &self,
        guard: &Guard<'_>,
        table: RootPointer,
        job: &Job,
        first: u64,
        last: u64,
    ) -> Result<u64, TableError> {
        let page = self.page(guard, table.page);
        let cover = Self::cover(table.level, first, last);
        let fits = Self::fits(job, table.level);
        let span = Self::span(table.level);
        let mut missing = 0;
        if let Some(head) = cover.head {
            missing += self.prepare_slot(
                guard,
                &page,
                table.level,
                job,
                head.index,
                (head.first, head.last),
                false,
            )?;
        }
        let mut index = cover.whole.start;
        let mut at = cover.base;
        while index < cover.whole.end {
            if fits {
                let clear = leading_empty(page.run(index..cover.whole.end));
                index += clear;
                at = at.wrapping_add(span.wrapping_mul(clear as u64));
                if index >= cover.whole.end {
                    break;
                }
            }
            let part = (at, at | (span - 1));
            missing += self.prepare_slot(guard, &page, table.level, job, index, part, fits)?;
            index += 1;
            at = at.wrapping_add(span);
        }
        if let Some(tail) = cover.tail {
            missing += self.prepare_slot(
                guard,
                &page,
                table.level,
                job,
                tail.index,
                (tail.first, tail.last),
                false,
            )?;
        }
        Ok(missing)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one step of a recursion"
    )]
    fn prepare_slot(
        &self,
        guard: &Guard<'_>,
        page: &Page<'_, CellOf<H>>,
        level: Level,
        job: &Job,
        index: usize,
        (first, last): (u64, u64),
        leaf: bool,
    ) -> Result<u64, TableError> {
        let Some(slot) = page.slot(index, level, first) else {
            return Err(TableError::Damaged {
                at: Iova::new(first),
                word: 0,
            });
        };
        let Some(below) = level.below() else {
            return Err(self.open(slot).err().unwrap_or(slot.occupied()));
        };
        match self.open(slot)? {
            Some(page) => self.prepare(guard, RootPointer { page, level: below }, job, first, last),
            None if leaf => Ok(0),
            None => Ok(Self::tables_for(job, below, first, last)),
        }
    }

    /// How many tables mapping `range` in two parts takes at most, the first one of `pages` pages.
    pub(super) fn most_for(
        &self,
        range: IovaRange,
        to: PhysAddr,
        pages: PageCount,
        largest: PageSize,
    ) -> u64 {
        let parts = range
            .split_at(pages)
            .map_or([Some(range), None], |(first, second)| {
                [Some(first), Some(second)]
            });
        let parts = parts.into_iter().flatten().map(|part| {
            let offset = part.start().as_u64() - range.start().as_u64();
            let job = Job {
                from: part.start().as_u64(),
                to: to.as_u64().wrapping_add(offset),
                perms: Perms::ReadWrite,
                largest: Level::of(largest).min(self.geometry().largest_leaf),
            };
            Self::tables_for(&job, self.geometry().root, job.from, part.last().as_u64())
        });
        parts.sum()
    }

    /// How many tables a new table of `level` for these addresses takes, itself included.
    fn tables_for(job: &Job, level: Level, first: u64, last: u64) -> u64 {
        let Some(below) = level.below() else { return 1 };
        let cover = Self::cover(level, first, last);
        let cut = [cover.head, cover.tail].into_iter().flatten();
        let cut: u64 = cut
            .map(|part| Self::tables_for(job, below, part.first, part.last))
            .sum();
        let whole = if Self::fits(job, level) {
            0
        } else {
            let each = Self::tables_for(job, below, 0, Self::span(level) - 1);
            cover.whole.len() as u64 * each
        };
        1 + cut + whole
    }

    /// Second pass: writes the leaves and links what is missing.
    fn fill(
        &self,
        guard: &Guard<'_>,
        table: RootPointer,
        job: &Job,
        (first, last): (u64, u64),
        spares: &mut SparesOf<'_, H>,
        outcome: &mut MapOutcome,
    ) {
        let page = self.page(guard, table.page);
        let cover = Self::cover(table.level, first, last);
        let fits = Self::fits(job, table.level);
        let span = Self::span(table.level);
        if let Some(head) = cover.head {
            let part = (head.first, head.last);
            self.fill_slot(
                guard,
                &page,
                table.level,
                job,
                head.index,
                part,
                spares,
                outcome,
            );
        }
        let mut index = cover.whole.start;
        let mut at = cover.base;
        while index < cover.whole.end {
            if fits {
                let run = page.run(index..cover.whole.end);
                let run = run.get(..leading_empty(run)).unwrap_or(&[]);
                let leaf = self.format.leaf(table.level, job.target(at), job.perms);
                store_run(run, leaf, span);
                self.finish_run(page, table.level, index..index + run.len());
                index += run.len();
                at = at.wrapping_add(span.wrapping_mul(run.len() as u64));
                if index >= cover.whole.end {
                    break;
                }
                outcome.filled += 1;
            }
            let part = (at, at | (span - 1));
            self.fill_slot(guard, &page, table.level, job, index, part, spares, outcome);
            index += 1;
            at = at.wrapping_add(span);
        }
        if let Some(tail) = cover.tail {
            let part = (tail.first, tail.last);
            self.fill_slot(
                guard,
                &page,
                table.level,
                job,
                tail.index,
                part,
                spares,
                outcome,
            );
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one step of a recursion"
    )]
    fn fill_slot(
        &self,
        guard: &Guard<'_>,
        page: &Page<'_, CellOf<H>>,
        level: Level,
        job: &Job,
        index: usize,
        part: (u64, u64),
        spares: &mut SparesOf<'_, H>,
        outcome: &mut MapOutcome,
    ) {
        // The first pass went the same way, so neither of these is missing.
        let (Some(slot), Some(below)) = (page.slot(index, level, part.0), level.below()) else {
            return;
        };
        loop {
            match self.open(slot) {
                Ok(Some(page)) => {
                    let child = RootPointer { page, level: below };
                    return self.fill(guard, child, job, part, spares, outcome);
                }
                Ok(None) => {}
                // Checked by the first pass, in words that nobody else writes.
                Err(_) => return,
            }
            let Some((private, tables)) = self.build(below, job, part, spares) else {
                return;
            };
            match self.publish(slot, private) {
                Ok(_) => {
                    outcome.tables += tables;
                    return;
                }
                Err(private) => self.take_apart(private, below, spares),
            }
        }
    }

    /// A private table of `level` in which `first` to `last` are mapped already, and how many pages it
    /// is made of.
    fn build(
        &self,
        level: Level,
        job: &Job,
        (first, last): (u64, u64),
        spares: &mut SparesOf<'_, H>,
    ) -> Option<(Private, u64)> {
        let private = spares.take()?;
        let page = self.private_page(&private);
        let cover = Self::cover(level, first, last);
        let mut tables = 1;
        let mut link = |index: usize, part: (u64, u64)| {
            let Some(below) = level.below() else { return };
            let (Some(cell), Some((child, more))) =
                (page.cell(index), self.build(below, job, part, spares))
            else {
                return;
            };
            tables += more;
            let link = self.format.table(child.at());
            // Written back with the whole page, before anybody can walk through it.
            let link = if self.geometry().coherent {
                link
            } else {
                link | F::WRITTEN_BACK
            };
            // ORDERING: Relaxed, the page is private; publishing it publishes this.
            cell.store(link, Ordering::Relaxed);
        };
        let begin = cover.head.map_or(cover.whole.start, |head| head.index);
        let end = cover.tail.map_or(cover.whole.end, |tail| tail.index + 1);
        store_run(page.run(0..begin), 0, 0);
        if let Some(head) = cover.head {
            link(head.index, (head.first, head.last));
        }
        let span = Self::span(level);
        if Self::fits(job, level) {
            let leaf = self.format.leaf(level, job.target(cover.base), job.perms);
            store_run(page.run(cover.whole.clone()), leaf, span);
            self.swap_neighbours(page, level, cover.whole.clone());
        } else {
            let mut at = cover.base;
            for index in cover.whole.clone() {
                link(index, (at, at | (span - 1)));
                at = at.wrapping_add(span);
            }
        }
        if let Some(tail) = cover.tail {
            link(tail.index, (tail.first, tail.last));
        }
        store_run(page.cells.get(end..).unwrap_or(&[]), 0, 0);
        if !Fault::SkipTableWriteBack.is_on() {
            self.write_words_back(page.at, page.cells.len());
        }
        Some((private, tables))
    }

    /// An empty private table.
    pub(super) fn build_empty(&self, spares: &mut SparesOf<'_, H>) -> Option<Private> {
        let private = spares.take()?;
        let page = self.private_page(&private);
        store_run(page.cells, 0, 0);
        if !Fault::SkipTableWriteBack.is_on() {
            self.write_words_back(page.at, page.cells.len());
        }
        Some(private)
    }

    /// The words of a private page.
    pub(super) fn private_page<'p>(&'p self, private: &'p Private) -> Page<'p, CellOf<H>> {
        // SAFETY: by the invariant of `Private` the page is a frame that nobody else names.
        unsafe { self.page_alone(private.at()) }
    }

    /// Links a private table at an empty slot, unless another CPU was faster.
    ///
    /// # Errors
    /// The private table then.
    pub(super) fn publish(
        &self,
        slot: Slot<'_, CellOf<H>>,
        private: Private,
    ) -> Result<PhysAddr, Private> {
        let at = private.at();
        let link = self.format.table(at);
        if !Fault::SkipPublishFence.is_on() {
            self.memory().walker_fence();
        }
        if Fault::InstallByStore.is_on() {
            // ORDERING: Release; the deliberate fault is that a table may be overwritten.
            slot.cell.store(link, Ordering::Release);
            return Ok(at);
        }
        let order = if Fault::PublishRelaxed.is_on() {
            // ORDERING: the deliberate fault.
            Ordering::Relaxed
        } else {
            // ORDERING: AcqRel publishes the private page's words to whoever walks through the link.
            Ordering::AcqRel
        };
        // ORDERING: Acquire on failure, to go on through the winner's table.
        let linked = slot
            .cell
            .compare_exchange(0, link, order, Ordering::Acquire);
        if linked.is_err() {
            return Err(private);
        }
        // The word names the page from here on.
        if !self.geometry().coherent {
            self.write_link_back(slot.cell, slot.word_at);
        }
        Ok(at)
    }

    /// Puts the pages of a private table of `level` back.
    fn take_apart(&self, private: Private, level: Level, spares: &mut SparesOf<'_, H>) {
        if let Some(below) = level.below() {
            for cell in self.private_page(&private).cells {
                // ORDERING: Relaxed, the page is private.
                let word = cell.load(Ordering::Relaxed);
                if let Entry::Table { page, .. } = self.format.decode(word, level) {
                    // SAFETY: the word was the only one to name the page, and is gone with the private
                    // table, whose words nobody reads any more.
                    let child = unsafe { Private::from_raw(page) };
                    self.take_apart(child, below, spares);
                }
            }
        }
        spares.push(private);
    }

    /// What follows leaves that were written in place.
    #[inline]
    fn finish_run(&self, page: Page<'_, CellOf<H>>, level: Level, indices: Range<usize>) {
        self.swap_neighbours(page, level, indices.clone());
        if !Fault::SkipLeafWriteBack.is_on() {
            self.write_words_back(page.word_at(indices.start), indices.len());
        }
    }

    /// A deliberate fault: pairs of leaves get each other's address.
    #[inline]
    fn swap_neighbours(&self, page: Page<'_, CellOf<H>>, level: Level, indices: Range<usize>) {
        if !Fault::SwapNeighbours.is_on() || level != Level::LEAF {
            return;
        }
        for index in indices.clone().filter(|index| index % 2 == 0) {
            if let (true, Some(even), Some(odd)) = (
                indices.contains(&(index + 1)),
                page.cell(index),
                page.cell(index + 1),
            ) {
                // ORDERING: Relaxed and Release, as the stores that this spoils.
                let word = even.load(Ordering::Relaxed);
                // ORDERING: as above.
                even.store(odd.load(Ordering::Relaxed), Ordering::Release);
                // ORDERING: as above.
                odd.store(word, Ordering::Release);
            }
        }
    }
}
