//! Looking at what is mapped in a range, in order of addresses.

use core::ops::ControlFlow;

use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange};

use super::root::TableAt;
use super::walk::{CellOf, Slot};
use super::{Mapping, MemoryHandle, Table};
use crate::format::{Entry, Format, RootPointer};
use crate::quiesce::Guard;

/// Told of a word that links no table: its slot, the word and what it means. Breaking off ends the visit.
type Visitor<'f, C> = dyn FnMut(Slot<'_, C>, u64, Entry) -> ControlFlow<()> + 'f;

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Shows every word of a range, which the table translates, that links no table and is not empty, and what it is.
    pub(super) fn visit(
        &self,
        guard: &Guard<'_>,
        root: RootPointer,
        range: (u64, u64),
        show: &mut Visitor<'_, CellOf<H>>,
    ) -> ControlFlow<()> {
        for (top, part) in Self::tops(root, range) {
            self.visit_table(guard, top, part, show)?;
        }
        ControlFlow::Continue(())
    }

    fn visit_table(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
        (first, last): (u64, u64),
        show: &mut Visitor<'_, CellOf<H>>,
    ) -> ControlFlow<()> {
        let page = self.page(guard, table.page);
        let span = Self::span(table.level);
        let mut at = first;
        let end = Self::index(table.level, last);
        for index in Self::index(table.level, first)..=end {
            let Some(slot) = page.slot(index, table.level, at) else {
                return ControlFlow::Continue(());
            };
            let part = at | (span - 1);
            // ORDERING: Acquire, as every read of a walk.
            let word = slot.cell.load(Ordering::Acquire);
            match (self.format.decode(word, table.level), table.level.below()) {
                (Entry::Empty, _) => {}
                (Entry::Table { page, .. }, Some(level)) => {
                    let child = TableAt { page, level };
                    self.visit_table(guard, child, (at, part.min(last)), show)?;
                }
                (entry, _) => show(slot, word, entry)?,
            }
            at = part.wrapping_add(1);
        }
        ControlFlow::Continue(())
    }

    /// Shows every leaf of `first` to `last`, also those that reach beyond.
    pub(super) fn visit_leaves(
        &self,
        guard: &Guard<'_>,
        root: RootPointer,
        range: (u64, u64),
        show: &mut dyn FnMut(Slot<'_, CellOf<H>>, u64),
    ) {
        // Broken off never: the visitor always goes on.
        let _ = self.visit(guard, root, range, &mut |slot, word, entry| {
            if let Entry::Leaf { .. } = entry {
                show(slot, word);
            }
            ControlFlow::Continue(())
        });
    }

    /// The root, and the part of a range that the table translates, if it does any.
    pub(super) fn within(&self, range: IovaRange) -> Option<(RootPointer, (u64, u64))> {
        let root = self.root()?;
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let translated = !self.beyond;
        (first <= translated).then_some((root, (first, last.min(translated))))
    }

    /// Whether nothing is mapped or pending in a range. What is left of tables does not count.
    pub(super) fn vacant_range(&self, guard: &Guard<'_>, range: IovaRange) -> bool {
        let Ok(root) = self.root_for(range.last()) else {
            return false;
        };
        let part = (range.start().as_u64(), range.last().as_u64());
        self.visit(guard, root, part, &mut |_, _, entry| match entry {
            Entry::Empty | Entry::Tombstone { .. } => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        })
        .is_continue()
    }

    pub(super) fn mappings_in(
        &self,
        guard: &Guard<'_>,
        range: IovaRange,
        show: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some((root, part)) = self.within(range) else {
            return ControlFlow::Continue(());
        };
        self.visit(guard, root, part, &mut |slot, _, entry| match entry {
            Entry::Leaf { to, perms } => show(Mapping {
                at: Iova::new(slot.first & !(Self::span(slot.level) - 1)),
                to,
                perms,
                level: slot.level,
            }),
            _ => ControlFlow::Continue(()),
        })
    }
}
