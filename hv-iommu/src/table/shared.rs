//! Single pages in words that several CPUs share: every step is a compare-and-swap.

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, PageSize, Perms, PhysAddr};

use super::walk::{CellOf, Missing, Page};
use super::{MapOutcome, MemoryHandle, Table, TableError};
use crate::format::{Entry, Format, Level};
use crate::quiesce::Guard;

/// A word: its table and its index there.
type Word<'g, H> = (Page<'g, CellOf<H>>, usize);

impl<F: Format, H: MemoryHandle> Table<F, H> {
    pub(super) fn map_shared_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        perms: Perms,
        size: PageSize,
    ) -> Result<MapOutcome, TableError> {
        let mut spare = None;
        let mut tables = 0;
        let missing = Missing::Install {
            spare: &mut spare,
            installed: &mut tables,
        };
        let perms = if Fault::IgnorePermissions.is_on() {
            Perms::ReadWrite
        } else {
            perms
        };
        let mapped = self
            .shared_word(guard, at, Level::of(size), missing)
            .and_then(|(page, index)| {
                let leaf = self.format.leaf(Level::of(size), to, perms);
                self.exchange(&page, index, Level::of(size), at, 0, leaf)
            });
        self.give_back_spare(spare);
        match mapped {
            Ok(()) => Ok(MapOutcome { tables }),
            Err(TableError::OutOfFrames { .. }) => {
                let missing = self.count_missing_for_page(guard, at, to, size);
                Err(TableError::OutOfFrames { missing })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn unmap_shared_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        size: PageSize,
    ) -> Result<PhysAddr, TableError> {
        let level = Level::of(size);
        let (page, index) = self.shared_word(guard, at, level, Missing::Skip)?;
        let Some(cell) = page.cell(index) else {
            return Err(TableError::NotMapped { at });
        };
        // ORDERING: Acquire, as every read of a walk.
        let word = cell.load(Ordering::Acquire);
        match self.format.decode(word, level) {
            Entry::Leaf { to, .. } => {
                let pending = self.format.pending(level, to);
                match self.exchange(&page, index, level, at, word, pending) {
                    Ok(()) => Ok(to),
                    // Another CPU unmapped it first.
                    Err(TableError::Occupied { .. }) => Err(TableError::NotMapped { at }),
                    Err(error) => Err(error),
                }
            }
            Entry::Unknown(word) => Err(TableError::Damaged { at, word }),
            Entry::Empty | Entry::Pending { .. } | Entry::Table { .. } => {
                Err(TableError::NotMapped { at })
            }
        }
    }

    pub(super) fn redeem_shared_page(
        &self,
        guard: &Guard<'_>,
        at: Iova,
        to: PhysAddr,
        size: PageSize,
    ) -> Result<(), TableError> {
        let level = Level::of(size);
        let (page, index) = self.shared_word(guard, at, level, Missing::Skip)?;
        let pending = self.format.pending(level, to);
        self.exchange(&page, index, level, at, pending, 0)
            .map_err(|_| TableError::NotMapped { at })
    }

    /// The word of `level` for `at`.
    fn shared_word<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        at: Iova,
        level: Level,
        mut missing: Missing<'_>,
    ) -> Result<Word<'g, H>, TableError> {
        let last = at.as_u64() | (self.span(level) - 1);
        let mut table = self.root_for(Iova::new(last))?;
        let index = |level| {
            self.parts(level, at.as_u64(), at.as_u64())
                .next()
                .map_or(0, |part| part.index)
        };
        while table.level > level {
            let page = self.page(guard, table.page);
            let step = match &mut missing {
                Missing::Skip => Missing::Skip,
                Missing::Install { spare, installed } => Missing::Install { spare, installed },
            };
            let child = self.child(&page, index(table.level), table.level, at, step)?;
            let (Some(child), Some(below)) = (child, table.level.below()) else {
                return Err(TableError::NotMapped { at });
            };
            table.page = child;
            table.level = below;
        }
        Ok((self.page(guard, table.page), index(level)))
    }

    /// Replaces a word that several CPUs may want, or says what is in the way.
    fn exchange(
        &self,
        page: &Page<'_, CellOf<H>>,
        index: usize,
        level: Level,
        at: Iova,
        current: u64,
        new: u64,
    ) -> Result<(), TableError> {
        let Some(cell) = page.cell(index) else {
            return Err(TableError::Damaged { at, word: 0 });
        };
        // ORDERING: AcqRel: publishes the page's content as a leaf store does, and takes over what
        // the previous owner of the word did; Acquire on failure, only to report.
        if let Err(found) = cell.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
        {
            return Err(match self.format.decode(found, level) {
                Entry::Empty => TableError::NotMapped { at },
                Entry::Table { .. } => TableError::TableInTheWay { at },
                Entry::Unknown(word) => TableError::Damaged { at, word },
                _ => TableError::Occupied { at },
            });
        }
        let skipped = match current {
            0 => Fault::SkipLeafWriteBack,
            _ => Fault::SkipUnmapWriteBack,
        };
        if !self.geometry().coherent && !skipped.is_on() {
            self.memory()
                .write_back(page.word_at(index), size_of::<u64>() as u64);
        }
        self.memory().walker_fence();
        Ok(())
    }
}
