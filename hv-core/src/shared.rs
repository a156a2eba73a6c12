//! A reference-counted pointer whose allocation can fail.
//!
//! The standard `Arc` aborts when memory is out; the control path must report that instead.

#![expect(unsafe_code, reason = "a counted pointer owns its allocation by hand")]

use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

use thiserror::Error;

use crate::sync::{AtomicUsize, Ordering, fence};

/// The control path's heap is exhausted; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("out of heap memory: {bytes} bytes were asked for")]
pub struct OutOfMemory {
    /// The size of the failed request.
    pub bytes: usize,
}

struct Counted<T> {
    owners: AtomicUsize,
    value: T,
}

/// Shared ownership of a heap value, as `Arc` without weak references.
///
/// # Invariants
/// `inner` was allocated with the layout of `Counted<T>`, is initialised, and `owners` is the
/// number of `Shared` values that point to it.
pub struct Shared<T> {
    inner: NonNull<Counted<T>>,
    owns: PhantomData<Counted<T>>,
}

// SAFETY: a `Shared` gives `&T` on any thread that holds a clone (needs `T: Sync`) and drops `T`
// on whichever thread lets go last (needs `T: Send`); the count is atomic.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: `&Shared<T>` can be cloned into an owner on another thread: same needs as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Moves `value` to the heap.
    ///
    /// # Errors
    /// [`OutOfMemory`] with the value, when the heap is exhausted.
    pub fn try_new(value: T) -> Result<Self, (T, OutOfMemory)> {
        let layout = Layout::new::<Counted<T>>();
        // SAFETY: `Counted<T>` holds an atomic and so is not zero-sized.
        let raw = unsafe { alloc(layout) };
        let Some(inner) = NonNull::new(raw.cast::<Counted<T>>()) else {
            return Err((
                value,
                OutOfMemory {
                    bytes: layout.size(),
                },
            ));
        };
        let counted = Counted {
            owners: AtomicUsize::new(1),
            value,
        };
        // SAFETY: freshly allocated with this type's layout, so valid for one write and aligned.
        unsafe { inner.write(counted) };
        // INVARIANT: allocated and initialised above; this is the one owner that it counts.
        Ok(Self {
            inner,
            owns: PhantomData,
        })
    }

    /// Whether both point to the same value.
    pub fn ptr_eq(left: &Self, right: &Self) -> bool {
        left.inner == right.inner
    }

    /// Whether this is the only owner.
    ///
    /// Another owner may be dropped at any moment, so only `true` is a lasting answer.
    pub fn is_sole_owner(this: &Self) -> bool {
        // ORDERING: Acquire pairs with the Release decrement of the owner that left, so what it
        // did to the value has happened.
        this.counted().owners.load(Ordering::Acquire) == 1
    }

    /// Takes the value out, if this is the only owner.
    ///
    /// # Errors
    /// The pointer, while others own the value too.
    pub fn try_unwrap(this: Self) -> Result<T, Self> {
        if !Self::is_sole_owner(&this) {
            return Err(this);
        }
        let this = core::mem::ManuallyDrop::new(this);
        // SAFETY: `this` was the sole owner, so no other thread can reach the value or make a new
        // owner; the value is read once, and `this` is never dropped.
        let counted = unsafe { this.inner.read() };
        // SAFETY: allocated by `try_new` with this layout, and not used after this.
        unsafe {
            dealloc(
                this.inner.as_ptr().cast::<u8>(),
                Layout::new::<Counted<T>>(),
            )
        };
        Ok(counted.value)
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: by the invariant `inner` is initialised and lives while any owner does, which
        // `self` is; only shared references to it exist.
        unsafe { self.inner.as_ref() }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // ORDERING: Relaxed, a new owner needs no order: it is made from a live one, and handing
        // it to another thread synchronises by itself.
        let before = self.counted().owners.fetch_add(1, Ordering::Relaxed);
        // A count this high can only come from forgotten clones in a loop; wrapping it would free
        // a live value, so leak instead of counting on.
        if before > usize::MAX / 2 {
            // ORDERING: Relaxed, keeps the count saturated near the half, far from zero.
            self.counted()
                .owners
                .store(usize::MAX / 2, Ordering::Relaxed);
        }
        Self {
            inner: self.inner,
            owns: PhantomData,
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // ORDERING: Release publishes this owner's last use of the value to the one that frees it.
        if self.counted().owners.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // ORDERING: Acquire, pairs with the Release decrements above: every use of the value by
        // former owners has happened before it is dropped.
        fence(Ordering::Acquire);
        // SAFETY: the count fell to zero, so this is the last owner and nobody else can reach the
        // value; it is initialised and dropped once.
        unsafe { core::ptr::drop_in_place(self.inner.as_ptr()) };
        // SAFETY: allocated by `try_new` with this layout, and not used after this.
        unsafe {
            dealloc(
                self.inner.as_ptr().cast::<u8>(),
                Layout::new::<Counted<T>>(),
            )
        };
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn value_is_dropped_by_the_last_owner_only() {
        let witness = Arc::new(());
        let first = Shared::try_new(Arc::clone(&witness)).unwrap();
        let second = first.clone();
        assert!(!Shared::is_sole_owner(&first));
        drop(first);
        assert_eq!(Arc::strong_count(&witness), 2);
        assert!(Shared::is_sole_owner(&second));
        drop(second);
        assert_eq!(Arc::strong_count(&witness), 1);
    }

    #[test]
    fn only_a_sole_owner_gets_the_value_out() {
        let witness = Arc::new(());
        let first = Shared::try_new(Arc::clone(&witness)).unwrap();
        let second = first.clone();
        let first = Shared::try_unwrap(first).unwrap_err();
        drop(second);
        let value = Shared::try_unwrap(first).unwrap();
        assert_eq!(Arc::strong_count(&value), 2);
    }

    #[test]
    fn clones_cross_threads() {
        let shared = Shared::try_new(core::sync::atomic::AtomicU64::new(0)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let mine = shared.clone();
                scope.spawn(move || {
                    for _ in 0..1000 {
                        // ORDERING: Relaxed, only the sum counts.
                        mine.clone().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        // ORDERING: Relaxed, the threads were joined.
        assert_eq!(shared.load(Ordering::Relaxed), 4000);
        assert!(Shared::is_sole_owner(&shared));
    }
}
