//! Each allocation of heap memory fails once: nothing is lost, and a second try works. After the idea of Linux's
//! `iommufd_fail_nth`.

#![expect(unsafe_code, reason = "a heap that can be told to fail")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use hv_core::PageCount;
use hv_iommu::SpaceError;
use hv_iommu::iova::{IovaAlign, IovaAllocator};

use super::{CPUS, Cpu, TOP, choose_fault, pages, range};

thread_local! {
    /// Allocations of this thread to let through before all fail.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

impl Heap {
    fn is_out(&self) -> bool {
        LEFT.with(|left| match left.get() {
            None => false,
            // A panic needs memory to say why.
            Some(0) => !std::thread::panicking(),
            Some(more) => {
                left.set(Some(more - 1));
                false
            }
        })
    }
}

// SAFETY: all requests go to the system's heap, or fail.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_out() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same, and what was given came from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs `act` with a heap that has this many allocations left.
fn with_left<T>(left: u64, act: impl FnOnce() -> T) -> T {
    LEFT.set(Some(left));
    let result = act();
    LEFT.set(None);
    result
}

/// Takes pages until there is nothing left to take, gives every second one back and then the others.
#[test]
fn bc18_each_failing_allocation_of_an_allocator() {
    choose_fault();
    const PAGES: u64 = 300;
    let mut failures = 0;
    for left in 0.. {
        let made = with_left(left, || {
            IovaAllocator::new(range(0, PAGES), &[range(9, 2)], CPUS)
        });
        let Ok(space) = made else {
            failures += 1;
            continue;
        };
        let free = space.free_pages();
        let mut out = Vec::with_capacity(PAGES as usize);
        let failed = with_left(left.saturating_sub(failures), || {
            loop {
                match space.alloc(&Cpu(0), PageCount::ONE, IovaAlign::PAGE, TOP) {
                    Ok(taken) => out.push(taken),
                    Err(error) => break error,
                }
            }
        });
        assert_eq!(
            space.free_pages() + out.len() as u64,
            free,
            "nothing was taken"
        );
        let was_short = matches!(failed, SpaceError::OutOfMemory(_));
        if was_short {
            // A second try goes through, and its range comes back with the others.
            let again = space.alloc(&Cpu(0), PageCount::ONE, IovaAlign::PAGE, TOP);
            out.push(again.unwrap());
        }
        // What comes back whole needs no memory, through caches or not.
        with_left(0, || {
            for (at, back) in out.iter().enumerate().filter(|(at, _)| at % 2 == 0) {
                space.release(&Cpu(at as u32 % 4), *back).unwrap();
            }
            for (at, back) in out.iter().enumerate().filter(|(at, _)| at % 2 == 1) {
                space.release(&Cpu(at as u32 % 4), *back).unwrap();
            }
            assert_eq!(space.free_pages(), free);
        });
        space.reserve(range(11, PAGES - 11)).unwrap();
        space.reserve(range(0, 9)).unwrap();
        assert_eq!(space.free_pages(), 0);
        if !was_short {
            assert!(left > failures, "{left} allocations");
            return;
        }
    }
}

/// Emptying caches needs no memory either.
#[test]
fn bc18_emptying_caches_allocates_nothing() {
    choose_fault();
    const PAGES: u64 = 2048;
    let space = IovaAllocator::new(range(0, PAGES), &[], CPUS).unwrap();
    let out: Vec<_> = std::iter::from_fn(|| {
        space
            .alloc(&Cpu(0), PageCount::ONE, IovaAlign::PAGE, TOP)
            .ok()
    })
    .collect();
    assert_eq!(out.len() as u64, PAGES - 1);
    with_left(0, || {
        for odd in [1, 0] {
            for (at, back) in out.iter().enumerate().filter(|(at, _)| at % 2 == odd) {
                space.release(&Cpu(at as u32 % 3), *back).unwrap();
            }
        }
        space.reserve(range(0, PAGES)).unwrap();
    });
}

/// A range that comes back in more pieces than it went out may find no room. Its owner has it then.
#[test]
fn bc18_pieces_without_room_stay_with_their_owner() {
    choose_fault();
    const PAGES: u64 = 1 << 12;
    for cpus in [0, CPUS] {
        let space = IovaAllocator::new(range(0, PAGES), &[], cpus).unwrap();
        let taken = space.reserve(range(0, PAGES)).unwrap();
        let pieces = (0..PAGES).filter_map(|page| taken.page(page));
        let pieces: Vec<_> = pieces.map(|page| range(page.as_u64() >> 12, 1)).collect();
        let mut kept = Vec::with_capacity(pieces.len());
        with_left(0, || {
            for piece in pieces.iter().step_by(2) {
                if let Err(error) = space.release(&Cpu(0), *piece) {
                    assert!(matches!(error, SpaceError::OutOfMemory(_)));
                    kept.push(*piece);
                }
            }
        });
        assert!(!kept.is_empty());
        assert_eq!(space.free_pages() + kept.len() as u64, PAGES / 2);
        with_left(0, || {
            // What is in caches and finds no room stays there.
            let wanted = pages(PAGES);
            let refused = space
                .alloc(&Cpu(1), wanted, IovaAlign::PAGE, TOP)
                .unwrap_err();
            let expected = match cpus {
                0 => matches!(refused, SpaceError::Full { .. }),
                _ => refused == SpaceError::CachesInUse,
            };
            assert!(expected, "{refused}");
            assert_eq!(space.free_pages() + kept.len() as u64, PAGES / 2);
        });
        for piece in kept.iter().chain(pieces.iter().skip(1).step_by(2)) {
            space.release(&Cpu(0), *piece).unwrap();
        }
        space.reserve(taken).unwrap();
    }
}
