//! The short way: runs of leaves in one table that is there already, which most calls are about. Each
//! answers whether it did everything; otherwise the long way does it, or finds out why it cannot be done.

use core::ops::Range;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, IovaRange, PageSize, Perms, PhysAddr};

use super::walk::{CellOf, Page, leading_empty};
use super::{MemoryHandle, Table, Unmapped};
use crate::format::{Format, Level};
use crate::quiesce::Guard;

/// Words in a row of one table; only [`Table::many`] tells whether they end with it.
type Words<'g, H> = (Page<'g, CellOf<H>>, Row);

/// The first of them and how many there are.
#[derive(Clone, Copy)]
struct Row {
    index: usize,
    count: u64,
}

/// The one word, where it is one: single pages are the most frequent of all, and one word ends with no table
/// but its own.
#[inline(always)]
fn one<C: EntryCell>(page: Page<'_, C>, row: Row) -> Option<&C> {
    if row.count == 1 {
        page.cell(row.index)
    } else {
        None
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Words per table.
    const WORDS: u64 = 1 << F::INDEX_BITS;

    /// The words of level `LEVEL` for `count` leaves from `first` on, if all words on the way to the first are
    /// links as `link` says.
    #[inline(always)]
    fn words<'g, const LEVEL: u8, const CHECK: bool, const PLAIN: bool>(
        &'g self,
        guard: &'g Guard<'_>,
        first: u64,
        count: u64,
        link: (u64, u64),
    ) -> Option<Words<'g, H>> {
        let page = self.descend::<LEVEL, CHECK, PLAIN>(guard, first, link)?;
        let index = Self::index(Self::level::<LEVEL>(), first);
        Some((page, Row { index, count }))
    }

    /// Where the words are in their table, if that holds all of them.
    #[inline(always)]
    fn many(row: Row) -> Option<Range<usize>> {
        let end = (row.index as u64).checked_add(row.count)?;
        (end <= Self::WORDS).then_some(row.index..end as usize)
    }

    /// The level with this number, 1 to 5.
    pub(super) const fn level<const LEVEL: u8>() -> Level {
        match Level::new(LEVEL) {
            Some(level) => level,
            None => Level::LEAF,
        }
    }

    /// How many leaves of `LEVEL` a range is made of, if it is of whole ones; `addresses` are the bits of
    /// all addresses that have to be aligned.
    #[inline(always)]
    fn whole<const LEVEL: u8>(addresses: u64, range: IovaRange) -> Option<u64> {
        let level = Self::level::<LEVEL>();
        // In pages: their bytes may be more than fit, and taking care of that costs as much as a step.
        let pages = range.pages().get();
        let pages_shift = Self::shift(level) - PageSize::Size4K.shift();
        let cut = addresses & (Self::span(level) - 1) | pages & ((1 << pages_shift) - 1);
        (cut == 0).then_some(pages >> pages_shift)
    }

    /// With `CHECK`, every word is looked at before it is written; else only those above the last table, where
    /// a table may stand even in a range that is vacant, and callers know that the table translates it.
    #[inline(always)]
    pub(super) fn map_run<const CHECK: bool>(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
    ) -> bool {
        let first = range.start().as_u64();
        let Some(pages) = Self::smallest(range, to) else {
            return false;
        };
        // Too short for anything but the smallest leaves.
        if pages < Self::WORDS {
            return self.map_leaves::<1, CHECK, CHECK>(guard, first, pages, to, perms);
        }
        self.map_words::<CHECK>(guard, range, to, perms, largest)
    }

    /// Ranges of whole large leaves in one table. Of the largest, one: more are few enough for the long way.
    #[inline(always)]
    fn map_words<const CHECK: bool>(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        perms: Perms,
        largest: PageSize,
    ) -> bool {
        let (first, pages) = (range.start().as_u64(), range.pages().get());
        let pages = pages >> Self::PAGE_ORDER;
        let addresses = first | to.as_u64();
        // The lowest bit, which no address has, stands for the table's having such leaves.
        if pages == Self::WORDS * Self::WORDS
            && (addresses | 1) & self.beside_huge == 0
            && Level::up_to::<F>(largest) >= Self::level::<3>()
        {
            return self.map_leaves::<3, true, CHECK>(guard, first, 1, to, perms);
        }
        if Level::up_to::<F>(largest).min(self.geometry.largest_leaf) < Self::level::<2>() {
            return false;
        }
        match Self::whole::<2>(addresses, range) {
            Some(count) if count < Self::WORDS => {
                self.map_leaves::<2, true, CHECK>(guard, first, count, to, perms)
            }
            _ => false,
        }
    }

    /// A single page in a word that is known to be empty. Where its leaf stands then.
    #[inline(always)]
    pub(super) fn map_leaf_run(
        &self,
        guard: &Guard<'_>,
        first: u64,
        to: PhysAddr,
        perms: Perms,
    ) -> Option<PhysAddr> {
        let (page, row) = self.words::<1, false, false>(guard, first, 1, self.clear_link)?;
        let perms = if Fault::IgnorePermissions.is_on() {
            Perms::ReadWrite
        } else {
            perms
        };
        let leaf = self.format.leaf(Level::LEAF, to, perms);
        // ORDERING: Release, rule 3: what the page holds comes before a device can reach it.
        page.cell(row.index)?
            .store(leaf, Fault::LeafRelaxed.weakens(Ordering::Release));
        self.finish_run(page, Level::LEAF, row.index..row.index + 1);
        if !Fault::SkipMapFence.is_on() {
            self.memory.walker_fence();
        }
        Some(page.word_at(row.index))
    }

    #[inline(always)]
    fn map_leaves<const LEVEL: u8, const LOOK: bool, const CHECK: bool>(
        &self,
        guard: &Guard<'_>,
        first: u64,
        count: u64,
        to: PhysAddr,
        perms: Perms,
    ) -> bool {
        let level = Self::level::<LEVEL>();
        let Some((page, row)) =
            self.words::<LEVEL, CHECK, false>(guard, first, count, self.clear_link)
        else {
            return false;
        };
        let perms = if Fault::IgnorePermissions.is_on() {
            Perms::ReadWrite
        } else {
            perms
        };
        let leaf = self.format.leaf(level, to, perms);
        let indices = match one(page, row) {
            Some(cell) => {
                // ORDERING: Acquire: who emptied the word, by a receipt, has done so before.
                if LOOK && cell.load(Ordering::Acquire) != 0 {
                    return false;
                }
                // ORDERING: Release, rule 3: what the page holds comes before a device can reach it.
                cell.store(leaf, Fault::LeafRelaxed.weakens(Ordering::Release));
                row.index..row.index + 1
            }
            None => {
                let Some(indices) = Self::many(row) else {
                    return false;
                };
                let cells = page.run(indices.clone());
                if LOOK && leading_empty(cells) != cells.len() {
                    return false;
                }
                self.store_leaves(cells, leaf, (level, to, perms));
                indices
            }
        };
        self.finish_run(page, level, indices);
        if !Fault::SkipMapFence.is_on() {
            self.memory.walker_fence();
        }
        true
    }

    /// What was unmapped, or `None` where it takes the long way.
    #[inline(always)]
    pub(super) fn unmap_run(&self, guard: &Guard<'_>, range: IovaRange) -> Option<Unmapped> {
        let first = range.start().as_u64();
        let pages = Self::smallest(range, PhysAddr::new(0))?;
        if pages < Self::WORDS {
            // Without write-backs and dirty bits, the plainest case of all. The lowest bit stands for that: no
            // address of a page has it, and no plain table's mask.
            return match (first | 1) & self.beyond_plain == 0 {
                true => self.unmap_small(guard, first, pages),
                false => self.unmap_small_with_care(guard, first, pages),
            };
        }
        self.unmap_words(guard, range)
    }

    /// Ranges that are of whole words of one table above the last.
    #[inline(always)]
    fn unmap_words(&self, guard: &Guard<'_>, range: IovaRange) -> Option<Unmapped> {
        let first = range.start().as_u64();
        // A table that is covered whole is detached from the word above it.
        let short = |count: &u64| *count < Self::WORDS;
        if let Some(count) = Self::whole::<3>(first, range) {
            return self.unmap_words_at::<3>(guard, first, Some(count).filter(short)?);
        }
        let count = Self::whole::<2>(first, range).filter(short)?;
        self.unmap_words_at::<2>(guard, first, count)
    }

    #[inline(always)]
    fn unmap_words_at<const LEVEL: u8>(
        &self,
        guard: &Guard<'_>,
        first: u64,
        count: u64,
    ) -> Option<Unmapped> {
        let (page, row) =
            self.words::<LEVEL, true, false>(guard, first, count, Self::any_link())?;
        let mut unmapped = Unmapped::default();
        if let Some(cell) = one(page, row)
            && self.plain
        {
            // ORDERING: Relaxed: what is read is only what to write, or not to.
            let word = cell.load(Ordering::Relaxed);
            let (mask, want) = Self::any_link();
            if word & F::PRESENT != 0 {
                if word & mask == want {
                    // Also when a reclaimer makes a tombstone of it, and even nothing, meanwhile.
                    unmapped.tables = self.detach_word(cell);
                } else {
                    // ORDERING: Release, rule 3, as for smaller leaves.
                    cell.store(self.format.pending(word), Ordering::Release);
                }
                self.memory.walker_fence();
                return Some(unmapped);
            }
        }
        let indices = Self::many(row)?;
        self.unmap_whole(page, indices, Self::level::<LEVEL>(), &mut unmapped);
        self.memory.walker_fence();
        Some(unmapped)
    }

    #[inline(always)]
    fn unmap_small(&self, guard: &Guard<'_>, first: u64, count: u64) -> Option<Unmapped> {
        let (page, row) = self.words::<1, false, true>(guard, first, count, Self::any_link())?;
        let leaf = |word: u64| word & F::PRESENT != 0;
        match one(page, row) {
            Some(cell) => {
                // ORDERING: Relaxed: the word is the caller's own.
                let word = cell.load(Ordering::Relaxed);
                if leaf(word) {
                    // ORDERING: Release, rule 3; the caller's fence before it notes the flush sequence
                    // orders the store before the flush.
                    cell.store(self.format.pending(word), Ordering::Release);
                }
            }
            None => {
                for cell in page.run(Self::many(row)?) {
                    // ORDERING: Relaxed, as above.
                    let word = cell.load(Ordering::Relaxed);
                    if leaf(word) {
                        // ORDERING: Release, as above.
                        cell.store(self.format.pending(word), Ordering::Release);
                    }
                }
            }
        }
        self.memory.walker_fence();
        Some(Unmapped::default())
    }

    /// The same where walkers do not snoop, or write dirty bits.
    #[inline(never)]
    fn unmap_small_with_care(&self, guard: &Guard<'_>, first: u64, count: u64) -> Option<Unmapped> {
        let (page, row) = self.words::<1, true, false>(guard, first, count, Self::any_link())?;
        self.unmap_leaves(page, Self::many(row)?, Level::LEAF);
        self.memory.walker_fence();
        Some(Unmapped::default())
    }

    /// Whether a range of one last table is empty; `None` where it takes the long way.
    #[inline(always)]
    pub(super) fn vacant_run(&self, guard: &Guard<'_>, range: IovaRange) -> Option<bool> {
        let first = range.start().as_u64();
        let pages = Self::smallest(range, PhysAddr::new(0))?;
        let (page, row) = self.words::<1, true, false>(guard, first, pages, Self::any_link())?;
        let cells = page.run(Self::many(row)?);
        Some(leading_empty(cells) == cells.len())
    }

    /// Empties pending leaves of one run. Only where walkers do not note what they write.
    #[inline(always)]
    pub(super) fn redeem_run(&self, guard: &Guard<'_>, range: IovaRange, to: PhysAddr) -> bool {
        if self.geometry.dirty {
            return false;
        }
        let first = range.start().as_u64();
        let Some(pages) = Self::smallest(range, to) else {
            return false;
        };
        if pages < Self::WORDS {
            return self.empty_leaves_at::<1>(guard, first, pages, to);
        }
        let addresses = first | to.as_u64();
        if let Some(count) = Self::whole::<3>(addresses, range) {
            return self.empty_leaves_at::<3>(guard, first, count, to);
        }
        match Self::whole::<2>(addresses, range) {
            Some(count) => self.empty_leaves_at::<2>(guard, first, count, to),
            None => false,
        }
    }

    #[inline(always)]
    fn empty_leaves_at<const LEVEL: u8>(
        &self,
        guard: &Guard<'_>,
        first: u64,
        count: u64,
        to: PhysAddr,
    ) -> bool {
        let level = Self::level::<LEVEL>();
        let Some((page, row)) =
            self.words::<LEVEL, true, false>(guard, first, count, Self::any_link())
        else {
            return false;
        };
        let expected = self.pending_for(level, to);
        match one(page, row) {
            Some(cell) => {
                // ORDERING: Relaxed: the word is the caller's own since its unmap.
                if cell.load(Ordering::Relaxed) != expected {
                    return false;
                }
                // ORDERING: Release, rule 3. Not written back: for a walker, pending and empty are the
                // same, not present.
                cell.store(0, Ordering::Release);
            }
            None => {
                let Some(indices) = Self::many(row) else {
                    return false;
                };
                let cells = page.run(indices);
                let (mut word, mut to) = (expected, to.as_u64());
                let mut different = 0;
                for cell in cells {
                    // ORDERING: Relaxed, as above.
                    different |= cell.load(Ordering::Relaxed) ^ word;
                    to = to.wrapping_add(Self::span(level));
                    word = match Self::IN_PLACE {
                        true => word.wrapping_add(Self::span(level)),
                        false => self.pending_for(level, PhysAddr::new(to)),
                    };
                }
                if different != 0 {
                    return false;
                }
                for cell in cells {
                    // ORDERING: Release, as above.
                    cell.store(0, Ordering::Release);
                }
            }
        }
        true
    }
}
