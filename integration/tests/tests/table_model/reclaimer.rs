//! What a reclaimer has to do at each step, by the model, and that the engine's does just that.

#![expect(
    unsafe_code,
    reason = "tells the engine of flushes that nobody has to do here"
)]

use std::collections::BTreeSet;

use hv_core::{Iova, IovaRange, PageCount};
use hv_iommu::table::{BATCH, ReclaimStep};

use crate::subject::{Subject, TableAt, pages_of, span_of};

/// Where an attempt stands. A grace period of one thread is over at the second look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Frozen {
        looked: bool,
    },
    Unlinked,
    Retired {
        looked: bool,
    },
}

/// The model of an attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reclaimer {
    phase: Phase,
    attempt: u64,
    /// The page at which the next look begins.
    cursor: u64,
    found: bool,
    swept: bool,
    rewind: bool,
    batch: Vec<TableAt>,
    /// Tables that were taken out and wait for their flush in the word that linked them.
    pub(crate) tombstones: BTreeSet<TableAt>,
    /// Linked tables whose link is marked.
    pub(crate) frozen: BTreeSet<TableAt>,
    /// Tables that merges replaced, and which of their pages were noted as written in them.
    pub(crate) removed: Vec<(TableAt, BTreeSet<u64>)>,
    covered: usize,
    retired: usize,
}

impl Reclaimer {
    /// How many table pages it keeps that are not linked.
    pub(crate) fn waiting(&self) -> usize {
        self.tombstones.len() + self.removed.len() + self.retired
    }

    fn begin_flush(&mut self) -> ReclaimStep {
        self.phase = Phase::Unlinked;
        self.attempt += 1;
        self.covered = self.removed.len();
        self.owed()
    }

    fn owed(&self) -> ReclaimStep {
        let covered = self.removed[..self.covered].iter().map(|(table, _)| table);
        let waiting = self.batch.iter().chain(covered);
        let spans: Vec<_> = waiting.map(|table| span_of(*table)).collect();
        let first = spans.iter().map(|span| span.0).min().unwrap();
        let end = spans.iter().map(|span| span.1).max().unwrap();
        let pages = PageCount::new(end - first).unwrap();
        ReclaimStep::Flush {
            attempt: self.attempt,
            span: IovaRange::new(Iova::new(first << 12), pages).unwrap(),
        }
    }
}

impl Subject {
    /// Whether a linked table has no content: no table below it in any state, no page, no pending page.
    fn is_bare(&self, (level, prefix): TableAt) -> bool {
        let child = |table: &TableAt| table.0 + 1 == level && table.1 >> 9 == prefix;
        let below = self.linked.iter().chain(&self.reclaimer.tombstones);
        if below.chain(self.detached.values().flatten()).any(child) {
            return false;
        }
        let (first, end) = span_of((level, prefix));
        let regions = self.regions.values();
        let mut near = regions.filter(|region| region.first < end && region.end() > first);
        !near.any(|region| {
            let from = region
                .leaves
                .partition_point(|(page, leaf)| page + pages_of(*leaf) <= first);
            let mut leaves = region.leaves[from..].iter();
            leaves.any(|(page, leaf)| *leaf == level && (first..end).contains(page))
        })
    }

    /// A mapper went through all tables of at least `level` that have one of these pages, inclusive.
    pub(crate) fn opened(&mut self, first: u64, last: u64, level: u32) {
        let met = |table: &TableAt| {
            let span = span_of(*table);
            table.0 >= level && span.0 <= last && span.1 > first
        };
        let relinked: Vec<_> = self.reclaimer.tombstones.iter().copied().collect();
        for table in relinked.into_iter().filter(met) {
            self.reclaimer.tombstones.remove(&table);
            self.linked.insert(table);
        }
        self.reclaimer.frozen.retain(|table| !met(table));
    }

    /// What the next step has to be; the model takes it.
    fn next_step(&mut self) -> ReclaimStep {
        match self.reclaimer.phase {
            Phase::Idle => self.freeze(),
            Phase::Frozen { looked: false } => {
                self.reclaimer.phase = Phase::Frozen { looked: true };
                ReclaimStep::Again
            }
            Phase::Frozen { looked: true } => self.unlink(),
            Phase::Unlinked => self.reclaimer.owed(),
            Phase::Retired { looked: false } => {
                self.reclaimer.phase = Phase::Retired { looked: true };
                ReclaimStep::Again
            }
            Phase::Retired { looked: true } => {
                self.reclaimer.retired = 0;
                self.reclaimer.phase = Phase::Idle;
                ReclaimStep::Again
            }
        }
    }

    fn freeze(&mut self) -> ReclaimStep {
        let model = &mut self.reclaimer;
        if std::mem::take(&mut model.rewind) {
            model.cursor = 0;
            model.swept = false;
        }
        if std::mem::take(&mut model.swept) {
            return match std::mem::take(&mut model.found) {
                true => ReclaimStep::Swept,
                false => ReclaimStep::Done,
            };
        }
        let cursor = self.reclaimer.cursor;
        let ends_behind = |table: &&TableAt| span_of(**table).1 > cursor;
        let mut tables: Vec<_> = self.linked.iter().filter(ends_behind).copied().collect();
        // A table before those below it.
        tables.sort_by_key(|table| (span_of(*table).0, u32::MAX - table.0));
        let root = self.shape.levels;
        self.reclaimer.cursor = 0;
        self.reclaimer.swept = true;
        for table in tables.into_iter().filter(|table| table.0 != root) {
            if self.reclaimer.batch.len() == BATCH {
                self.reclaimer.cursor = span_of(table).0;
                self.reclaimer.swept = false;
                break;
            }
            if self.is_bare(table) {
                self.reclaimer.frozen.insert(table);
                self.reclaimer.batch.push(table);
            }
        }
        if !self.reclaimer.batch.is_empty() {
            self.reclaimer.phase = Phase::Frozen { looked: false };
            return ReclaimStep::Again;
        }
        if !self.reclaimer.removed.is_empty() {
            return self.reclaimer.begin_flush();
        }
        ReclaimStep::Again
    }

    fn unlink(&mut self) -> ReclaimStep {
        let mut batch = std::mem::take(&mut self.reclaimer.batch);
        batch.retain(|table| {
            if !self.linked.contains(table) || !self.reclaimer.frozen.remove(table) {
                return false;
            }
            let bare = self.is_bare(*table);
            if bare {
                self.linked.remove(table);
                self.reclaimer.tombstones.insert(*table);
            }
            bare
        });
        self.reclaimer.batch = batch;
        if self.reclaimer.batch.is_empty() && self.reclaimer.removed.is_empty() {
            self.reclaimer.phase = Phase::Idle;
            return ReclaimStep::Again;
        }
        self.reclaimer.begin_flush()
    }

    /// One step.
    pub(crate) fn reclaim(&mut self) -> ReclaimStep {
        let expected = self.next_step();
        let step = self.table.reclaim(&self.quiescence, &*self.arena);
        self.arena.check_order(self.shape.coherent);
        assert_eq!(step, expected, "{:x?}", self.reclaimer);
        self.look_for_tables();
        step
    }

    /// The flush of an attempt is done: the one that is owed, or one of before.
    pub(crate) fn flushed(&mut self, attempt: u64) {
        // SAFETY: the walker of this test keeps nothing.
        let step = unsafe {
            self.table
                .reclaim_flushed(&self.quiescence, &*self.arena, attempt)
        };
        self.arena.check_order(self.shape.coherent);
        assert_eq!(step, ReclaimStep::Again);
        let model = &mut self.reclaimer;
        if model.phase == Phase::Unlinked && model.attempt == attempt {
            for table in std::mem::take(&mut model.batch) {
                // What a mapper linked again stays, and so does what was detached.
                model.retired += usize::from(model.tombstones.remove(&table));
            }
            let replaced: Vec<_> = model.removed.drain(..model.covered).collect();
            model.retired += replaced.len();
            model.covered = 0;
            model.found |= model.retired != 0;
            model.phase = Phase::Retired { looked: false };
            for (table, written) in replaced {
                if !written.is_empty() {
                    self.written_somewhere(table);
                }
            }
        }
        self.look_for_tables();
    }

    /// The number of the last attempt.
    pub(crate) fn attempt(&self) -> u64 {
        self.reclaimer.attempt
    }

    /// The flush of an attempt failed.
    pub(crate) fn cancel(&mut self, attempt: u64) {
        let table = &self.table;
        assert!(table.reclaim_cancel(&self.quiescence, &*self.arena, attempt));
        self.arena.check_order(self.shape.coherent);
        let model = &mut self.reclaimer;
        if model.phase == Phase::Unlinked && model.attempt == attempt {
            for table in std::mem::take(&mut model.batch) {
                if model.tombstones.remove(&table) {
                    self.linked.insert(table);
                }
            }
            model.covered = 0;
            model.found = true;
            model.phase = Phase::Idle;
        }
        self.look_for_tables();
    }

    /// The next look begins at the first address.
    pub(crate) fn rewind(&mut self) {
        self.table.reclaim_rewind();
        self.reclaimer.rewind = true;
    }

    /// All steps until nothing is left: no table without content stays.
    pub(crate) fn reclaim_all(&mut self) {
        self.rewind();
        for _ in 0..10_000 {
            match self.reclaim() {
                ReclaimStep::Done => break,
                ReclaimStep::Flush { attempt, .. } => self.flushed(attempt),
                _ => {}
            }
        }
        assert_eq!(self.reclaimer.waiting(), 0, "{:x?}", self.reclaimer);
        let root = self.shape.levels;
        let bare = |table: &&TableAt| table.0 != root && self.is_bare(**table);
        assert_eq!(self.linked.iter().find(bare), None, "an empty table");
    }
}
