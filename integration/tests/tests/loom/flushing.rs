//! Models of flushes against unmaps: a receipt opens only what its flush has seen.

use std::sync::Arc;

use hv_core::sync::{AtomicU64, Ordering};
use hv_iommu::UnitIndex;
use hv_iommu::order::FlushOrder;
use hv_iommu::reach::Reach;

use crate::explore::{models, saw};

fn flush_against_unmap() {
    let shared = Arc::new((FlushOrder::new(), AtomicU64::new(1)));
    let flusher = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            let (order, word) = &*shared;
            let number = order.begin();
            // ORDERING: Relaxed, as weak as a walk that the flush makes begin anew can be.
            (number, word.load(Ordering::Relaxed))
        })
    };
    let (order, word) = &*shared;
    // ORDERING: Release, as the engine stores a pending word.
    word.store(0, Ordering::Release);
    let needed = order.note();
    let (number, seen) = flusher.join().unwrap();
    if number >= needed {
        saw("the flush was young enough");
        assert_eq!(seen, 0, "flush {number} opens what it has not seen");
    } else {
        saw("the flush was too old");
    }
}

/// The unit that devices come to and go from.
fn unit() -> UnitIndex {
    UnitIndex::new(0).unwrap()
}

/// A device is bound on a unit while a page is unmapped and flushed, by one CPU or by two: if the flush is young
/// enough for the unmap, the unit is flushed, or walks after the unmap.
fn bind_against_unmap_and_flush(two_cpus: bool) {
    let shared = Arc::new((FlushOrder::new(), Reach::new(), AtomicU64::new(1)));
    let binder = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            let (_, reach, word) = &*shared;
            reach.enter(unit(), false);
            // ORDERING: Relaxed: the device's entry is live from here on, and its first walk as weak as can be.
            word.load(Ordering::Relaxed)
        })
    };
    let unmap = |shared: &(FlushOrder, Reach, AtomicU64)| {
        // ORDERING: Release, as the engine stores a pending word.
        shared.2.store(0, Ordering::Release);
        shared.0.note()
    };
    let flush = |shared: &(FlushOrder, Reach, AtomicU64)| {
        let number = shared.0.begin();
        (number, shared.1.units().any(|reached| reached == unit()))
    };
    let (needed, (number, flushed)) = if two_cpus {
        let unmapper = {
            let shared = shared.clone();
            loom::thread::spawn(move || unmap(&shared))
        };
        let flushed = flush(&shared);
        (unmapper.join().unwrap(), flushed)
    } else {
        (unmap(&shared), flush(&shared))
    };
    let walked = binder.join().unwrap();
    if number < needed {
        saw("the flush was too old");
    } else if flushed {
        saw("the unit is flushed");
    } else {
        saw("the unit comes after the flush");
        assert_eq!(
            walked, 0,
            "a unit that no flush went to holds what was unmapped"
        );
    }
}

/// A device is bound to a first stage on a domain whose unit is flushed anyway, while a page is unmapped and
/// flushed: if the flush is young enough and of that page alone, the device walks after the unmap.
fn nest_against_unmap_and_flush() {
    let shared = Arc::new((FlushOrder::new(), Reach::new(), AtomicU64::new(1)));
    shared.1.enter(unit(), false);
    let binder = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            let (_, reach, word) = &*shared;
            reach.enter_nested(unit(), false);
            // ORDERING: Relaxed: the device's entry is live from here on, and its first walk as weak as can be.
            word.load(Ordering::Relaxed)
        })
    };
    let (order, reach, word) = &*shared;
    // ORDERING: Release, as the engine stores a pending word.
    word.store(0, Ordering::Release);
    let needed = order.note();
    let number = order.begin();
    let whole = reach.has_nested();
    assert!(reach.units().any(|reached| reached == unit()));
    let walked = binder.join().unwrap();
    assert!(number >= needed);
    if whole {
        saw("all of the domain is flushed");
    } else {
        saw("the page alone is flushed");
        assert_eq!(walked, 0, "a first stage leads to what was unmapped");
    }
}

/// One device leaves a unit while another one, of the same domain, comes: the flush that follows goes there.
fn one_leaves_and_one_comes() {
    let reach = Arc::new(Reach::new());
    reach.enter(unit(), true);
    let leaver = {
        let reach = reach.clone();
        loom::thread::spawn(move || reach.leave(unit()))
    };
    reach.enter(unit(), true);
    let there = || reach.units().any(|reached| reached == unit());
    assert!(
        there() && reach.syncs_on_map(),
        "the unit of a bound device was left out"
    );
    leaver.join().unwrap();
    assert!(
        there() && reach.syncs_on_map(),
        "the unit of a bound device was left out"
    );
    reach.leave(unit());
    assert!(
        !there() && !reach.syncs_on_map(),
        "a unit without devices is flushed for nothing"
    );
}

models! {
    /// A receipt opens only what its flush has seen.
    /// Shows: bc01, bc03.
    a_flush_that_is_young_enough_saw_the_unmap: Exhaustive,
        sees ["the flush was young enough", "the flush was too old"], flush_against_unmap;

    /// A unit that a domain comes to is flushed, or walks after the unmap.
    /// Shows: bc03, bc05.
    a_unit_that_enters_is_flushed_or_walks_after_the_unmap: Exhaustive,
        sees ["the unit is flushed", "the unit comes after the flush"], || {
            bind_against_unmap_and_flush(false);
        };

    /// The same when one CPU unmaps and another one flushes.
    /// Shows: bc03.
    a_unit_that_enters_is_flushed_or_walks_after_the_unmap_of_another: Three(3),
        sees ["the flush was too old", "the unit is flushed", "the unit comes after the flush"], || {
            bind_against_unmap_and_flush(true);
        };

    /// A flush is of the whole domain if a first stage on it may lead to what was unmapped.
    /// Shows: bc02, bc03.
    a_first_stage_that_enters_is_flushed_whole_or_walks_after_the_unmap: Exhaustive,
        sees ["all of the domain is flushed", "the page alone is flushed"], nest_against_unmap_and_flush;

    /// A unit is flushed as long as one device of the domain is on it.
    /// Shows: bc03.
    a_unit_stays_as_long_as_one_device_is_on_it: Exhaustive, sees [], one_leaves_and_one_comes;
}
