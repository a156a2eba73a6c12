//! Tables that merges replaced, and the dirty bits that hardware may set there until a flush.

use core::ops::ControlFlow;

use hv_core::fault::Fault;
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange};

use super::reclaim::Removed;
use super::unmap::Harvest;
use super::{MemoryHandle, Table};
use crate::format::{Entry, Format, RootPointer};
use crate::quiesce::Guard;

/// A table that a merge has replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    pub(super) removed: Removed,
    /// How many merges of the table there were before.
    pub(super) number: u64,
    /// No more dirty bits come, and those that came are in the leaf.
    pub(super) told: bool,
}

/// What a look for dirty bits has to do about merges before it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergedBits {
    /// Nothing.
    Told,
    /// Another CPU, or an interrupted caller on this one, runs a step of reclaim: ask again.
    Busy,
    /// Tables that were replaced may still get bits until a flush of this span, walk caches included:
    /// [`Table::take_merged_bits`] then.
    Waiting {
        /// Which of them the flush is for: those that were there before it.
        merges: u64,
        /// What it has to cover.
        span: IovaRange,
    },
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// Hardware may have written dirty bits into a merged table until the receipt: the leaf gets them.
    /// Whether it did, or there were none; not where the leaf went with a table that its owner detached, who
    /// may be freeing that: the owner finds the merged table by itself ([`harvest_merged`]).
    ///
    /// [`harvest_merged`]: Self::harvest_merged
    pub(super) fn harvest_removed(
        &self,
        guard: &Guard<'_>,
        root: RootPointer,
        removed: &Removed,
    ) -> bool {
        if !self.geometry.dirty || Fault::SkipLateHarvest.is_on() {
            return true;
        }
        let page = self.page(guard, removed.page);
        let dirty = page.cells.iter().any(|cell| {
            // ORDERING: Acquire: the receipt says that no more bits come.
            cell.load(Ordering::Acquire) & F::DIRTY != 0
        });
        let span = Self::span(removed.level) - 1;
        !dirty || self.mark_dirty(guard, root, (removed.at, removed.at | span))
    }

    /// What has to be done about the tables that merges replaced in a range before all dirty bits that are known
    /// are in leaves.
    pub(super) fn untold_merges(&self, range: IovaRange) -> MergedBits {
        if !self.geometry.dirty || Fault::LookSkipsMerges.is_on() {
            return MergedBits::Told;
        }
        let looked = self.reclaim.with(|reclaimer| {
            let untold = reclaimer.removed.iter().filter(|merged| {
                let last = merged.removed.at | (Self::span(merged.removed.level) - 1);
                let (first_asked, last_asked) = (range.start().as_u64(), range.last().as_u64());
                !merged.told && merged.removed.at <= last_asked && last >= first_asked
            });
            let span = Self::hull(untold.map(|merged| &merged.removed));
            span.map(|span| (reclaimer.merges, span))
        });
        match looked {
            Some(Some((merges, span))) => MergedBits::Waiting { merges, span },
            Some(None) => MergedBits::Told,
            None => MergedBits::Busy,
        }
    }

    /// The flush was there for the first `merges` merges: their bits go to the leaves in `range`. Whether it could
    /// look, as in [`harvest_merged`](Self::harvest_merged). A leaf that went with a table which its owner detached
    /// gets none: that owner finds them.
    pub(super) fn tell_merges(&self, guard: &Guard<'_>, merges: u64, range: IovaRange) -> bool {
        let told = self.reclaim.with(|reclaimer| {
            let Some(root) = self.root() else { return };
            for merged in &mut reclaimer.removed {
                let flushed = merged.number < merges;
                let last = merged.removed.at | (Self::span(merged.removed.level) - 1);
                // Where the flush that this is for went.
                let asked =
                    merged.removed.at <= range.last().as_u64() && last >= range.start().as_u64();
                if flushed && asked && !merged.told {
                    merged.told = self.harvest_removed(guard, root, &merged.removed);
                }
            }
        });
        told.is_some()
    }

    /// Tells of what a device wrote through tables that merges replaced and that no attempt has come to yet.
    /// For the owner of the span, whose receipt says that no more bits come. Whether it could look: not while
    /// a step runs on another CPU, or was interrupted on this one.
    pub(super) fn harvest_merged(
        &self,
        guard: &Guard<'_>,
        (first, last): (u64, u64),
        dirty: &mut Harvest<'_>,
    ) -> bool {
        let harvested = self.reclaim.with(|reclaimer| {
            for merged in &reclaimer.removed {
                let removed = &merged.removed;
                let end = removed.at | (Self::span(removed.level) - 1);
                // The span may be a part of what was merged: it was split since.
                let inside = removed.at <= last && end >= first && !merged.told;
                let Some(below) = removed.level.below().filter(|_| inside) else {
                    continue;
                };
                let cells = self.page(guard, removed.page).cells.iter();
                for (index, cell) in cells.enumerate() {
                    let at = removed.at + Self::span(below) * index as u64;
                    let ours = at >= first && at <= last;
                    // ORDERING: Acquire, as in `harvest_removed`.
                    if ours && cell.load(Ordering::Acquire) & F::DIRTY != 0 {
                        dirty(Iova::new(at), below);
                    }
                }
            }
        });
        harvested.is_some()
    }

    /// Marks every leaf and pending word of a span as written through. Whether all of them were in reach.
    pub(super) fn mark_dirty(
        &self,
        guard: &Guard<'_>,
        root: RootPointer,
        span: (u64, u64),
    ) -> bool {
        let mut reached = true;
        let _ = self.visit(guard, root, span, &mut |slot, word, _| {
            let mut word = word;
            // What changes meanwhile is looked at again; what was emptied was harvested by its owner.
            loop {
                match self.format.decode(word, slot.level) {
                    Entry::Leaf { .. } | Entry::Pending { .. } => {}
                    entry => {
                        reached &= !matches!(entry, Entry::PendingTable { .. });
                        break;
                    }
                }
                let dirty = word | F::NOTED;
                // ORDERING: AcqRel and Acquire: the owner sees the bit, or this CPU the owner's change.
                match slot
                    .cell
                    .compare_exchange(word, dirty, Ordering::AcqRel, Ordering::Acquire)
                {
                    Ok(_) => break,
                    Err(found) => word = found,
                }
            }
            ControlFlow::Continue(())
        });
        reached
    }
}
