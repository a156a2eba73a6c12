//! Private tables: built with all they map before anybody can see them, linked by one exchange.

#![expect(unsafe_code, reason = "writes table pages that are still private")]

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, PhysAddr};

use super::map::{Job, SparesOf};
use super::spares::Private;
use super::walk::{CellOf, Cover, Page, Slot, store_run};
use super::{MemoryHandle, Table};
use crate::format::{Entry, Format, Level};

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// A private table of `level` in which `first` to `last` are mapped already, and how many pages it
    /// is made of. `None` when pages ran out; those that were taken are among the spares then.
    pub(super) fn build(
        &self,
        level: Level,
        job: &Job,
        (first, last): (u64, u64),
        spares: &mut SparesOf<'_, H>,
    ) -> Option<(Private, u64)> {
        let private = spares.take_or_alloc()?;
        let page = self.private_page(&private);
        let cover = Self::cover(level, first, last);
        let begin = cover.head.map_or(cover.whole.start, |head| head.index);
        let end = cover.tail.map_or(cover.whole.end, |tail| tail.index + 1);
        store_run(page.run(0..begin), 0, 0);
        if Self::fits(job, level) {
            let to = job.target(cover.base);
            let leaf = self.format.leaf(level, to, job.perms);
            self.store_leaves(page.run(cover.whole.clone()), leaf, (level, to, job.perms));
            self.swap_neighbours(page, level, cover.whole.clone());
        }
        let (mut tables, mut links) = (1, 0);
        for (index, part) in Self::links(job, level, &cover) {
            let below = level.below();
            let child = below.and_then(|below| self.build(below, job, part, spares));
            let (Some(cell), Some((child, more))) = (page.cell(index), child) else {
                self.give_up(private, job, level, &cover, links, spares);
                return None;
            };
            links += 1;
            tables += more;
            let link = self.format.table(child.at());
            // Written back with the whole page, before anybody can walk through it.
            let link = match self.geometry().coherent {
                true => link,
                false => link | F::WRITTEN_BACK,
            };
            // ORDERING: Relaxed, the page is private; publishing it publishes this.
            cell.store(link, Ordering::Relaxed);
        }
        store_run(page.cells.get(end..).unwrap_or(&[]), 0, 0);
        if !Fault::SkipTableWriteBack.is_on() {
            self.write_words_back(page.at, page.cells.len());
        }
        Some((private, tables))
    }

    /// The words of a new table of `level` that need tables below them, and for which addresses.
    fn links(
        job: &Job,
        level: Level,
        cover: &Cover,
    ) -> impl Iterator<Item = (usize, (u64, u64))> + use<F, H> {
        let span = Self::span(level);
        let base = cover.base;
        let cut = [cover.head, cover.tail].into_iter().flatten();
        let whole = match Self::fits(job, level) {
            true => 0..0,
            false => cover.whole.clone(),
        };
        let whole = whole.enumerate().map(move |(nth, index)| {
            let at = base.wrapping_add(span.wrapping_mul(nth as u64));
            (index, (at, at | (span - 1)))
        });
        // In the last table every page is whole and fits, so it has none.
        cut.map(|part| (part.index, (part.first, part.last)))
            .chain(whole)
    }

    /// How many tables a new table of `level` for these addresses takes, itself included.
    pub(super) fn tables_for(job: &Job, level: Level, first: u64, last: u64) -> u64 {
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

    /// Puts back a private table of which only the first `links` links were written.
    fn give_up(
        &self,
        private: Private,
        job: &Job,
        level: Level,
        cover: &Cover,
        links: usize,
        spares: &mut SparesOf<'_, H>,
    ) {
        let page = self.private_page(&private);
        let written = Self::links(job, level, cover).take(links);
        for cell in written.filter_map(|(index, _)| page.cell(index)) {
            self.take_apart_below(cell, level, spares);
        }
        spares.push(private);
    }

    /// An empty private table.
    pub(super) fn build_empty(&self, spares: &mut SparesOf<'_, H>) -> Option<Private> {
        let private = spares.take()?;
        self.clear(&private);
        Some(private)
    }

    /// Empties all words of a private table.
    pub(super) fn clear(&self, private: &Private) {
        let page = self.private_page(private);
        store_run(page.cells, 0, 0);
        if !Fault::SkipTableWriteBack.is_on() {
            self.write_words_back(page.at, page.cells.len());
        }
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
        let link = match Fault::LinkClaimsWrittenBack.is_on() {
            true => self.format.table(at) | F::WRITTEN_BACK,
            false => self.format.table(at),
        };
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
    pub(super) fn take_apart(&self, private: Private, level: Level, spares: &mut SparesOf<'_, H>) {
        for cell in self.private_page(&private).cells {
            self.take_apart_below(cell, level, spares);
        }
        spares.push(private);
    }

    /// Puts the table back that a word of a private table links.
    fn take_apart_below(&self, cell: &CellOf<H>, level: Level, spares: &mut SparesOf<'_, H>) {
        // ORDERING: Relaxed, the page is private.
        let word = cell.load(Ordering::Relaxed);
        if let (Entry::Table { page, .. }, Some(below)) =
            (self.format.decode(word, level), level.below())
        {
            // SAFETY: the word is the only one to name the page, and goes with its private table, whose
            // words nobody reads any more.
            let child = unsafe { Private::from_raw(page) };
            self.take_apart(child, below, spares);
        }
    }
}
