//! Single pages in words that several CPUs share: every step is a compare-and-swap.

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, PageSize, Perms, PhysAddr};

use super::root::TableAt;
use super::walk::{CellOf, Slot};
use super::{MapOutcome, MemoryHandle, Table, TableError};
use crate::format::{Entry, Format, Level};
use crate::quiesce::Guard;

impl<F: Format, H: MemoryHandle> Table<F, H> {
    #[inline(always)]
    pub(super) fn map_shared_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        perms: Perms,
        size: PageSize,
    ) -> Result<MapOutcome, TableError> {
        let perms = if Fault::IgnorePermissions.is_on() {
            Perms::ReadWrite
        } else {
            perms
        };
        let level = Self::level_of(at, size)?;
        // A count that the way below was lent would be a store, which the exchange waits for.
        let (slot, tables) = match self.leaf_slot(guard, at, level, self.clear_link) {
            Some(slot) => (slot, 0),
            None => self.open_way(guard, at, size, level)?,
        };
        self.exchange(slot, 0, self.format.leaf(level, to, perms))?;
        Ok(MapOutcome { tables, filled: 0 })
    }

    #[inline(always)]
    pub(super) fn unmap_shared_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        size: PageSize,
    ) -> Result<PhysAddr, TableError> {
        let level = Self::level_of(at, size)?;
        let first = at.as_u64();
        // The plainest case of all, as in `unmap_run`: the lowest bit stands for it.
        if level == Level::LEAF && (first | 1) & self.beyond_plain == 0 {
            let page = self.descend::<1, false, true>(guard, first, Self::any_link());
            let slot = page.and_then(|page| page.slot(Self::index(level, first), level, first));
            if let Some(slot) = slot {
                return self.detach_shared::<true>(slot);
            }
            // A frozen link is not compared whole; it is gone through all the same, rule 6.
        }
        self.detach_shared::<false>(self.present_slot(guard, at, level)?)
    }

    /// Makes a leaf pending. With `PLAIN`, it is one of the last level, of a plain table: walkers note nothing in it.
    #[inline(always)]
    fn detach_shared<const PLAIN: bool>(
        &self,
        slot: Slot<'_, CellOf<H>>,
    ) -> Result<PhysAddr, TableError> {
        // ORDERING: Relaxed, the exchange below checks the word again.
        let mut word = slot.cell.load(Ordering::Relaxed);
        loop {
            let (mask, want) = Self::any_link();
            let link = slot.level != Level::LEAF && word & mask == want;
            if word & F::PRESENT == 0 || !PLAIN && link {
                // Also when another CPU unmapped it first.
                return Err(self.no_leaf(slot, word));
            }
            let pending = match PLAIN {
                true => self.format.pending(word),
                false => self.pending_of(word),
            };
            // ORDERING: AcqRel: the flush that comes after sees the word, and what the mapper did is seen
            // here; Acquire on failure, to look again: hardware may have set a bit.
            match slot
                .cell
                .compare_exchange(word, pending, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => {
                    if !PLAIN && !Fault::SkipUnmapWriteBack.is_on() {
                        self.write_words_back(slot.word_at, 1);
                    }
                    self.memory().walker_fence();
                    return Ok(F::address(word));
                }
                Err(found) => word = found,
            }
        }
    }

    #[cold]
    fn no_leaf(&self, slot: Slot<'_, CellOf<H>>, word: u64) -> TableError {
        match self.format.decode(word, slot.level) {
            Entry::Unknown(word) => slot.damaged(word),
            _ => slot.not_mapped(),
        }
    }

    /// Gives whether the page was written by a device.
    #[inline(always)]
    pub(super) fn redeem_shared_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        size: PageSize,
    ) -> Result<bool, TableError> {
        let level = Self::level_of(at, size)?;
        let slot = self.present_slot(guard, at, level)?;
        // ORDERING: Acquire: what its pending value is about comes before.
        let word = slot.cell.load(Ordering::Acquire);
        if self.format.decode(word, level) != (Entry::Pending { to }) {
            return Err(slot.not_mapped());
        }
        // ORDERING: AcqRel: who maps the page next sees that it was emptied, with all that came before.
        slot.cell
            .compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire)
            .map_err(|_| slot.not_mapped())?;
        Ok(word & F::DIRTY != 0)
    }

    /// The word of `level` for `at`, if all links on the way are as they should be.
    #[inline(always)]
    fn leaf_slot<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        at: Iova,
        level: Level,
        link: (u64, u64),
    ) -> Option<Slot<'g, CellOf<H>>> {
        let first = at.as_u64();
        let page = match level.number() {
            1 => self.descend::<1, true, false>(guard, first, link),
            2 => self.descend::<2, true, false>(guard, first, link),
            _ => self.descend::<3, true, false>(guard, first, link),
        };
        page?.slot(Self::index(level, first), level, first)
    }

    /// The word of `level` for `at`, for who has a page there.
    #[inline(always)]
    fn present_slot<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        at: Iova,
        level: Level,
    ) -> Result<Slot<'g, CellOf<H>>, TableError> {
        self.leaf_slot(guard, at, level, Self::any_link())
            .ok_or_else(|| self.no_slot(at, level))
    }

    #[cold]
    fn no_slot(&self, at: Iova, level: Level) -> TableError {
        let last = Iova::new(at.as_u64() | (Self::span(level) - 1));
        match self.root_for(last) {
            Ok(_) => TableError::NotMapped { at },
            Err(error) => error,
        }
    }

    /// The word of `level` for `at`, and how many tables were missing on the way, which are linked now.
    #[cold]
    fn open_way<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        at: Iova,
        size: PageSize,
        level: Level,
    ) -> Result<(Slot<'g, CellOf<H>>, u64), TableError> {
        let first = at.as_u64();
        let root = self.root_for(Iova::new(first | (Self::span(level) - 1)))?;
        if level > root.level {
            // In the root's words it would be a leaf of another size.
            return Err(Self::no_such_page(at, size));
        }
        let mut table = Self::top(root, first);
        let spares = &mut self.spares();
        let mut reserved = false;
        let mut tables = 0;
        loop {
            let page = self.page(guard, table.page);
            let slot = page
                .slot(Self::index(table.level, first), table.level, first)
                .ok_or(TableError::Damaged { at, word: 0 })?;
            if table.level <= level {
                return Ok((slot, tables));
            }
            let below = table.level.below().ok_or(slot.occupied())?;
            let child = match self.open(slot)? {
                Some(child) => child,
                None => {
                    if !reserved {
                        // Where one table is missing, so are those below. What was met is met again
                        // while the guard lives, so this is all that it takes.
                        let missing = u64::from(table.level.number() - level.number());
                        spares
                            .reserve(missing)
                            .map_err(|missing| TableError::OutOfFrames { missing })?;
                        reserved = true;
                    }
                    let private = self
                        .build_empty(spares)
                        .ok_or(TableError::OutOfFrames { missing: 1 })?;
                    match self.publish(slot, private) {
                        Ok(child) => {
                            self.count_tables(1);
                            tables += 1;
                            child
                        }
                        Err(private) => {
                            spares.push(private);
                            continue;
                        }
                    }
                }
            };
            table = TableAt {
                page: child,
                level: below,
            };
        }
    }

    /// Replaces a word that several CPUs may want, or says what is in the way.
    #[inline(always)]
    fn exchange(
        &self,
        slot: Slot<'_, CellOf<H>>,
        current: u64,
        new: u64,
    ) -> Result<(), TableError> {
        let order = if Fault::SharedRelaxed.is_on() {
            // ORDERING: the deliberate fault.
            Ordering::Relaxed
        } else {
            // ORDERING: AcqRel: publishes the page's content as a leaf store does, and takes over what
            // the previous owner of the word did.
            Ordering::AcqRel
        };
        // ORDERING: Acquire on failure, only to report.
        if let Err(found) = slot
            .cell
            .compare_exchange(current, new, order, Ordering::Acquire)
        {
            return Err(self.beaten(slot, found));
        }
        if !Fault::SkipLeafWriteBack.is_on() {
            self.write_words_back(slot.word_at, 1);
        }
        self.memory().walker_fence();
        Ok(())
    }

    #[cold]
    fn beaten(&self, slot: Slot<'_, CellOf<H>>, found: u64) -> TableError {
        match self.format.decode(found, slot.level) {
            Entry::Empty => slot.not_mapped(),
            Entry::Table { .. } | Entry::Tombstone { .. } => {
                TableError::TableInTheWay { at: slot.at() }
            }
            Entry::Unknown(word) => slot.damaged(word),
            _ => slot.occupied(),
        }
    }
}
