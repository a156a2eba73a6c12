//! The atomics of all modelled code: the machine's own, or loom's under `cfg(hv_loom)`.
//!
//! Code whose interleavings are model-checked takes its atomics and fences from here and from
//! nowhere else, so that loom sees the real code.

pub use core::sync::atomic::Ordering;

#[cfg(not(hv_loom))]
pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};
#[cfg(hv_loom)]
pub use modelled::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

#[cfg(hv_loom)]
pub use modelled_lock::{Mutex, MutexGuard};
/// A short lock: of the control path, never held across a wait for hardware.
#[cfg(not(hv_loom))]
pub use spin::{Mutex, MutexGuard};

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

#[cfg(hv_loom)]
mod modelled {
    //! Loom's atomics with loads that loom orders against each other.
    //!
    //! To decide which orders to explore, loom remembers only the last access to an atomic. A thread that
    //! loads and then stores hides the loads of others before it, and loom never tries its store in
    //! front of theirs (loom issues 166 and 392). A store to a word of its own before each load makes
    //! loads depend on each other, so that the last access stands for all earlier ones.

    use core::ops::Deref;

    use super::Ordering;

    macro_rules! modelled {
        ($name:ident, $value:ty) => {
            /// The atomic of this name for loom.
            #[derive(Debug)]
            pub struct $name {
                word: loom::sync::atomic::$name,
                loaded: loom::sync::atomic::AtomicBool,
            }

            impl $name {
                /// An atomic that holds `value`.
                #[track_caller]
                pub fn new(value: $value) -> Self {
                    Self {
                        word: loom::sync::atomic::$name::new(value),
                        loaded: loom::sync::atomic::AtomicBool::new(false),
                    }
                }

                /// Reads the value.
                #[track_caller]
                pub fn load(&self, order: Ordering) -> $value {
                    // ORDERING: Relaxed, never read; only the step matters.
                    self.loaded.store(true, Ordering::Relaxed);
                    // ORDERING: the caller's.
                    self.word.load(order)
                }

                /// Writes the value.
                #[track_caller]
                pub fn store(&self, value: $value, order: Ordering) {
                    // ORDERING: the caller's.
                    self.word.store(value, order);
                }

                /// Replaces the value and gives the one before.
                #[track_caller]
                pub fn swap(&self, value: $value, order: Ordering) -> $value {
                    // ORDERING: the caller's.
                    self.word.swap(value, order)
                }

                /// Sets bits and gives the value before.
                #[track_caller]
                pub fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                    // ORDERING: the caller's.
                    self.word.fetch_or(bits, order)
                }

                /// Clears the bits that are not given, and gives the value before.
                #[track_caller]
                pub fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                    // ORDERING: the caller's.
                    self.word.fetch_and(bits, order)
                }

                /// Replaces `current` by `new`, or gives the value that was there instead.
                ///
                /// # Errors
                /// The value found, when it was not `current`.
                #[track_caller]
                pub fn compare_exchange(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    // ORDERING: the caller's.
                    self.word.compare_exchange(current, new, success, failure)
                }
            }

            // What else an atomic can do reads and writes, and is loom's own.
            impl Deref for $name {
                type Target = loom::sync::atomic::$name;
                fn deref(&self) -> &Self::Target {
                    &self.word
                }
            }
        };
    }

    modelled!(AtomicBool, bool);
    modelled!(AtomicU32, u32);
    modelled!(AtomicU64, u64);
    modelled!(AtomicUsize, usize);
}

#[cfg(hv_loom)]
mod modelled_lock {
    //! Loom's lock with the interface of the one that it stands for: a thread that spins would never let
    //! another one of the model run.

    use core::fmt;

    pub use loom::sync::MutexGuard;

    /// The lock for loom.
    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A lock around `value`, free.
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        /// Waits until the lock is had.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            match self.0.lock() {
                Ok(guard) => guard,
                // Loom ends the execution in which a thread panicked.
                Err(poisoned) => poisoned.into_inner(),
            }
        }

        /// The value, of a lock that nobody else can have.
        pub fn into_inner(self) -> T {
            match self.0.into_inner() {
                Ok(value) => value,
                Err(poisoned) => poisoned.into_inner(),
            }
        }
    }

    impl<T> fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Mutex")
        }
    }
}
