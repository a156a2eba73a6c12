//! Mapping a range that the caller owns: all tables first, then leaves that cannot fail.

use core::ops::Range;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};

use super::root::TableAt;
use super::spares::Spares;
use super::walk::{CellOf, Page, Slot, leading_empty, store_run};
use super::{Geometry, MapOutcome, MemoryHandle, Table, TableError};
use crate::format::{Format, Level, RootPointer};
use crate::quiesce::Guard;

/// Where a table's frames come from.
pub(super) type SparesOf<'m, H> = Spares<'m, <H as core::ops::Deref>::Target>;

/// What is being mapped.
#[derive(Clone, Copy)]
pub(super) struct Job {
    from: u64,
    to: u64,
    pub(super) perms: Perms,
    largest: Level,
}

impl Job {
    /// The address that `at` is to lead to.
    pub(super) fn target(&self, at: u64) -> PhysAddr {
        PhysAddr::new(self.to.wrapping_add(at.wrapping_sub(self.from)))
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    #[inline(never)]
    pub(super) fn map_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
    ) -> Result<MapOutcome, TableError> {
        self.map_range_from(guard, range, to, perms, largest, &mut self.spares())
    }

    pub(super) fn map_range_from(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
        spares: &mut SparesOf<'_, H>,
    ) -> Result<MapOutcome, TableError> {
        if !spares.are_of(self.memory()) {
            // Frames of another memory are nothing to this table.
            return self.map_range(guard, range, to, perms, largest);
        }
        let root = self.root_for(range.last())?;
        if Self::smallest(range, to).is_none() {
            return Err(Self::cuts_page(range.start()));
        }
        let last = range.last().as_u64();
        let job = Job {
            from: range.start().as_u64(),
            to: to.as_u64(),
            perms: if Fault::IgnorePermissions.is_on() {
                Perms::ReadWrite
            } else {
                perms
            },
            largest: Level::up_to::<F>(largest).min(self.geometry().largest_leaf),
        };
        if let Some(slot) = self.one_empty_slot(guard, root, &job, last)? {
            return self.map_below(guard, slot, &job, last, spares);
        }
        let mut missing = 0;
        for (top, (first, last)) in Self::tops(root, (job.from, last)) {
            missing += self.prepare(guard, top, &job, first, last)?;
        }
        spares
            .reserve(missing)
            .map_err(|missing| TableError::OutOfFrames { missing })?;
        let mut outcome = MapOutcome::default();
        for (top, part) in Self::tops(root, (job.from, last)) {
            self.fill(guard, top, &job, part, spares, &mut outcome);
        }
        self.count_tables(outcome.tables as i64);
        if !Fault::SkipMapFence.is_on() {
            self.memory().walker_fence();
        }
        Ok(outcome)
    }

    /// The one empty word that all of `job` is under, if there is one and needs a table.
    fn one_empty_slot<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        root: RootPointer,
        job: &Job,
        last: u64,
    ) -> Result<Option<Slot<'g, CellOf<H>>>, TableError> {
        let mut table = Self::top(root, job.from);
        loop {
            let index = Self::index(table.level, job.from);
            let slot = self
                .page(guard, table.page)
                .slot(index, table.level, job.from);
            let (Some(slot), Some(level)) = (slot, table.level.below()) else {
                return Ok(None);
            };
            let one = (job.from ^ last) >> Self::shift(table.level) == 0;
            let leaf =
                Self::fits(job, table.level) && job.from | (Self::span(table.level) - 1) == last;
            if !one || leaf {
                return Ok(None);
            }
            match self.open(slot)? {
                Some(page) => table = TableAt { page, level },
                None => return Ok(Some(slot)),
            }
        }
    }

    /// Maps all of `job` under one empty word: everything is built before the one exchange that shows it,
    /// so no page has to be reserved.
    fn map_below(
        &self,
        guard: &Guard<'_>,
        slot: Slot<'_, CellOf<H>>,
        job: &Job,
        last: u64,
        spares: &mut SparesOf<'_, H>,
    ) -> Result<MapOutcome, TableError> {
        let Some(below) = slot.level.below() else {
            return Err(slot.occupied());
        };
        let had = spares.count();
        let part = (job.from, last);
        let Some((private, tables)) = self.build(below, job, part, spares) else {
            // What was taken is among the spares now.
            let needed = Self::tables_for(job, below, job.from, last);
            let missing = needed.saturating_sub(spares.count());
            spares.shrink(had);
            return Err(TableError::OutOfFrames { missing });
        };
        let mut outcome = MapOutcome { tables, filled: 0 };
        if let Err(private) = self.publish(slot, private) {
            // Another CPU was faster: what was built is more than enough for what is missing now.
            self.take_apart(private, below, spares);
            outcome.tables = 0;
            let child = self.open(slot)?.ok_or(slot.occupied())?;
            let child = TableAt {
                page: child,
                level: below,
            };
            self.prepare(guard, child, job, job.from, last)?;
            self.fill(guard, child, job, part, spares, &mut outcome);
        }
        self.count_tables(outcome.tables as i64);
        if !Fault::SkipMapFence.is_on() {
            self.memory().walker_fence();
        }
        Ok(outcome)
    }

    /// Whether whole words of this level become leaves.
    pub(super) fn fits(job: &Job, level: Level) -> bool {
        level <= job.largest && (job.to ^ job.from) & (Self::span(level) - 1) == 0
    }

    /// First pass: checks that the leaves' words are empty, goes through every table that is there, and
    /// counts those that are missing. What it went through stays linked while the guard lives (rule 7), so
    /// the second pass needs no more than these.
    fn prepare(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
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
            Some(page) => self.prepare(guard, TableAt { page, level: below }, job, first, last),
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
                largest: Level::up_to::<F>(largest).min(self.geometry().largest_leaf),
            };
            let Geometry {
                root: level,
                root_tables: tables,
                ..
            } = self.geometry();
            let root = RootPointer {
                page: PhysAddr::new(0),
                level,
                tables,
            };
            let tops = Self::tops(root, (job.from, part.last().as_u64()));
            let tops = tops.take(tables.count() as usize);
            tops.map(|(top, (first, last))| Self::tables_for(&job, top.level, first, last))
                .sum::<u64>()
        });
        parts.sum()
    }

    /// Second pass: writes the leaves and links what is missing.
    fn fill(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
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
                let to = job.target(at);
                let leaf = self.format.leaf(table.level, to, job.perms);
                self.store_leaves(run, leaf, (table.level, to, job.perms));
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
                    let child = TableAt { page, level: below };
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

    /// Writes leaves in a row, of which `leaf` is the first and maps `to`.
    #[inline(always)]
    pub(super) fn store_leaves(
        &self,
        cells: &[CellOf<H>],
        leaf: u64,
        (level, to, perms): (Level, PhysAddr, Perms),
    ) {
        let span = Self::span(level);
        let Some(carry) = 1_u64.checked_shl(F::CARRY_BITS) else {
            return store_run(cells, leaf, span);
        };
        let (mut rest, mut leaf, mut to) = (cells, leaf, to.as_u64());
        // Words are one span apart up to the next address at which a sum would carry where no address is.
        loop {
            let room = (carry - (to & (carry - 1))) >> Self::shift(level);
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let Some((near, far)) = rest.split_at_checked(room).filter(|_| room != 0) else {
                return store_run(rest, leaf, span);
            };
            store_run(near, leaf, span);
            to = to.wrapping_add(span.wrapping_mul(room as u64));
            leaf = self.format.leaf(level, PhysAddr::new(to), perms);
            rest = far;
        }
    }

    /// What follows leaves that were written in place.
    #[inline]
    pub(super) fn finish_run(
        &self,
        page: Page<'_, CellOf<H>>,
        level: Level,
        indices: Range<usize>,
    ) {
        self.swap_neighbours(page, level, indices.clone());
        if !Fault::SkipLeafWriteBack.is_on() {
            self.write_words_back(page.word_at(indices.start), indices.len());
        }
    }

    /// A deliberate fault: pairs of leaves get each other's address.
    #[inline]
    pub(super) fn swap_neighbours(
        &self,
        page: Page<'_, CellOf<H>>,
        level: Level,
        indices: Range<usize>,
    ) {
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
