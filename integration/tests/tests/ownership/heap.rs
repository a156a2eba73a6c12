//! A heap that counts what each thread takes from it, to see that some paths take nothing.

#![expect(unsafe_code, reason = "an allocator is declared by unsafe methods")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
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

#[test]
fn what_is_taken_is_counted() {
    assert_eq!(taken_by(|| Box::new([7_u8; 100])).1, 1);
    assert_eq!(taken_by(|| 7).1, 0);
}
