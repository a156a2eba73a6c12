//! Which flushes began after which unmaps: one counter per domain.
//!
//! An unmap stores its pending words and then [`note`](FlushOrder::note)s the counter; a flush
//! [`begin`](FlushOrder::begin)s and then has the units look. A flush whose number is not below the
//! noted one saw the words: the loom model `a_flush_that_is_young_enough_saw_the_unmap` pins that.

use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, Ordering, fence};

/// The flushes of one domain, counted.
pub struct FlushOrder {
    begun: AtomicU64,
}

impl Default for FlushOrder {
    fn default() -> Self {
        Self::new()
    }
}

impl FlushOrder {
    /// No flush began yet.
    pub fn new() -> Self {
        Self {
            begun: AtomicU64::new(0),
        }
    }

    /// Gives the flush that begins its number. What it does to the units comes after this call.
    pub fn begin(&self) -> u64 {
        // ORDERING: AcqRel puts flushes and the unmaps that note this counter in one order.
        let number = self.begun.fetch_add(1, Ordering::AcqRel);
        // ORDERING: SeqCst pairs with the fence of `note`: an unmap that noted this number or a lower
        // one has its words visible to what comes after this fence. It pairs with the fence of
        // `Reach::enter` too: either the flush sees the unit that is entering, or that unit's walks,
        // which begin after its fence, see the words.
        if !Fault::SkipFlushFence.is_on() {
            fence(Ordering::SeqCst);
        }
        number
    }

    /// The number of the first flush that is young enough for words stored before this call.
    #[inline]
    pub fn note(&self) -> u64 {
        // ORDERING: SeqCst: the words are visible before the counter is read; pairs with `begin`.
        if !Fault::SkipNoteFence.is_on() {
            fence(Ordering::SeqCst);
        }
        // ORDERING: Relaxed, ordered by the fence.
        self.begun.load(Ordering::Relaxed)
    }
}
