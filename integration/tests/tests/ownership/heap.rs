//! A heap that counts what each thread takes from it and gives back, to see that some paths take nothing, and that
//! what is in use stays.

#![expect(unsafe_code, reason = "an allocator is declared by unsafe methods")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
    static FREED: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

// SAFETY: every call is passed on as it is; counting takes nothing from the heap, since the counter is a constant
// at first and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.set(TAKEN.get() + 1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        FREED.set(FREED.get() + 1);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often `job` took something from the heap on this thread.
pub(crate) fn taken_by<R>(job: impl FnOnce() -> R) -> (R, u64) {
    let before = TAKEN.get();
    let result = job();
    (result, TAKEN.get() - before)
}

/// How often `job` gave something back to the heap on this thread.
pub(crate) fn freed_by<R>(job: impl FnOnce() -> R) -> (R, u64) {
    let before = FREED.get();
    let result = job();
    (result, FREED.get() - before)
}

#[test]
fn what_is_taken_is_counted() {
    assert_eq!(taken_by(|| Box::new([7_u8; 100])).1, 1);
    assert_eq!(taken_by(|| 7).1, 0);
    let boxed = Box::new([7_u8; 100]);
    assert_eq!(freed_by(|| drop(boxed)).1, 1);
}
