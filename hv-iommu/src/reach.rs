//! Which units a domain reaches: where its flushes have to go.

use hv_core::sync::{AtomicU64, Ordering, fence};
use spin::Mutex;

use crate::backend::UnitIndex;

/// The set of units that hold entries of a domain, read without a lock by every flush.
///
/// # Invariants
/// A unit's bit is set from before its first entry names the domain until after the unit forgot
/// the last one. `counts` says how many requesters are bound on each unit.
pub(crate) struct Reach {
    units: AtomicU64,
    sync_on_map: AtomicU64,
    counts: Mutex<[u32; UnitIndex::LIMIT]>,
}

impl Reach {
    pub(crate) fn new() -> Self {
        Self {
            units: AtomicU64::new(0),
            sync_on_map: AtomicU64::new(0),
            counts: Mutex::new([0; UnitIndex::LIMIT]),
        }
    }

    /// Counts a requester that is about to be bound on `unit`.
    pub(crate) fn enter(&self, unit: UnitIndex, sync_on_map: bool) {
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
        // ORDERING: SeqCst: the bit is set before the entry that the caller writes next can be
        // walked. Pairs with the fence of `FlushOrder::begin`, see there.
        fence(Ordering::SeqCst);
    }

    /// Takes back what [`enter`](Self::enter) counted, after the unit forgot the entry.
    pub(crate) fn leave(&self, unit: UnitIndex) {
        let mut counts = self.counts.lock();
        let Some(count) = counts.get_mut(unit.index()) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            let bit = 1 << unit.index();
            // ORDERING: Release: the unit's flush happened before the bit is seen clear.
            self.units.fetch_and(!bit, Ordering::Release);
            // ORDERING: Release, as above.
            self.sync_on_map.fetch_and(!bit, Ordering::Release);
        }
    }

    /// The units, as they are now.
    pub(crate) fn units(&self) -> impl Iterator<Item = UnitIndex> + use<> {
        // ORDERING: Acquire pairs with `leave`; that no unit is missed is due to the SeqCst fences.
        let units = self.units.load(Ordering::Acquire);
        (0..UnitIndex::LIMIT)
            .filter(move |index| units & (1 << index) != 0)
            .filter_map(UnitIndex::new)
    }

    /// Whether a new mapping has to be flushed on some unit.
    pub(crate) fn syncs_on_map(&self) -> bool {
        // ORDERING: Acquire, as above; no unit is missed, due to the fences here and in `enter`.
        self.sync_on_map.load(Ordering::Acquire) != 0
    }
}
