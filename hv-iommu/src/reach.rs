//! Which units a domain reaches: where its flushes have to go.
//!
//! With [`order`](crate::order) it answers who may have seen an unmapped word: the loom models
//! `a_unit_that_enters_is_flushed_or_walks_after_the_unmap`,
//! `a_unit_that_enters_is_flushed_or_walks_after_the_unmap_of_another`, `a_unit_stays_as_long_as_one_device_is_on_it` and
//! `a_first_stage_that_enters_is_flushed_whole_or_walks_after_the_unmap` pin that.

use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, fence};

use crate::backend::UnitIndex;

/// The set of units that hold entries of a domain, read without a lock by every flush.
///
/// # Invariants
/// A unit's bit is set from before its first entry names the domain until after the unit forgot
/// the last one. `counts` says how many requesters are bound on each unit.
pub struct Reach {
    units: AtomicU64,
    sync_on_map: AtomicU64,
    /// Requesters that are bound to first stages on the domain, on any unit.
    nested: AtomicUsize,
    counts: Mutex<[u32; UnitIndex::LIMIT]>,
}

impl Default for Reach {
    fn default() -> Self {
        Self::new()
    }
}

impl Reach {
    /// No unit.
    pub fn new() -> Self {
        Self {
            units: AtomicU64::new(0),
            sync_on_map: AtomicU64::new(0),
            nested: AtomicUsize::new(0),
            counts: Mutex::new([0; UnitIndex::LIMIT]),
        }
    }

    /// Counts a requester that is about to be bound on `unit`.
    pub fn enter(&self, unit: UnitIndex, sync_on_map: bool) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(unit.index()) {
            *count = count.saturating_add(1);
        }
        let bit = 1 << unit.index();
        if sync_on_map {
            // ORDERING: Release, ordered for readers by the fence below.
            self.sync_on_map.fetch_or(bit, Ordering::Release);
        }
        // ORDERING: Release, ordered for readers by the fence below.
        self.units.fetch_or(bit, Ordering::Release);
        if !Fault::SkipReachFence.is_on() {
            // ORDERING: SeqCst: the bit is set before the entry that the caller writes next can be
            // walked. Pairs with the fence of `FlushOrder::begin`, see there.
            fence(Ordering::SeqCst);
        }
    }

    /// As [`enter`](Self::enter), for a requester that is about to be bound to a first stage on the domain.
    pub fn enter_nested(&self, unit: UnitIndex, sync_on_map: bool) {
        // ORDERING: Release, ordered for readers by the fence of `enter`.
        self.nested.fetch_add(1, Ordering::Release);
        self.enter(unit, sync_on_map);
    }

    /// Takes back what [`enter_nested`](Self::enter_nested) counted, after the unit forgot the entry.
    pub fn leave_nested(&self, unit: UnitIndex) {
        self.leave(unit);
        // ORDERING: Release: the unit's flush happened before the count is seen lower.
        self.nested.fetch_sub(1, Ordering::Release);
    }

    /// Whether some requester is bound to a first stage on the domain.
    #[inline]
    pub fn has_nested(&self) -> bool {
        // ORDERING: Acquire pairs with `leave_nested`; that none is missed is due to the SeqCst fences, as for
        // `units`.
        self.nested.load(Ordering::Acquire) != 0
    }

    /// Takes back what [`enter`](Self::enter) counted, after the unit forgot the entry.
    pub fn leave(&self, unit: UnitIndex) {
        let mut counts = self.counts.lock();
        let Some(count) = counts.get_mut(unit.index()) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 || Fault::LeaveForAll.is_on() {
            let bit = 1 << unit.index();
            // ORDERING: Release: the unit's flush happened before the bit is seen clear.
            self.units.fetch_and(!bit, Ordering::Release);
            // ORDERING: Release, as above.
            self.sync_on_map.fetch_and(!bit, Ordering::Release);
        }
    }

    /// The units, as they are now.
    pub fn units(&self) -> impl Iterator<Item = UnitIndex> + use<> {
        // ORDERING: Acquire pairs with `leave`; that no unit is missed is due to the SeqCst fences.
        let mut units = self.units.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            let lowest = units.trailing_zeros() as usize;
            // The lowest bit goes; of none, none.
            units &= units.wrapping_sub(1);
            UnitIndex::new(lowest)
        })
    }

    /// Whether a new mapping has to be flushed on some unit.
    #[inline]
    pub fn syncs_on_map(&self) -> bool {
        // ORDERING: Acquire, as above; no unit is missed, due to the fences here and in `enter`.
        self.sync_on_map.load(Ordering::Acquire) != 0
    }
}
