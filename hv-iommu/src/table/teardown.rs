//! The end of a table: every leaf handed out, every table page freed, in steps.

#![expect(
    unsafe_code,
    reason = "frees table pages that nothing reaches any more"
)]

use arrayvec::ArrayVec;
use hv_core::EntryCell;
use hv_core::fault::Fault;
use hv_core::sync::Ordering;
use hv_core::{PageCount, PhysAddr, PhysRange};

use super::spares::give_back;
use super::{MemoryHandle, Table};
use crate::format::{Entry, Format, Level, RootPointer};

/// Walks a closed table once, handing out what its leaves name and freeing its pages.
///
/// Stopping early loses what was not reached, and frees nothing that is still named.
///
/// # Invariants
/// `stack` holds the path of tables that are not finished, one of the root first, each with the next index. Tables of
/// the root from number `begun` on were not looked at.
pub struct Drain {
    stack: ArrayVec<(PhysAddr, Level, usize), { Level::MAX.number() as usize }>,
    root: RootPointer,
    /// The tables of the root that were begun.
    begun: u64,
    tables: u64,
    written: bool,
}

/// What a step of a drain came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStep {
    /// A leaf named these frames.
    Frames(PhysRange),
    /// As many words as asked for were looked at: call again.
    More,
    /// The table is gone.
    Done,
}

impl Drain {
    /// Begins at the root that [`Table::close`] gave.
    ///
    /// # Safety
    /// `root` came from `close` of the table that is passed to every [`step`](Self::step), every
    /// guard of that time has ended, no walker of a device reaches the table, and this is the only
    /// drain of it.
    pub unsafe fn new(root: RootPointer) -> Self {
        Self {
            stack: ArrayVec::new(),
            root,
            begun: 0,
            tables: 0,
            written: false,
        }
    }

    /// How many table pages were freed.
    pub fn tables_freed(&self) -> u64 {
        self.tables
    }

    /// Whether a device wrote what the last step handed out.
    pub fn is_written(&self) -> bool {
        self.written
    }

    /// Goes on to the next leaf, pending or not, and gives the frames that it names. Looks at no more
    /// than `words` words, so that a CPU is never held for long.
    pub fn step<F: Format, H: MemoryHandle>(
        &mut self,
        table: &Table<F, H>,
        words: usize,
    ) -> DrainStep {
        for _ in 0..words {
            let Some((page, level, index)) = self.stack.last_mut() else {
                if self.begun == self.root.tables.count() {
                    return self.free_unnamed(table);
                }
                let offset = self.begun * Table::<F, H>::TABLE_BYTES;
                let page = PhysAddr::new(self.root.page.as_u64() + offset);
                self.begun += 1;
                // The path is empty, so there is room.
                let _ = self.stack.try_push((page, self.root.level, 0));
                continue;
            };
            let (page, level, here) = (*page, *level, {
                *index += 1;
                *index - 1
            });
            // SAFETY: by the promise of `new` the table is closed and unreachable, and a page on
            // the stack has not been given back.
            let cells = unsafe { table.page_alone(page) };
            let Some(cell) = cells.cell(here) else {
                self.stack.pop();
                self.free(table, page);
                continue;
            };
            // ORDERING: Acquire pairs with the last writer's release, whichever CPU that was.
            let word = cell.load(Ordering::Acquire);
            match table.format.decode(word, level) {
                Entry::PendingTable { .. } if Fault::EndSkipsPending.is_on() => {}
                Entry::Table { page, .. }
                | Entry::Tombstone { page }
                | Entry::PendingTable { page } => {
                    if let Some(below) = level.below() {
                        // A path has as many tables as levels, so there is room.
                        let _ = self.stack.try_push((page, below, 0));
                    }
                }
                Entry::Leaf { to, .. } | Entry::Pending { to } => {
                    let Some(merged) = self.is_written_merged(table, level) else {
                        // Looked at again with the next step.
                        if let Some((.., index)) = self.stack.last_mut() {
                            *index = here;
                        }
                        return DrainStep::More;
                    };
                    let pages = PageCount::for_bytes(Table::<F, H>::span(level));
                    if let Ok(run) = PhysRange::new(to, pages.unwrap_or(PageCount::ONE)) {
                        self.written = merged || table.geometry.dirty && word & F::DIRTY != 0;
                        return DrainStep::Frames(run);
                    }
                }
                Entry::Empty | Entry::Unknown(_) => {}
            }
        }
        DrainStep::More
    }

    /// Whether a device wrote the leaf that the step is at through a table that a merge replaced, and nobody told of
    /// yet. `None` while a CPU is about to find out that the table has ended.
    ///
    /// Here and not before the end: then the leaf may have been with an owner, who was not to be disturbed.
    fn is_written_merged<F: Format, H: MemoryHandle>(
        &self,
        table: &Table<F, H>,
        level: Level,
    ) -> Option<bool> {
        if !table.geometry.dirty {
            return Some(false);
        }
        let root = match Table::<F, H>::ONE_ROOT {
            true => 0,
            false => (self.begun - 1) << Table::<F, H>::root_shift(self.root.level),
        };
        // Each index is the next one.
        let first = self.stack.iter().fold(root, |at, (_, level, index)| {
            at + Table::<F, H>::span(*level) * (*index as u64 - 1)
        });
        let last = first | (Table::<F, H>::span(level) - 1);
        table.reclaim.with(|reclaimer| {
            reclaimer.removed.iter().any(|merged| {
                let removed = &merged.removed;
                let end = removed.at | (Table::<F, H>::span(removed.level) - 1);
                let inside = removed.at <= last && end >= first && !merged.told;
                let Some(below) = removed.level.below().filter(|_| inside) else {
                    return false;
                };
                // SAFETY: by the invariant of the reclaimer no word names the page, and it was not freed: only
                // `free_unnamed` takes it from the list of a table that has ended. By the promise of `new` nothing
                // else reaches it.
                let cells = unsafe { table.page_alone(removed.page) }.cells;
                let span = Table::<F, H>::span(below);
                cells.iter().enumerate().any(|(index, cell)| {
                    let at = removed.at + span * index as u64;
                    // ORDERING: Acquire: the unit has forgotten the domain, so no more bits come.
                    at <= last
                        && at | (span - 1) >= first
                        && cell.load(Ordering::Acquire) & F::DIRTY != 0
                })
            })
        })
    }

    /// The tables that the reclaimer held when the end came.
    fn free_unnamed<F: Format, H: MemoryHandle>(&mut self, table: &Table<F, H>) -> DrainStep {
        if Fault::EndSkipsLists.is_on() {
            return DrainStep::Done;
        }
        let next = table.reclaim.with(|reclaimer| reclaimer.take_unnamed());
        match next {
            // A CPU is about to find out that the table has ended; it does nothing then.
            None => DrainStep::More,
            Some(None) => DrainStep::Done,
            Some(Some(page)) => {
                self.free(table, page);
                DrainStep::More
            }
        }
    }

    fn free<F: Format, H: MemoryHandle>(&mut self, table: &Table<F, H>, page: PhysAddr) {
        self.tables += 1;
        table.count_tables(-1);
        // SAFETY: the page is a table page of this table, reached by nobody (see `new`); the word that
        // named it was passed, or the list that did gave it up, so this is its one time.
        unsafe { give_back(table.memory(), page, Table::<F, H>::TABLE_FRAMES) };
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Frees a table that no device was ever given, with nothing mapped in it.
    pub fn discard(self) {
        if let Some(root) = self.close() {
            // SAFETY: the root came from `close` just now. `self` by value: no guard can be walking
            // this table, and its root was never given to a device.
            let mut drain = unsafe { Drain::new(root) };
            while drain.step(&self, usize::MAX) != DrainStep::Done {}
        }
    }
}
