//! The atomics of all modelled code: the machine's own, or loom's under `cfg(hv_loom)`.
//!
//! Code whose interleavings are model-checked takes its atomics and fences from here and from
//! nowhere else, so that loom sees the real code.

pub use core::sync::atomic::Ordering;

#[cfg(not(hv_loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(hv_loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

/// A memory fence of the given strength.
#[cfg(not(hv_loom))]
#[inline]
pub fn fence(order: Ordering) {
    // ORDERING: the caller's, who says at the call what it separates.
    core::sync::atomic::fence(order);
}

/// A memory fence of the given strength, as a step of its own.
///
/// Loom runs a fence in one step with the access before it and would leave the orders between the
/// two unexplored; a store to a word that nobody reads makes the fence a scheduling point.
#[cfg(hv_loom)]
pub fn fence(order: Ordering) {
    loom::lazy_static! {
        static ref UNREAD: AtomicU64 = AtomicU64::new(0);
    }
    // ORDERING: Relaxed, the word is never read; only the scheduling point matters.
    UNREAD.store(0, Ordering::Relaxed);
    // ORDERING: the caller's.
    loom::sync::atomic::fence(order);
}

/// Tells the CPU, or loom's scheduler, that this thread waits for another.
#[inline]
pub fn spin_hint() {
    #[cfg(not(hv_loom))]
    core::hint::spin_loop();
    #[cfg(hv_loom)]
    loom::thread::yield_now();
}
