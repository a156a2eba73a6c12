//! How many table pages a guest may take, over all of its address spaces.

use hv_core::sync::{AtomicU64, Ordering};

use super::{AddressSpace, AddressSpaceError};
use crate::backend::Backend;
use hv_core::{IovaRange, PageSize, PhysAddr};

/// A limit on table pages that the address spaces of a guest share, in a [`Shared`](hv_core::Shared).
///
/// Maps are charged for what they may take at most, before they take anything, and settled by what the tables
/// really have.
#[derive(Debug)]
pub struct TableQuota {
    limit: u64,
    used: AtomicU64,
}

impl TableQuota {
    /// A quota of `limit` pages.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// The limit, in pages.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many pages are charged.
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

impl<B: Backend> AddressSpace<B> {
    /// The most table pages that mapping `span` to the frames at `to` can take.
    pub(super) fn most_tables(&self, span: IovaRange, to: PhysAddr) -> u64 {
        let table = &self.domain.core.table;
        let all = table.most_tables(span, to, span.pages(), PageSize::Size1G);
        // The root is there.
        all.saturating_sub(1)
    }

    /// Charges `needed` more pages. Where the quota is used up, empty tables are given back first.
    pub(super) fn charge(&mut self, needed: u64) -> Result<(), AddressSpaceError> {
        let Some(quota) = &self.quota else {
            self.charged += needed;
            return Ok(());
        };
        if quota.take(needed).is_err() {
            self.domain.reclaim()?;
            self.settle();
            let Some(quota) = &self.quota else {
                return Ok(());
            };
            quota.take(needed)?;
        }
        self.charged += needed;
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
    }
}
