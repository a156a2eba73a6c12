//! A lock that is tried and never waited for: who finds it taken goes on without.

#![expect(
    unsafe_code,
    reason = "hands out the one reference to what the lock protects"
)]

use crate::fault::Fault;
use crate::sync::{AtomicBool, Ordering};

#[cfg(not(hv_loom))]
use core::cell::UnsafeCell;
#[cfg(hv_loom)]
use loom::cell::UnsafeCell;

/// A value that one CPU at a time may look at.
///
/// # Invariants
/// `taken` is true from before a reference to the value is made until after it is gone.
pub struct TryLock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `with` gives one caller at a time the value, and orders callers by `taken`, so sharing the lock
// passes the value from CPU to CPU, which `T: Send` allows.
unsafe impl<T: Send> Sync for TryLock<T> {}

/// Frees the lock, also when what ran under it unwinds.
struct Release<'l>(&'l AtomicBool);

impl Drop for Release<'_> {
    #[inline]
    fn drop(&mut self) {
        // ORDERING: Release: what was done to the value happens before the next holder looks.
        self.0
            .store(false, Fault::LockRelaxed.weakens(Ordering::Release));
    }
}

impl<T> TryLock<T> {
    /// A free lock around `value`.
    pub fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Runs `act` on the value, unless another CPU, or an interrupted caller on this one, is at it:
    /// `None` then.
    #[inline]
    pub fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        // ORDERING: Acquire pairs with `Release::drop`; Relaxed on failure, nothing is looked at.
        let taken = self
            .taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_err() && !Fault::LockIsFree.is_on() {
            return None;
        }
        let release = Release(&self.taken);
        #[cfg(not(hv_loom))]
        let result = {
            // SAFETY: `taken` was false and is true now, so by the invariant no other reference to the
            // value exists; `release` is dropped after this one is gone.
            act(unsafe { &mut *self.value.get() })
        };
        #[cfg(hv_loom)]
        let result = self.value.with_mut(|value| {
            // SAFETY: as above; loom checks it too.
            act(unsafe { &mut *value })
        });
        drop(release);
        Some(result)
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_again_afterwards() {
        let lock = TryLock::new(1);
        let inner = lock.with(|value| {
            *value += 1;
            lock.with(|value| *value)
        });
        assert_eq!(inner, Some(None));
        assert_eq!(lock.with(|value| *value), Some(2));
    }
}
