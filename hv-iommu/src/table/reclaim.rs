//! Taking empty tables out while the domain runs: mark, wait, look, unlink, flush, free.
//!
//! One attempt at a time goes through its phases in steps that any CPU may run; between steps nothing is
//! held. Rules 6 to 9 of the protocol are what it keeps.

#![expect(
    unsafe_code,
    reason = "frees table pages that a receipt and a grace period have put out of reach"
)]

use core::ops::ControlFlow;

use arrayvec::ArrayVec;
use hv_core::fault::Fault;
use hv_core::platform::{CacheMaintenance, Cpus};
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, IovaRange, PageCount, PageSize, PhysAddr};

use super::merged::Merged;
use super::root::TableAt;
use super::spares::give_back;
use super::walk::{CellOf, Page, Slot, leading_empty};
use super::{MemoryHandle, Table};
use crate::format::{Entry, Format, Level};
use crate::quiesce::{Guard, Quiescence, RetireEpoch};

/// How many tables one attempt takes out, and how many merged ones wait for it.
pub const BATCH: usize = 32;
/// How many tables one step looks at.
const LOOKS: usize = 256;

/// A table that was taken out of a word, or is about to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    /// The first address of the word that linked it.
    pub(super) at: u64,
    /// The level of that word's table.
    pub(super) level: Level,
    pub(super) page: PhysAddr,
}

/// Where an attempt stands.
#[derive(Clone, Copy)]
enum Phase {
    /// No attempt.
    Idle,
    /// All links of the batch are frozen; who went through one before is gone at this epoch.
    Frozen(RetireEpoch),
    /// Tombstones stand where empty tables were linked; a flush is owed.
    Unlinked,
    /// The tombstones are gone; who walks in the tables is gone at this epoch.
    Retired(RetireEpoch),
}

/// The state of a table's reclaim.
///
/// # Invariants
/// A page in `removed` and in `retired` is named by no word of the table and was taken from its memory;
/// it is freed once.
pub(super) struct Reclaimer {
    phase: Phase,
    /// The number of the attempt, which a receipt is for.
    attempt: u64,
    /// Where the next look begins.
    cursor: u64,
    /// Whether anything was taken out since the look began at the first address.
    found: bool,
    /// Whether the look has come to the end.
    swept: bool,
    /// The links that the attempt is about.
    batch: ArrayVec<Removed, BATCH>,
    /// Tables that the attempt took out.
    retired: ArrayVec<Removed, { 2 * BATCH }>,
    /// Tables that merges replaced: they need the same receipt and grace period.
    pub(super) removed: ArrayVec<Merged, BATCH>,
    /// Those of them that the attempt's flush covers.
    covered: usize,
    /// How many merges there were.
    pub(super) merges: u64,
}

/// What a step of reclaim left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimStep {
    /// Another CPU, or an interrupted caller on this one, runs a step.
    Busy,
    /// Nothing is left to reclaim: all of the table was looked at, and nothing found.
    Done,
    /// All of the table was looked at once, and something was taken out; tables above that may have become
    /// empty by it. Call again.
    Swept,
    /// Work was done, or other CPUs have to leave the table first: call again.
    Again,
    /// Tables were unlinked. They come back after a flush of this span, walk caches included, that is
    /// asked for after this step: [`Table::reclaim_flushed`] then, or [`Table::reclaim_cancel`].
    Flush {
        /// The attempt that the flush is for.
        attempt: u64,
        /// What it has to cover.
        span: IovaRange,
    },
}

impl Reclaimer {
    pub(super) fn new() -> Self {
        // INVARIANT: the lists are empty.
        Self {
            phase: Phase::Idle,
            attempt: 0,
            cursor: 0,
            found: false,
            swept: false,
            batch: ArrayVec::new(),
            retired: ArrayVec::new(),
            removed: ArrayVec::new(),
            covered: 0,
            merges: 0,
        }
    }

    /// Whether one more table can be kept aside.
    pub(super) fn has_room(&self) -> bool {
        !self.removed.is_full()
    }

    /// Keeps a table aside that a merge has replaced.
    pub(super) fn remove(&mut self, removed: Removed) {
        // INVARIANT: the merge's exchange took the one word that named the page. There is room: callers
        // have asked under the same lock.
        let _ = self.removed.try_push(Merged {
            removed,
            number: self.merges,
            told: false,
        });
        self.merges += 1;
    }

    /// A page that no word names and that the end of the table has to free.
    pub(super) fn take_unnamed(&mut self) -> Option<PhysAddr> {
        let merged = || self.removed.pop().map(|merged| merged.removed);
        Some(self.retired.pop().or_else(merged)?.page)
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    pub(super) fn reclaim_once(&self, quiescence: &Quiescence, cpus: &impl Cpus) -> ReclaimStep {
        let step = self.reclaim.with(|reclaimer| match reclaimer.phase {
            Phase::Idle => self.freeze_some(reclaimer, quiescence, cpus),
            Phase::Frozen(epoch) => {
                if !Fault::SkipFreezeGrace.is_on() && !quiescence.has_passed(epoch) {
                    return ReclaimStep::Again;
                }
                let guard = quiescence.pin(cpus);
                self.unlink_empty(&guard, reclaimer)
            }
            Phase::Unlinked => self.owed(reclaimer),
            Phase::Retired(epoch) => {
                if !Fault::SkipRetireGrace.is_on() && !quiescence.has_passed(epoch) {
                    return ReclaimStep::Again;
                }
                let guard = quiescence.pin(cpus);
                self.free_retired(&guard, reclaimer)
            }
        });
        step.unwrap_or(ReclaimStep::Busy)
    }

    /// Looks for tables without content and freezes the links to them.
    fn freeze_some(
        &self,
        reclaimer: &mut Reclaimer,
        quiescence: &Quiescence,
        cpus: &impl Cpus,
    ) -> ReclaimStep {
        // ORDERING: Acquire: tables that were emptied before the call to `rewind` are seen so.
        if self.rewind.swap(false, Ordering::Acquire) {
            reclaimer.cursor = 0;
            reclaimer.swept = false;
        }
        if core::mem::take(&mut reclaimer.swept) {
            return match core::mem::take(&mut reclaimer.found) {
                true => ReclaimStep::Swept,
                false => ReclaimStep::Done,
            };
        }
        let guard = quiescence.pin(cpus);
        let Some(root) = self.root() else {
            return ReclaimStep::Done;
        };
        let mut looks = LOOKS;
        let from = reclaimer.cursor;
        let mut looked = ControlFlow::Continue(());
        for (top, (first, last)) in Self::tops(root, (0, !self.beyond)) {
            if last >= from && looked.is_continue() {
                looked = self.look(&guard, top, first, from, &mut looks, reclaimer);
            }
        }
        if looked.is_continue() {
            reclaimer.cursor = 0;
            reclaimer.swept = true;
        }
        if !reclaimer.batch.is_empty() {
            // After the last freeze: whoever went through one of these links unmarked is gone then.
            reclaimer.phase = Phase::Frozen(quiescence.retire_epoch());
            return ReclaimStep::Again;
        }
        if looked.is_continue() && !reclaimer.removed.is_empty() {
            return self.begin_flush(reclaimer);
        }
        ReclaimStep::Again
    }

    /// Goes through the tables below `table` from address `from` on; stops when the batch is full or
    /// enough tables were looked at.
    fn look(
        &self,
        guard: &Guard<'_>,
        table: TableAt,
        base: u64,
        from: u64,
        looks: &mut usize,
        reclaimer: &mut Reclaimer,
    ) -> ControlFlow<()> {
        let Some(below) = table.level.below() else {
            return ControlFlow::Continue(());
        };
        let page = self.page(guard, table.page);
        let first = Self::index(table.level, from.max(base));
        for (index, cell) in page.cells.iter().enumerate().skip(first) {
            let at = base + Self::span(table.level) * index as u64;
            let Some(child) = self.peek(cell) else {
                continue;
            };
            if reclaimer.batch.is_full() || *looks == 0 {
                reclaimer.cursor = at;
                return ControlFlow::Break(());
            }
            *looks -= 1;
            let link = TableAt {
                page: child,
                level: below,
            };
            if !self.is_bare(self.page(guard, child)) {
                self.look(guard, link, at, from, looks, reclaimer)?;
                continue;
            }
            if self.freeze(cell, table.level) {
                let removed = Removed {
                    at,
                    level: table.level,
                    page: match Fault::SkipRewalk.is_on() {
                        true => table.page,
                        false => child,
                    },
                };
                // There is room, see above.
                let _ = reclaimer.batch.try_push(removed);
            }
        }
        ControlFlow::Continue(())
    }

    /// Whether a table has no content at all. Pending words and tombstones are content.
    fn is_bare(&self, page: Page<'_, CellOf<H>>) -> bool {
        // Every load is more than rule 8 needs: before the grace period this is only a guess, and after it
        // the guards that have ended have made their stores visible.
        if !Fault::PendingIsEmpty.is_on() {
            return leading_empty(page.cells) == page.cells.len();
        }
        page.cells.iter().all(|cell| {
            // ORDERING: Relaxed, the deliberate fault is another one.
            cell.load(Ordering::Relaxed) & F::PRESENT == 0
        })
    }

    /// Marks a link. Also one that is marked already: an attempt before may have left it.
    fn freeze(&self, cell: &CellOf<H>, level: Level) -> bool {
        // ORDERING: Acquire, as every read of a walk.
        let word = cell.load(Ordering::Acquire);
        match self.format.decode(word, level) {
            Entry::Table { frozen: true, .. } => true,
            Entry::Table { .. } if Fault::FreezeByStore.is_on() => {
                // ORDERING: Release; the deliberate fault is that the word may have changed.
                cell.store(word | F::FROZEN, Ordering::Release);
                true
            }
            // ORDERING: AcqRel on both sides of the mark: who thaws it sees this attempt's steps, and this
            // attempt sees what the mapper before did. Relaxed on failure: it is left alone.
            Entry::Table { .. } => cell
                .compare_exchange(word, word | F::FROZEN, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok(),
            _ => false,
        }
    }

    /// The grace period is over: takes out what is still marked and still empty.
    fn unlink_empty(&self, guard: &Guard<'_>, reclaimer: &mut Reclaimer) -> ReclaimStep {
        let Some(root) = self.root() else {
            reclaimer.batch.clear();
            reclaimer.phase = Phase::Idle;
            return ReclaimStep::Done;
        };
        let mut batch = core::mem::take(&mut reclaimer.batch);
        batch.retain(|removed| {
            if Fault::SkipRewalk.is_on() {
                let index = Self::index(removed.level, removed.at);
                let above = self.page(guard, removed.page);
                let slot = above.slot(index, removed.level, removed.at);
                return slot.is_some_and(|slot| self.unlink(guard, slot, removed));
            }
            // Walks again: the table above may have gone meanwhile, and anything else may stand there.
            self.find(guard, root, removed.at, removed.level)
                .is_some_and(|slot| self.unlink(guard, slot, removed))
        });
        reclaimer.batch = batch;
        if reclaimer.batch.is_empty() && reclaimer.removed.is_empty() {
            reclaimer.phase = Phase::Idle;
            return ReclaimStep::Again;
        }
        self.memory().walker_fence();
        self.begin_flush(reclaimer)
    }

    fn unlink(&self, guard: &Guard<'_>, slot: Slot<'_, CellOf<H>>, removed: &mut Removed) -> bool {
        // ORDERING: Acquire, as every read of a walk.
        let mut word = slot.cell.load(Ordering::Acquire);
        loop {
            let Entry::Table {
                page, frozen: true, ..
            } = self.format.decode(word, slot.level)
            else {
                return false;
            };
            let empty = self.is_bare(self.page(guard, page));
            let new = match empty {
                true if Fault::SkipTombstone.is_on() => 0,
                true => self.format.tombstone(page),
                false => word & !F::FROZEN,
            };
            // ORDERING: AcqRel: who relinks the table sees that it was empty; this attempt sees who thawed
            // it. Acquire on failure, to look again: hardware may have set a bit.
            match slot
                .cell
                .compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => {
                    if empty && !Fault::SkipUnlinkWriteBack.is_on() {
                        self.write_words_back(slot.word_at, 1);
                    }
                    removed.page = page;
                    return empty;
                }
                Err(found) => word = found,
            }
        }
    }

    fn begin_flush(&self, reclaimer: &mut Reclaimer) -> ReclaimStep {
        reclaimer.phase = Phase::Unlinked;
        reclaimer.attempt += 1;
        reclaimer.covered = reclaimer.removed.len();
        self.owed(reclaimer)
    }

    /// The flush that the attempt waits for.
    fn owed(&self, reclaimer: &Reclaimer) -> ReclaimStep {
        let covered = reclaimer.removed.iter().take(reclaimer.covered);
        let covered = covered.map(|merged| &merged.removed);
        match Self::hull(reclaimer.batch.iter().chain(covered)) {
            Some(span) => ReclaimStep::Flush {
                attempt: reclaimer.attempt,
                span,
            },
            // Not reached: there is a table, or the attempt had ended.
            None => ReclaimStep::Again,
        }
    }

    /// The addresses of these words, and what lies between.
    pub(super) fn hull<'r>(removed: impl Iterator<Item = &'r Removed>) -> Option<IovaRange> {
        let spans = removed.filter_map(|removed| {
            let pages = PageCount::for_bytes(Self::span(removed.level))?;
            IovaRange::new(Iova::new(removed.at).align_down(PageSize::Size4K), pages).ok()
        });
        spans.reduce(|hull, span| hull.hull(&span))
    }

    /// # Safety
    /// As [`Table::reclaim_flushed`].
    pub(super) unsafe fn clear_unlinked(
        &self,
        quiescence: &Quiescence,
        cpus: &impl Cpus,
        attempt: u64,
    ) -> ReclaimStep {
        let step = self.reclaim.with(|reclaimer| {
            let other = reclaimer.attempt != attempt && !Fault::OtherAttemptsReceipt.is_on();
            if !matches!(reclaimer.phase, Phase::Unlinked) || other {
                return ReclaimStep::Again;
            }
            let guard = quiescence.pin(cpus);
            let Some(root) = self.root() else {
                return ReclaimStep::Done;
            };
            for removed in reclaimer.batch.drain(..) {
                let tombstone = match Fault::SkipTombstone.is_on() {
                    true => 0,
                    false => self.format.tombstone(removed.page),
                };
                let slot = self.find(&guard, root, removed.at, removed.level);
                if let (Some(slot), true) = (slot, Fault::ClearByStore.is_on()) {
                    // ORDERING: Release; the deliberate fault is that the word may have changed.
                    slot.cell.store(0, Ordering::Release);
                    let _ = reclaimer.retired.try_push(removed);
                    continue;
                }
                // ORDERING: AcqRel: who links another table here comes after all of this attempt.
                // Relaxed on failure: whoever changed it has the table.
                let cleared = slot.is_some_and(|slot| {
                    slot.cell
                        .compare_exchange(tombstone, 0, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
                });
                if cleared || Fault::RetireLinked.is_on() {
                    // INVARIANT: the exchange took the one word that named the page. There is room: the
                    // list is empty outside of phase `Retired`, and has room for both others.
                    let _ = reclaimer.retired.try_push(removed);
                }
            }
            if Fault::CoverLateMerges.is_on() {
                reclaimer.covered = reclaimer.removed.len();
            }
            let covered = core::mem::take(&mut reclaimer.covered);
            let mut kept = ArrayVec::<Merged, BATCH>::new();
            for merged in reclaimer.removed.drain(..covered) {
                // INVARIANT: from one list to the other. There is room, see above; what is kept goes back to
                // where it came from.
                let told = merged.told || self.harvest_removed(&guard, root, &merged.removed);
                let _ = match told {
                    true => reclaimer.retired.try_push(merged.removed).is_ok(),
                    false => kept.try_push(merged).is_ok(),
                };
            }
            reclaimer.removed.extend(kept);
            drop(guard);
            reclaimer.found |= !reclaimer.retired.is_empty();
            reclaimer.phase = Phase::Retired(quiescence.retire_epoch());
            ReclaimStep::Again
        });
        step.unwrap_or(ReclaimStep::Busy)
    }

    pub(super) fn relink_unlinked(
        &self,
        quiescence: &Quiescence,
        cpus: &impl Cpus,
        attempt: u64,
    ) -> bool {
        self.reclaim
            .with(|reclaimer| {
                if !matches!(reclaimer.phase, Phase::Unlinked) || reclaimer.attempt != attempt {
                    return;
                }
                let guard = quiescence.pin(cpus);
                let Some(root) = self.root() else { return };
                for removed in &reclaimer.batch {
                    if Fault::CancelLeavesTombstones.is_on() {
                        break;
                    }
                    let tombstone = self.format.tombstone(removed.page);
                    let Some(slot) = self.find(&guard, root, removed.at, removed.level) else {
                        continue;
                    };
                    let link = self.format.table(removed.page);
                    // ORDERING: AcqRel and Acquire, as in `unlink`.
                    let linked = slot.cell.compare_exchange(
                        tombstone,
                        link,
                        Ordering::AcqRel,
                        Ordering::Acquire,
                    );
                    if linked.is_ok() && !self.geometry.coherent {
                        self.write_link_back(slot.cell, slot.word_at);
                    }
                }
                reclaimer.batch.clear();
                // They are empty tables as before: not done before they were looked at again.
                reclaimer.found = true;
                reclaimer.covered = 0;
                reclaimer.phase = Phase::Idle;
            })
            .is_some()
    }

    /// Receipt and grace period are there: gives the pages back.
    fn free_retired(&self, guard: &Guard<'_>, reclaimer: &mut Reclaimer) -> ReclaimStep {
        // A table that ended frees them itself, once this guard is gone.
        if self.root().is_none() {
            return ReclaimStep::Done;
        }
        let _ = guard;
        self.count_tables(-(reclaimer.retired.len() as i64));
        for removed in reclaimer.retired.drain(..) {
            // SAFETY: by the invariant no word names the page and it is freed once. The attempt's receipt
            // says that no walker has it cached, the grace period that no CPU walks in it.
            unsafe { give_back(self.memory(), removed.page, Self::TABLE_FRAMES) };
        }
        reclaimer.phase = Phase::Idle;
        ReclaimStep::Again
    }
}
