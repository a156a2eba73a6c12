//! The heap of the control path: talc over one fixed arena, behind a spin lock.
//!
//! The binary makes [`Heap`] its global allocator; the arena comes from the memory map at boot
//! ([`Heap::add_arena`]). An allocation before that, or beyond it, fails like any other allocation
//! failure.
#![expect(
    unsafe_code,
    reason = "a global allocator hands out raw memory of its arena"
)]

use core::alloc::{GlobalAlloc, Layout};

use hv_core::PhysRange;
use talc::TalcLock;
use talc::source::Manual;

use super::physical;

/// Bytes of the arena that boot gives to the heap.
pub const HEAP_BYTES: u64 = 16 << 20;

/// The arena was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the heap arena {arena} is too small to hold the allocator's own tables")]
pub struct ArenaTooSmall {
    /// The arena that was offered.
    pub arena: PhysRange,
}

/// A heap that starts out empty.
pub struct Heap(TalcLock<spin::Mutex<()>, Manual>);

impl Heap {
    /// A heap without memory.
    pub const fn empty() -> Self {
        Self(TalcLock::new(Manual))
    }

    /// Gives `arena` to the heap for good.
    ///
    /// # Errors
    /// [`ArenaTooSmall`] when the allocator could not use it.
    ///
    /// # Safety
    /// The arena is RAM under the identity map, and nobody else ever reads or writes it again.
    pub unsafe fn add_arena(&self, arena: PhysRange) -> Result<(), ArenaTooSmall> {
        let base = physical::pointer(arena.start());
        let bytes = arena.pages().bytes() as usize;
        // SAFETY: the caller gives the arena away for good, and `Manual` is the source that permits
        // claims by hand.
        let end = unsafe { self.0.lock().claim(base, bytes) };
        end.map(|_| ()).ok_or(ArenaTooSmall { arena })
    }
}

// SAFETY: every method hands on to talc, which upholds the contract of `GlobalAlloc`.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise (a layout of non-zero size) is talc's condition.
        unsafe { GlobalAlloc::alloc(&self.0, layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise (allocated here with this layout) is talc's condition.
        unsafe { GlobalAlloc::dealloc(&self.0, pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe { GlobalAlloc::alloc_zeroed(&self.0, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise (allocated here with this layout, non-zero new size that
        // fits) is talc's condition.
        unsafe { GlobalAlloc::realloc(&self.0, pointer, layout, new_size) }
    }
}
