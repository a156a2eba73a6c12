//! Changes of what is mapped, by the owner of its range: permissions, page sizes, dirty bits.

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PageSize, Perms};

use super::map::SparesOf;
use super::reclaim::Removed;
use super::root::TableAt;
use super::unmap::Harvest;
use super::walk::{CellOf, Page, Slot, store_run};
use super::{Changed, MemoryHandle, Table, TableError};
use crate::format::{Entry, Format, Level, RootPointer};
use crate::quiesce::Guard;

/// Told of a leaf: its slot, its level and its word.
type Show<'f, C> = dyn FnMut(Slot<'_, C>, Level, u64) -> Result<(), TableError> + 'f;

impl<F: Format, H: MemoryHandle> Table<F, H> {
    pub(super) fn protect_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        perms: Perms,
    ) -> Result<Changed, TableError> {
        let mut changed = Changed::default();
        self.each_leaf(guard, range, &mut |_, level, word| {
            if let Entry::Leaf { perms: before, .. } = self.format.decode(word, level) {
                let lost = (before.readable() && !perms.readable())
                    || (before.writable() && !perms.writable());
                changed.lost |= lost;
                changed.any |= before != perms;
            }
            Ok(())
        })?;
        self.each_leaf(guard, range, &mut |slot, level, word| {
            let mut word = word;
            loop {
                let Entry::Leaf { to, .. } = self.format.decode(word, level) else {
                    return Err(slot.not_mapped());
                };
                let kept = if Fault::ProtectDropsDirty.is_on() {
                    0
                } else if Fault::ProtectCarriesDirty.is_on() {
                    word & F::DIRTY
                } else {
                    self.kept(word)
                };
                let new = self.format.leaf(level, to, perms) | kept;
                // ORDERING: AcqRel and Acquire: hardware may set its bits meanwhile; they are kept, by
                // looking again.
                match slot
                    .cell
                    .compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire)
                {
                    Ok(_) => break,
                    Err(found) => word = found,
                }
            }
            if !Fault::ProtectNotWrittenBack.is_on() {
                self.write_words_back(slot.word_at, 1);
            }
            Ok(())
        })?;
        self.memory().walker_fence();
        Ok(changed)
    }

    pub(super) fn doorbell_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
    ) -> Result<(), TableError> {
        self.each_leaf(guard, range, &mut |slot, level, word| {
            match self.format.decode(word, level) {
                Entry::Leaf { to, perms } if level == Level::LEAF => {
                    // ORDERING: Release, like every leaf; nobody else has the word, and no hardware walks yet.
                    slot.cell
                        .store(self.format.doorbell(to, perms), Ordering::Release);
                }
                _ => return Err(slot.not_mapped()),
            }
            self.write_words_back(slot.word_at, 1);
            Ok(())
        })?;
        self.memory().walker_fence();
        Ok(())
    }

    /// What hardware noted in a leaf, as the leaf that takes its place has to have it, whatever that one permits.
    #[inline]
    fn kept(&self, word: u64) -> u64 {
        word & F::ACCESSED | self.format.noted(word)
    }

    /// Shows every leaf of a range that is mapped throughout, by whole leaves.
    fn each_leaf(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        show: &mut Show<'_, CellOf<H>>,
    ) -> Result<(), TableError> {
        let root = self.root_for(range.last())?;
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let mut at = first;
        loop {
            let slot = self.leaf_word(guard, root, at)?;
            // ORDERING: Acquire, as every read of a walk.
            let word = slot.cell.load(Ordering::Acquire);
            let end = at | (Self::span(slot.level) - 1);
            if at & (Self::span(slot.level) - 1) != 0 || end > last {
                return Err(slot.not_mapped());
            }
            show(slot, slot.level, word)?;
            if end >= last {
                return Ok(());
            }
            at = end + 1;
        }
    }

    /// The word of the leaf that `at` goes through.
    fn leaf_word<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        root: RootPointer,
        at: u64,
    ) -> Result<Slot<'g, CellOf<H>>, TableError> {
        let not_mapped = TableError::NotMapped { at: Iova::new(at) };
        let mut table = Self::top(root, at);
        loop {
            let page = self.page(guard, table.page);
            let slot = page
                .slot(Self::index(table.level, at), table.level, at)
                .ok_or(not_mapped)?;
            // ORDERING: Acquire, as every read of a walk.
            let word = slot.cell.load(Ordering::Acquire);
            match self.format.decode(word, table.level) {
                Entry::Table { page, .. } => {
                    let level = table.level.below().ok_or(not_mapped)?;
                    table = TableAt { page, level };
                }
                Entry::Leaf { .. } => return Ok(slot),
                Entry::Unknown(word) => return Err(slot.damaged(word)),
                _ => return Err(not_mapped),
            }
        }
    }

    /// Replaces the leaf of `size` at `at` by a table of leaves one size smaller.
    pub(super) fn split_leaf(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        size: PageSize,
        spares: &mut SparesOf<'_, H>,
    ) -> Result<(), TableError> {
        if !self.geometry.live_resize {
            return Err(TableError::Breaks { at });
        }
        let level = Self::level_of(at, size)?;
        let Some(below) = level.below() else {
            return Err(TableError::NotMapped { at });
        };
        let root = self.root_for(at)?;
        let slot = self
            .find(guard, root, at.as_u64(), level)
            .ok_or(TableError::NotMapped { at })?;
        spares
            .reserve(1)
            .map_err(|missing| TableError::OutOfFrames { missing })?;
        let private = spares
            .take()
            .ok_or(TableError::OutOfFrames { missing: 1 })?;
        let page = self.private_page(&private);
        // ORDERING: Acquire, as every read of a walk.
        let mut word = slot.cell.load(Ordering::Acquire);
        loop {
            let Entry::Leaf { to, perms } = self.format.decode(word, level) else {
                spares.push(private);
                return Err(slot.not_mapped());
            };
            // What hardware noted of the whole holds for each part, as far as anybody knows.
            let noted = if Fault::SplitDropsDirty.is_on() {
                0
            } else {
                self.kept(word)
            };
            let further = u64::from(Fault::SplitShifts.is_on()) * Self::span(below);
            let first = (self.format.leaf(below, to, perms) | noted).wrapping_add(further);
            let apart = match Fault::SplitBySmallPages.is_on() {
                true => PageSize::Size4K.bytes() << (9 * (below.number() - 1)),
                false => Self::span(below),
            };
            store_run(page.cells, first, apart);
            if Fault::SplitWithGap.is_on() {
                // ORDERING: Release, as every store of a leaf.
                slot.cell.store(0, Ordering::Release);
                word = 0;
            }
            if !Fault::SkipTableWriteBack.is_on() && !Fault::SplitNotWrittenBack.is_on() {
                self.write_words_back(page.at, page.cells.len());
            }
            self.memory().walker_fence();
            let link = self.format.table(private.at());
            if Fault::SplitByStore.is_on() {
                // ORDERING: Release; the deliberate fault is that hardware may have set a bit.
                slot.cell.store(link, Ordering::Release);
                break;
            }
            // ORDERING: AcqRel publishes the table's words; Acquire on failure: hardware has set a bit,
            // which the table has to have too.
            match slot
                .cell
                .compare_exchange(word, link, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(found) => word = found,
            }
        }
        self.count_tables(1);
        if !self.geometry.coherent {
            self.write_link_back(slot.cell, slot.word_at);
        }
        Ok(())
    }

    /// Replaces the table that maps all of a page of `size` at `at` to one run by one leaf. The table is
    /// kept aside for the reclaimer's next receipt.
    pub(super) fn merge_table(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        size: PageSize,
    ) -> Result<(), TableError> {
        if !self.geometry.live_resize {
            return Err(TableError::Breaks { at });
        }
        let level = Self::level_of(at, size)?;
        let (root, Some(below)) = (self.root_for(at)?, level.below()) else {
            return Err(TableError::NotMapped { at });
        };
        if level > self.geometry.largest_leaf || at.as_u64() & (Self::span(level) - 1) != 0 {
            return Err(TableError::NotMapped { at });
        }
        let slot = self
            .find(guard, root, at.as_u64(), level)
            .ok_or(TableError::NotMapped { at })?;
        let merged = self.reclaim.with(|reclaimer| {
            if !reclaimer.has_room() {
                return Err(TableError::ReclaimPending { at });
            }
            // ORDERING: Acquire, as every read of a walk.
            let mut word = slot.cell.load(Ordering::Acquire);
            loop {
                let Entry::Table { page, .. } = self.format.decode(word, level) else {
                    return Err(slot.not_mapped());
                };
                let leaf = self.common_leaf(self.page(guard, page), level, below, at)?;
                if Fault::MergeWithGap.is_on() {
                    // ORDERING: Release, as every store of a leaf.
                    slot.cell.store(0, Ordering::Release);
                    self.memory().walker_fence();
                    word = 0;
                }
                // ORDERING: AcqRel and Acquire: a reclaimer may have marked the link meanwhile, or
                // hardware a bit in it.
                match slot
                    .cell
                    .compare_exchange(word, leaf, Ordering::AcqRel, Ordering::Acquire)
                {
                    Ok(_) => {
                        // In memory before the reclaimer can ask for a flush that counts: a walker that
                        // reads the old link after that flush would keep a table that is freed.
                        if !Fault::MergeNotWrittenBack.is_on() {
                            self.write_words_back(slot.word_at, 1);
                        }
                        self.memory().walker_fence();
                        reclaimer.remove(Removed {
                            at: at.as_u64(),
                            level,
                            page,
                        });
                        return Ok(());
                    }
                    Err(found) => word = found,
                }
            }
        });
        merged.unwrap_or(Err(TableError::ReclaimPending { at }))
    }

    /// The leaf of `level` that means what all of a table's words mean.
    fn common_leaf(
        &self,
        page: Page<'_, CellOf<H>>,
        level: Level,
        below: Level,
        at: Iova,
    ) -> Result<u64, TableError> {
        let mut noted = 0;
        let mut common = None;
        for (index, cell) in page.cells.iter().enumerate() {
            // ORDERING: Acquire, to see what hardware noted.
            let word = cell.load(Ordering::Acquire);
            let offset = Self::span(below).wrapping_mul(index as u64);
            let Entry::Leaf { to, perms } = self.format.decode(word, below) else {
                return Err(TableError::NotMapped {
                    at: Iova::new(at.as_u64().wrapping_add(offset)),
                });
            };
            let (start, first_perms) = *common.get_or_insert((to, perms));
            let expected = hv_core::PhysAddr::new(start.as_u64().wrapping_add(offset));
            if to != expected
                || perms != first_perms
                || start.as_u64() & (Self::span(level) - 1) != 0
            {
                return Err(TableError::NotContiguous {
                    at: Iova::new(at.as_u64().wrapping_add(offset)),
                    expected,
                    found: to,
                });
            }
            noted |= self.kept(word);
        }
        let (to, perms) = common.ok_or(TableError::NotMapped { at })?;
        if Fault::MergeDropsDirty.is_on() {
            noted = 0;
        }
        Ok(self.format.leaf(level, to, perms) | noted)
    }

    /// Shows every leaf of a range that a device wrote through; with `clear`, forgets that it did.
    pub(super) fn dirty_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        clear: bool,
        dirty: &mut Harvest<'_>,
    ) {
        let Some((root, part)) = self.within(range).filter(|_| self.geometry.dirty) else {
            return;
        };
        self.visit_leaves(guard, root, part, &mut |slot, word| {
            let before = if clear && Fault::ClearDirtyByStore.is_on() {
                // ORDERING: Release; the deliberate fault is that hardware may have set the bit.
                slot.cell.store(word & !F::DIRTY, Ordering::Release);
                word
            } else if clear && word & F::DIRTY != 0 {
                // ORDERING: AcqRel: the device's write comes before whoever is told of it, and the bit
                // is clear before the flush that has to follow.
                slot.cell.fetch_and(!F::DIRTY, Ordering::AcqRel)
            } else {
                word
            };
            if before & F::DIRTY != 0 {
                dirty(slot.at(), slot.level);
            }
        });
        self.memory().walker_fence();
    }
}
