//! A heap on which one chosen allocation of a thread fails, for what must survive that.
//!
//! A test binary makes it its global allocator. The fake hardware, whose own lists cannot fail, is exempt.

#![expect(unsafe_code, reason = "is a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::null_mut;

thread_local! {
    /// Allocations to let through before one fails.
    static FAIL_IN: Cell<Option<u64>> = const { Cell::new(None) };
    /// Allocations since that was set.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// How many exemptions are alive.
    static EXEMPT: Cell<u32> = const { Cell::new(0) };
}

/// The system's heap, of which allocations can be made to fail.
pub struct FailingHeap;

/// Whether the allocation that is asked for now is the one that fails.
fn fails() -> bool {
    if EXEMPT.get() != 0 {
        return false;
    }
    COUNT.set(COUNT.get() + 1);
    match FAIL_IN.get() {
        Some(0) => {
            FAIL_IN.set(None);
            true
        }
        Some(left) => {
            FAIL_IN.set(Some(left - 1));
            false
        }
        None => false,
    }
}

// SAFETY: every call goes to the system's allocator as it is, or reports that there is no memory.
unsafe impl GlobalAlloc for FailingHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails() {
            return null_mut();
        }
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same; all memory is the system's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if fails() {
            return null_mut();
        }
        // SAFETY: the caller's promise is the same; all memory is the system's.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Makes the one allocation of this thread fail that comes after `successes` more; `None` takes that back. Counts
/// from 0 again.
pub fn fail_after(successes: Option<u64>) {
    COUNT.set(0);
    FAIL_IN.set(successes);
}

/// Whether the allocation that was to fail has not come yet.
pub fn is_due() -> bool {
    FAIL_IN.get().is_some()
}

/// How many allocations this thread made since [`fail_after`].
pub fn count() -> u64 {
    COUNT.get()
}

/// While it lives, this thread's allocations neither fail nor count.
pub struct Exempt(());

/// Begins an exemption.
pub fn exempt() -> Exempt {
    EXEMPT.set(EXEMPT.get() + 1);
    Exempt(())
}

impl Drop for Exempt {
    fn drop(&mut self) {
        EXEMPT.set(EXEMPT.get() - 1);
    }
}
