//! How many table pages and mappings a guest may take, over all of its address spaces.

use hv_core::sync::{AtomicU64, Ordering};

use super::{AddressSpace, AddressSpaceError};
use crate::backend::Backend;
use crate::reclaim::Reclaimed;
use crate::shape::Pages;
use hv_core::{IovaRange, PageSize, PhysAddr, UserManaged};

/// How many mappings a table page has entries for.
const MAPPINGS_PER_TABLE: u64 = 512;

/// How many steps a map that meets the quota goes on looking for empty tables. Each table that an unmap may have
/// left empty is good for one more.
const STEPS_AT_ONCE: u64 = 64;

/// How far a space is with getting its empty tables back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Emptied {
    /// How many tables unmaps may have left empty, at most, since the last look began.
    since: u64,
    /// The steps that are left for a look, while one is under way.
    look: Option<u64>,
}

impl Emptied {
    /// An unmap may have left so many tables empty.
    pub(super) fn add(&mut self, tables: u64) {
        self.since = self.since.saturating_add(tables);
    }
}

/// A limit on table pages, and one on mappings, that the address spaces of a guest share, in a
/// [`Shared`](hv_core::Shared).
///
/// Maps are charged for what they may take at most, before they take anything, and settled by what the tables
/// and the list of mappings really have.
///
/// A mapping takes at most [`HEAP_PER_MAPPING`](Self::HEAP_PER_MAPPING) bytes of the hypervisor's heap in a list
/// that grows by doubling and does not shrink before its space ends, so for `n` mappings at once the list of a space
/// may hold room for `2 n`, and for `3 n` while it grows. What was unmapped and waits for a flush counts as mapped.
/// Besides, each mapping may cut a range of free addresses in two, which is one more entry for the domain.
#[derive(Debug)]
pub struct TableQuota {
    limit: u64,
    used: AtomicU64,
    mappings: u64,
    mapped: AtomicU64,
}

impl TableQuota {
    /// What bounds the heap that one mapping takes, in bytes.
    pub const HEAP_PER_MAPPING: usize = 160;

    /// A quota of `limit` pages, and of 512 mappings for each of these: as many as their entries could name, so
    /// it is the pages that bound a guest. [`with_mappings`](Self::with_mappings) where the heap is to be bounded tighter.
    pub fn new(limit: u64) -> Self {
        Self::with_mappings(limit, limit.saturating_mul(MAPPINGS_PER_TABLE))
    }

    /// A quota of `limit` pages and `mappings` mappings.
    pub fn with_mappings(limit: u64, mappings: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
            mappings,
            mapped: AtomicU64::new(0),
        }
    }

    /// The most mappings.
    pub fn mappings_limit(&self) -> u64 {
        self.mappings
    }

    /// How many mappings are charged.
    pub fn mappings_used(&self) -> u64 {
        // ORDERING: Relaxed, a figure.
        self.mapped.load(Ordering::Relaxed)
    }

    fn take_mappings(&self, needed: u64) -> Result<(), AddressSpaceError> {
        // ORDERING: Relaxed, a sum that guards nothing but itself.
        let taken = self
            .mapped
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(needed).filter(|sum| *sum <= self.mappings)
            });
        taken
            .map(drop)
            .map_err(|used| AddressSpaceError::TooManyMappings {
                needed,
                used,
                limit: self.mappings,
            })
    }

    pub(super) fn give_back_mappings(&self, mappings: u64) {
        // ORDERING: Relaxed, as in `take_mappings`.
        self.mapped.fetch_sub(mappings, Ordering::Relaxed);
    }

    /// The most table pages.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many table pages are charged.
    pub fn used(&self) -> u64 {
        // ORDERING: Relaxed, a figure.
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, needed: u64) -> Result<(), AddressSpaceError> {
        // ORDERING: Relaxed, a sum that guards nothing but itself.
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(needed).filter(|sum| *sum <= self.limit)
            });
        taken.map(drop).map_err(|used| AddressSpaceError::Quota {
            needed,
            left: self.limit.saturating_sub(used),
        })
    }

    /// What is there must be counted, also beyond the limit.
    fn add(&self, more: u64) {
        // ORDERING: Relaxed, as in `take`.
        self.used.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, pages: u64) {
        // ORDERING: Relaxed, as in `take`.
        self.used.fetch_sub(pages, Ordering::Relaxed);
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// The most table pages that mapping `span` to the frames at `to` can take.
    pub(super) fn most_tables(&self, span: IovaRange, to: PhysAddr) -> u64 {
        let table = &self.domain.core.table;
        let all = table.most_tables(span, to, span.pages(), PageSize::LARGEST);
        // The root is there.
        all.saturating_sub(1)
    }

    /// Charges `needed` more pages and `mappings` more mappings than there are and were promised, or nothing. Where
    /// the pages are used up, empty tables are given back first: those that a bounded look finds, which the next call
    /// goes on with. Without an unmap in between nothing is looked for twice, so calls that are refused cost little.
    pub(super) fn charge(&mut self, needed: u64, mappings: u64) -> Result<(), AddressSpaceError> {
        self.charge_tables(needed)?;
        let charged = self.charge_mappings(mappings);
        if charged.is_err() {
            self.settle();
        }
        charged
    }

    /// Charges `more` mappings than there are and were promised.
    pub(super) fn charge_mappings(&mut self, more: u64) -> Result<(), AddressSpaceError> {
        let wanted = (self.areas.count() as u64).saturating_add(more);
        if let Some(quota) = &self.quota {
            quota.take_mappings(wanted.saturating_sub(self.charged_mappings))?;
            self.charged_mappings = self.charged_mappings.max(wanted);
        }
        Ok(())
    }

    /// Has the charge be the mappings that there are and that were promised. All of these were charged before.
    pub(super) fn settle_mappings(&mut self) {
        let actual = self.areas.count() as u64;
        if let Some(quota) = &self.quota
            && let Some(less) = self.charged_mappings.checked_sub(actual)
        {
            quota.give_back_mappings(less);
            self.charged_mappings = actual;
        }
    }

    fn charge_tables(&mut self, needed: u64) -> Result<(), AddressSpaceError> {
        let Some(quota) = &self.quota else {
            self.charged += needed;
            return Ok(());
        };
        if quota.take(needed).is_err() {
            self.look_for_empty_tables()?;
            self.settle();
            let Some(quota) = &self.quota else {
                return Ok(());
            };
            quota.take(needed)?;
        }
        self.charged += needed;
        Ok(())
    }

    /// Goes on with a look for empty tables, or begins one if there may be any.
    fn look_for_empty_tables(&mut self) -> Result<(), AddressSpaceError> {
        let core = &self.domain.core;
        let credit = match self.emptied.look {
            Some(credit) => credit,
            None if self.emptied.since == 0 => return Ok(()),
            None => {
                core.table.reclaim_rewind();
                core::mem::take(&mut self.emptied.since)
            }
        };
        self.emptied.look = Some(0);
        if core.reclaim_some(STEPS_AT_ONCE.saturating_add(credit))? == Reclaimed::All {
            self.emptied.look = None;
        }
        Ok(())
    }

    /// Has the charge be what the tables take, and what parts of a bulk map may still take.
    pub(super) fn settle(&mut self) {
        let actual = self.domain.table_pages() + self.promised_tables;
        if let Some(quota) = &self.quota {
            match self.charged.checked_sub(actual) {
                Some(less) => quota.give_back(less),
                None => quota.add(actual - self.charged),
            }
        }
        self.charged = actual;
        self.settle_mappings();
    }
}
