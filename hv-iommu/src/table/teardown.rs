//! The end of a table: every leaf handed out, every table page freed, in steps.

#![expect(
    unsafe_code,
    reason = "frees table pages that nothing reaches any more"
)]

use arrayvec::ArrayVec;
use hv_core::EntryCell;
use hv_core::sync::Ordering;
use hv_core::{PhysAddr, PhysRange};

use super::walk::give_back;
use super::{MemoryHandle, Table};
use crate::format::{Entry, Format, Level, RootPointer};

/// Walks a closed table once, handing out what its leaves name and freeing its pages.
///
/// Stopping early loses what was not reached, and frees nothing that is still named.
///
/// # Invariants
/// `stack` holds the path of tables that are not finished, root first, each with the next index.
pub struct Drain {
    stack: ArrayVec<(PhysAddr, Level, usize), { Level::MAX.number() as usize }>,
    tables: u64,
}

impl Drain {
    /// Begins at the root that [`Table::close`] gave.
    ///
    /// # Safety
    /// `root` came from `close` of the table that is passed to every [`step`](Self::step), every
    /// guard of that time has ended, no walker of a device reaches the table, and this is the only
    /// drain of it.
    pub unsafe fn new(root: RootPointer) -> Self {
        let mut stack = ArrayVec::new();
        stack.push((root.page, root.level, 0));
        Self { stack, tables: 0 }
    }

    /// How many table pages were freed.
    pub fn tables_freed(&self) -> u64 {
        self.tables
    }

    /// Goes on to the next leaf, pending or not, and gives the frames that it names; `None` when
    /// the table is gone.
    pub fn step<F: Format, H: MemoryHandle>(&mut self, table: &Table<F, H>) -> Option<PhysRange> {
        loop {
            let (page, level, index) = self.stack.last_mut()?;
            let (page, level, here) = (*page, *level, {
                *index += 1;
                *index - 1
            });
            // SAFETY: by the promise of `new` the table is closed and unreachable, and a page on
            // the stack has not been given back.
            let words = unsafe { table.page_alone(page) };
            let Some(cell) = words.cell(here) else {
                self.stack.pop();
                self.tables += 1;
                // SAFETY: the page is a table page of this table, reached by nobody (see above);
                // popping it makes this its one time.
                unsafe { give_back(table.memory(), page) };
                continue;
            };
            // ORDERING: Acquire pairs with the last writer's release, whichever CPU that was.
            let word = cell.load(Ordering::Acquire);
            match table.format.decode(word, level) {
                Entry::Table { page, .. } => {
                    if let Some(below) = level.below() {
                        // A path has as many tables as levels, so there is room.
                        let _ = self.stack.try_push((page, below, 0));
                    }
                }
                Entry::Leaf { to, .. } | Entry::Pending { to } => {
                    if let Ok(run) = PhysRange::new(to, table.pages(level)) {
                        return Some(run);
                    }
                }
                Entry::Empty | Entry::Unknown(_) => {}
            }
        }
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Frees a table that no device was ever given, with nothing mapped in it.
    pub fn discard(self) {
        if let Some(root) = self.close() {
            // SAFETY: the root came from `close` just now. `self` by value: no guard can be walking
            // this table, and its root was never given to a device.
            let mut drain = unsafe { Drain::new(root) };
            while drain.step(&self).is_some() {}
        }
    }

    /// Frees a page that was taken for a link and never linked.
    pub(super) fn give_back_spare(&self, spare: Option<PhysAddr>) {
        if let Some(page) = spare {
            // SAFETY: a spare came from `new_table` on this memory and lost every race it was in, so
            // no word ever named it; it was taken out of its place just now.
            unsafe { give_back(self.memory(), page) };
        }
    }
}
