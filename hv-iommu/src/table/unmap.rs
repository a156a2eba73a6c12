//! Unmapping a range that the caller owns: leaves become pending words, whole tables are detached; and
//! emptying both once a receipt allows that.

#![expect(
    unsafe_code,
    reason = "frees detached tables that a receipt and a grace period have put out of reach"
)]

use core::ops::Range;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PhysAddr};

use super::root::TableAt;
use super::spares::give_back;
use super::walk::{CellOf, LINE, Page, Slot};
use super::{MemoryHandle, Redeemed, Table, TableError, Unmapped};
use crate::format::{Entry, Format, Level};
use crate::quiesce::Guard;

/// Told of each page that was written by a device: its first address and its level.
pub(super) type Harvest<'h> = dyn FnMut(Iova, Level) + 'h;

impl<F: Format, H: MemoryHandle> Table<F, H> {
    #[inline(never)]
    pub(super) fn unmap_range(&self, guard: &Guard<'_>, range: IovaRange) -> Unmapped {
        let mut unmapped = Unmapped::default();
        // An address that is too wide would lead to the words of another one.
        if let Ok(root) = self.root_for(range.last()) {
            let (first, last) = (range.start().as_u64(), range.last().as_u64());
            for (top, (first, last)) in Self::tops(root, (first, last)) {
                self.unmap_table(guard, top, first, last, &mut unmapped);
            }
            self.memory().walker_fence();
        }
        unmapped
    }

    fn unmap_table(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
        first: u64,
        last: u64,
        unmapped: &mut Unmapped,
    ) {
        let page = self.page(guard, table.page);
        let cover = Self::cover(table.level, first, last);
        for part in [cover.head, cover.tail].into_iter().flatten() {
            let child = page.cell(part.index).and_then(|cell| self.peek(cell));
            if let (Some(page), Some(below)) = (child, table.level.below()) {
                let child = TableAt { page, level: below };
                self.unmap_table(guard, child, part.first, part.last, unmapped);
            }
        }
        self.unmap_whole(page, cover.whole, table.level, unmapped);
    }

    /// Unmaps all that is under words in a row.
    #[inline(always)]
    pub(super) fn unmap_whole(
        &self,
        page: Page<'_, CellOf<H>>,
        indices: Range<usize>,
        level: Level,
        unmapped: &mut Unmapped,
    ) {
        let mut index = indices.start;
        while index < indices.end {
            index += self.unmap_leaves(page, index..indices.end, level);
            if index < indices.end {
                unmapped.tables |= self.detach(page, index, level);
                index += 1;
            }
        }
    }

    /// Makes leaves in a row pending, up to the first word that is none. How many those were.
    #[inline(always)]
    pub(super) fn unmap_leaves(
        &self,
        page: Page<'_, CellOf<H>>,
        indices: Range<usize>,
        level: Level,
    ) -> usize {
        let cells = page.run(indices.clone());
        let (mask, want) = Self::any_link();
        let mut count = 0;
        for cell in cells {
            // ORDERING: Relaxed: the words are the caller's own, and are only marked here.
            let word = cell.load(Ordering::Relaxed);
            let link = level != Level::LEAF && word & mask == want;
            if word & F::PRESENT == 0 || link {
                if level == Level::LEAF {
                    // Nothing that could be a table: the rest is looked at as well.
                    count += 1;
                    continue;
                }
                break;
            }
            if self.geometry.dirty && !Fault::DirtyByStore.is_on() {
                self.unmap_leaf_that_may_get_dirty(cell, word);
            } else {
                // ORDERING: Release, rule 3; the caller's fence before it notes the flush sequence
                // orders the store before the flush.
                cell.store(self.format.pending(word), Ordering::Release);
            }
            count += 1;
        }
        if !Fault::SkipUnmapWriteBack.is_on() {
            self.write_words_back(page.word_at(indices.start), count);
        }
        count
    }

    /// Hardware may set the dirty bit at any moment, so only an exchange keeps it.
    fn unmap_leaf_that_may_get_dirty(&self, cell: &CellOf<H>, mut word: u64) {
        // ORDERING: AcqRel as the store above, and to see what hardware did; Acquire to look again.
        while let Err(found) = cell.compare_exchange(
            word,
            self.pending_of(word),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            if found & F::PRESENT == 0 {
                return;
            }
            word = found;
        }
    }

    /// What becomes of a leaf in which hardware may have noted a write.
    #[inline(always)]
    pub(super) fn pending_of(&self, word: u64) -> u64 {
        self.format.pending(word) | self.format.noted(word)
    }

    /// Detaches the table at a word whose whole span the caller owns, whatever a reclaimer has done to
    /// the link meanwhile. Whether there was one.
    #[inline]
    fn detach(&self, page: Page<'_, CellOf<H>>, index: usize, level: Level) -> bool {
        let Some(cell) = page.cell(index) else {
            return false;
        };
        // ORDERING: Acquire, as every read of a walk.
        let word = cell.load(Ordering::Acquire);
        if !matches!(
            self.format.decode(word, level),
            Entry::Table { .. } | Entry::Tombstone { .. }
        ) {
            return false;
        }
        let detached = self.detach_word(cell);
        if !Fault::SkipUnmapWriteBack.is_on() {
            self.write_words_back(page.word_at(index), 1);
        }
        detached
    }

    /// Takes a link, frozen or not, or a tombstone out of a word. Whether there was one: the reclaimer may
    /// have emptied a tombstone meanwhile.
    #[inline(always)]
    pub(super) fn detach_word(&self, cell: &CellOf<H>) -> bool {
        let kept = !(F::PRESENT | F::FROZEN | F::ACCESSED);
        if Fault::DetachByStore.is_on() {
            // ORDERING: Acquire, as every read of a walk.
            let word = cell.load(Ordering::Acquire);
            // ORDERING: Release; the deliberate fault is that the word may have changed.
            cell.store(word & kept, Ordering::Release);
            return word != 0;
        }
        // What is left is looked at, not what was there: a machine has an atomic and for that.
        // ORDERING: AcqRel: a reclaimer that finds the word changed has lost; what it did before is seen.
        cell.fetch_and(kept, Ordering::AcqRel) & kept != 0
    }

    /// # Safety
    /// As [`Table::redeem`].
    #[inline(never)]
    pub(super) unsafe fn redeem_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        to: PhysAddr,
        dirty: &mut Harvest<'_>,
    ) -> Result<Redeemed, TableError> {
        let root = self.root_for(range.last())?;
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let target = |at: u64| PhysAddr::new(to.as_u64().wrapping_add(at - first));
        for (top, part) in Self::tops(root, (first, last)) {
            self.check_table(guard, top, part.0, part.1, target(part.0))?;
        }
        if self.geometry.dirty
            && !Fault::SkipMergedHarvest.is_on()
            && !self.harvest_merged(guard, (first, last), dirty)
        {
            // Nothing was changed or told yet: the caller tries again.
            return Err(TableError::ReclaimPending { at: range.start() });
        }
        let mut redeemed = Redeemed::default();
        for (top, (first, last)) in Self::tops(root, (first, last)) {
            // SAFETY: the caller's promise is the same.
            unsafe { self.empty_table(guard, top, first, last, &mut redeemed, dirty) };
        }
        self.count_tables(-(redeemed.tables as i64));
        Ok(redeemed)
    }

    #[inline]
    pub(super) fn pending_for(&self, level: Level, to: PhysAddr) -> u64 {
        // What the device may do is not kept in a pending word.
        let leaf = self.format.leaf(level, to, hv_core::Perms::ReadWrite);
        self.format.pending(leaf)
    }

    #[cold]
    fn not_pending(&self, level: Level, at: u64, found: u64, expected: u64) -> TableError {
        let at = Iova::new(at);
        match (
            self.format.decode(found, level),
            self.format.decode(expected, level),
        ) {
            (Entry::Pending { to: found }, Entry::Pending { to: expected }) => {
                TableError::NotContiguous {
                    at,
                    expected,
                    found,
                }
            }
            (Entry::Unknown(word), _) => TableError::Damaged { at, word },
            _ => TableError::NotMapped { at },
        }
    }

    /// Checks that all of `first` to `last` is pending, and what single leaves name.
    fn check_table(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
        first: u64,
        last: u64,
        to: PhysAddr,
    ) -> Result<(), TableError> {
        let page = self.page(guard, table.page);
        let cover = Self::cover(table.level, first, last);
        let target = |at: u64| PhysAddr::new(to.as_u64().wrapping_add(at.wrapping_sub(first)));
        let check_part = |part: super::walk::Part| {
            let child = page.cell(part.index).and_then(|cell| self.peek(cell));
            let (Some(page), Some(below)) = (child, table.level.below()) else {
                return Err(TableError::NotMapped {
                    at: Iova::new(part.first),
                });
            };
            let child = TableAt { page, level: below };
            self.check_table(guard, child, part.first, part.last, target(part.first))
        };
        if let Some(head) = cover.head {
            check_part(head)?;
        }
        let span = Self::span(table.level);
        let mut at = cover.base;
        for index in cover.whole.clone() {
            let Some(slot) = page.slot(index, table.level, at) else {
                return Err(TableError::NotMapped { at: Iova::new(at) });
            };
            // ORDERING: Relaxed, the words are the caller's own since its unmap.
            let word = slot.cell.load(Ordering::Relaxed);
            let expected = self.pending_for(table.level, target(at));
            let detached = table.level != Level::LEAF
                && matches!(
                    self.format.decode(word, table.level),
                    Entry::PendingTable { .. }
                );
            if word & !F::DIRTY != expected && !detached {
                return Err(self.not_pending(table.level, at, word, expected));
            }
            at = at.wrapping_add(span);
        }
        cover.tail.map_or(Ok(()), check_part)
    }

    /// Empties what [`check_table`](Self::check_table) has looked at: the words are the caller's alone,
    /// so it still holds.
    ///
    /// # Safety
    /// As [`Table::redeem`].
    unsafe fn empty_table(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
        first: u64,
        last: u64,
        redeemed: &mut Redeemed,
        dirty: &mut Harvest<'_>,
    ) {
        let page = self.page(guard, table.page);
        let cover = Self::cover(table.level, first, last);
        for part in [cover.head, cover.tail].into_iter().flatten() {
            let child = page.cell(part.index).and_then(|cell| self.peek(cell));
            if let (Some(page), Some(below)) = (child, table.level.below()) {
                let child = TableAt { page, level: below };
                // SAFETY: the caller's promise is the same.
                unsafe { self.empty_table(guard, child, part.first, part.last, redeemed, dirty) };
            }
        }
        let mut at = cover.base;
        for index in cover.whole {
            let Some(slot) = page.slot(index, table.level, at) else {
                return;
            };
            // ORDERING: Relaxed, the words are the caller's own since its unmap.
            let word = slot.cell.load(Ordering::Relaxed);
            match (self.format.decode(word, table.level), table.level.below()) {
                (Entry::PendingTable { page }, Some(below)) => {
                    // SAFETY: the word is the caller's, who detached the table and has a receipt that
                    // covers walk caches and a grace period, so nobody reaches it or what is below.
                    redeemed.tables += unsafe { self.free_detached(page, below, at, dirty) };
                }
                _ => self.harvest(word, table.level, at, dirty),
            }
            self.empty_slot(slot);
            at = at.wrapping_add(Self::span(table.level));
        }
    }

    fn empty_slot(&self, slot: Slot<'_, CellOf<H>>) {
        // ORDERING: Release, rule 3: what was done to the table that stood here comes before. Not
        // written back: for a walker, pending and empty are the same, not present.
        slot.cell.store(0, Ordering::Release);
    }

    fn harvest(&self, word: u64, level: Level, at: u64, dirty: &mut Harvest<'_>) {
        if self.geometry.dirty && word & F::DIRTY != 0 {
            dirty(Iova::new(at), level);
        }
    }

    /// Frees a detached table and all below it. How many pages that were.
    ///
    /// # Safety
    /// No CPU and no walker reaches the table any more, nobody else frees it, and the word that names it
    /// is emptied next.
    unsafe fn free_detached(
        &self,
        page: PhysAddr,
        level: Level,
        at: u64,
        dirty: &mut Harvest<'_>,
    ) -> u64 {
        // SAFETY: by the caller's promise the page is out of everybody's reach and not yet freed.
        let words = unsafe { self.page_alone(page) };
        let mut freed = 1;
        let (mask, want) = Self::any_link();
        // The leaves are the caller's frames, whose run it knows: of a last table only dirty bits count.
        let look = match level {
            Level::LEAF if self.geometry.dirty => words.cells,
            Level::LEAF => &[],
            _ => words.cells,
        };
        for (line, cells) in look.chunks(LINE).enumerate() {
            if level == Level::LEAF {
                let together = cells.iter().fold(0, |bits, cell| {
                    // ORDERING: Acquire, as below.
                    bits | cell.load(Ordering::Acquire)
                });
                if together & F::DIRTY == 0 {
                    continue;
                }
            }
            for (index, cell) in cells.iter().enumerate() {
                // ORDERING: Acquire pairs with the last writer's release, whichever CPU that was.
                let word = cell.load(Ordering::Acquire);
                let at =
                    at.wrapping_add(Self::span(level).wrapping_mul((line * LINE + index) as u64));
                if word == 0 || (word & F::PRESENT != 0 && word & mask != want) {
                    self.harvest(word, level, at, dirty);
                    continue;
                }
                let table = match self.format.decode(word, level) {
                    Entry::Table { page, .. }
                    | Entry::Tombstone { page }
                    | Entry::PendingTable { page } => Some(page),
                    _ => None,
                };
                match (table, level.below()) {
                    (Some(_), _) if Fault::LoseNestedTables.is_on() => {}
                    (Some(page), Some(below)) => {
                        // SAFETY: only the table above named it.
                        freed += unsafe { self.free_detached(page, below, at, dirty) };
                    }
                    _ => self.harvest(word, level, at, dirty),
                }
            }
        }
        if Fault::KeepDetachedTables.is_on() {
            return 0;
        }
        // SAFETY: nothing reaches the page (see above), and this is its one time.
        unsafe { give_back(self.memory(), page, Self::TABLE_FRAMES) };
        freed
    }
}
