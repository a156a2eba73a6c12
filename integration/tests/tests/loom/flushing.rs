//! Models of flushes against unmaps: a receipt opens only what its flush has seen.

use std::sync::Arc;

use hv_core::sync::{AtomicU64, Ordering};
use hv_iommu::order::FlushOrder;

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

models! {
    /// A receipt opens only what its flush has seen.
    /// Shows: bc01, bc03.
    a_flush_that_is_young_enough_saw_the_unmap: Exhaustive,
        sees ["the flush was young enough", "the flush was too old"], flush_against_unmap;
}
