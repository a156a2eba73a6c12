//! Unmapping a range that the caller owns, and emptying it once a receipt allows that.

use core::ops::ControlFlow;

use hv_core::fault::Fault;
use hv_core::platform::CacheMaintenance;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PageSize, PhysAddr};

use super::walk::{CellOf, Missing, Page, Part};
use super::{MemoryHandle, Table, TableError};
use crate::format::{Entry, Format, Level, RootPointer};
use crate::quiesce::Guard;

const WORD_BYTES: u64 = size_of::<u64>() as u64;

/// A word that is no link, as [`Table::visit`] shows it.
pub(super) struct Visit<'v, C> {
    pub(super) page: &'v Page<'v, C>,
    pub(super) part: Part,
    pub(super) level: Level,
    pub(super) entry: Entry,
}

/// Looks at one word; breaking off ends the visit.
type Visitor<'f, H> = dyn FnMut(Visit<'_, CellOf<H>>) -> ControlFlow<TableError> + 'f;

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Shows every word of `first` to `last` that links no table, in order of addresses.
    pub(super) fn visit(
        &self,
        guard: &Guard<'_>,
        table: RootPointer,
        first: u64,
        last: u64,
        show: &mut Visitor<'_, H>,
    ) -> ControlFlow<TableError> {
        let page = self.page(guard, table.page);
        for part in self.parts(table.level, first, last) {
            let at = Iova::new(part.first);
            if let Some(below) = table.level.below()
                && let Ok(Some(child)) =
                    self.child(&page, part.index, table.level, at, Missing::Skip)
            {
                let child = RootPointer {
                    page: child,
                    level: below,
                };
                self.visit(guard, child, part.first, part.last, show)?;
                continue;
            }
            let Some(cell) = page.cell(part.index) else {
                continue;
            };
            // ORDERING: Acquire, as every read of a walk.
            let word = cell.load(Ordering::Acquire);
            show(Visit {
                page: &page,
                part,
                level: table.level,
                entry: self.format.decode(word, table.level),
            })?;
        }
        ControlFlow::Continue(())
    }

    pub(super) fn vacant_range(&self, guard: &Guard<'_>, range: IovaRange) -> bool {
        let Ok(root) = self.root_for(range.last()) else {
            return false;
        };
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        self.visit(guard, root, first, last, &mut |visit| match visit.entry {
            Entry::Empty => ControlFlow::Continue(()),
            _ => ControlFlow::Break(TableError::Occupied {
                at: Iova::new(visit.part.first),
            }),
        })
        .is_continue()
    }

    pub(super) fn unmap_range(&self, guard: &Guard<'_>, range: IovaRange) {
        // An address that is too wide would lead to the words of another one.
        let Ok(root) = self.root_for(range.last()) else {
            return;
        };
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let coherent = self.geometry().coherent;
        // Words in a row of one table that are not in memory yet: one write-back for all of them.
        let mut run: Option<(PhysAddr, u64)> = None;
        // Broken off never: the visitor below always goes on.
        let _ = self.visit(guard, root, first, last, &mut |visit| {
            let Entry::Leaf { to, .. } = visit.entry else {
                return ControlFlow::Continue(());
            };
            if !visit.part.whole {
                return ControlFlow::Continue(());
            }
            if let Some(cell) = visit.page.cell(visit.part.index) {
                // ORDERING: Release, rule 3; the caller's fence before it notes the flush sequence
                // orders the store before the flush.
                cell.store(self.format.pending(visit.level, to), Ordering::Release);
            }
            if !coherent {
                let at = visit.page.word_at(visit.part.index);
                run = match run {
                    Some((from, bytes))
                        if from.checked_add(bytes) == Some(at)
                            && !at.is_aligned(PageSize::Size4K) =>
                    {
                        Some((from, bytes + WORD_BYTES))
                    }
                    before => {
                        self.write_run_back(before);
                        Some((at, WORD_BYTES))
                    }
                };
            }
            ControlFlow::Continue(())
        });
        self.write_run_back(run);
        self.memory().walker_fence();
    }

    /// Writes a run of words back: where it starts, and its bytes.
    fn write_run_back(&self, run: Option<(PhysAddr, u64)>) {
        if let Some((from, bytes)) = run
            && !Fault::SkipUnmapWriteBack.is_on()
        {
            self.memory().write_back(from, bytes);
        }
    }

    pub(super) fn redeem_range(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
    ) -> Result<PhysAddr, TableError> {
        let root = self.root_for(range.last())?;
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let mut run: Option<PhysAddr> = None;
        let checked = self.visit(guard, root, first, last, &mut |visit| {
            let at = Iova::new(visit.part.first);
            let found = match visit.entry {
                Entry::Pending { to } if visit.part.whole => to,
                Entry::Unknown(word) => {
                    return ControlFlow::Break(TableError::Damaged { at, word });
                }
                _ => return ControlFlow::Break(TableError::NotMapped { at }),
            };
            let start = *run.get_or_insert(found);
            let expected = PhysAddr::new(start.as_u64().wrapping_add(visit.part.first - first));
            if found != expected {
                return ControlFlow::Break(TableError::NotContiguous {
                    at,
                    expected,
                    found,
                });
            }
            ControlFlow::Continue(())
        });
        if let ControlFlow::Break(error) = checked {
            return Err(error);
        }
        let start = run.ok_or(TableError::NotMapped { at: range.start() })?;
        // The words are the caller's alone, so what was checked above still holds.
        let _ = self.visit(guard, root, first, last, &mut |visit| {
            if let Some(cell) = visit.page.cell(visit.part.index) {
                // ORDERING: Release, rule 3. Not written back: for a walker that does not snoop,
                // pending and empty are the same, not present.
                cell.store(0, Ordering::Release);
            }
            ControlFlow::Continue(())
        });
        Ok(start)
    }
}
