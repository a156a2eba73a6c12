//! Floors of single 4 KiB pages: a walk with its checks, and one access to the leaf's word.

#![expect(
    unsafe_code,
    reason = "a floor walks words without asking who owns them"
)]

use std::hint::black_box;
use std::sync::atomic::Ordering;

use super::{Floor, walk};
use crate::format::{self, WORDS};
use crate::lane;
use crate::order::{Order, Sequential};
use crate::window::{iova, phys};

#[inline(always)]
fn leaf(page: u64) -> u64 {
    format::leaf(phys(page), 1)
}

impl Floor {
    /// Writes a leaf per page by a compare-and-swap of an empty word.
    #[inline(never)]
    pub fn map_cas<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let word = unsafe { walk(self.root, iova(page), 1) };
            // ORDERING: AcqRel and Acquire, as an engine that shares words needs.
            let done = word.is_some_and(|word| {
                word.compare_exchange(0, leaf(page), Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
            });
            failed |= u64::from(!done);
        }
        self.done(failed, true);
    }

    /// Writes a leaf per page by a release store.
    #[inline(never)]
    pub fn map_store<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let Some(word) = (unsafe { walk(self.root, iova(page), 1) }) else {
                failed = 1;
                continue;
            };
            // ORDERING: Release, as a leaf store.
            word.store(leaf(page), Ordering::Release);
        }
        self.done(failed, true);
    }

    /// As [`map_store`](Self::map_store), into a word that is seen to be empty.
    #[inline(never)]
    pub fn map_checked<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let Some(word) = (unsafe { walk(self.root, iova(page), 1) }) else {
                failed = 1;
                continue;
            };
            // ORDERING: Acquire, as an owner's load.
            failed |= word.load(Ordering::Acquire);
            // ORDERING: Release, as a leaf store.
            word.store(leaf(page), Ordering::Release);
        }
        self.done(failed, true);
    }

    /// Swaps every page's word against an empty one.
    #[inline(never)]
    pub fn unmap_swap<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let word = unsafe { walk(self.root, iova(page), 1) };
            // ORDERING: AcqRel, as an engine that shares words needs.
            let before = word.map_or(0, |word| word.swap(0, Ordering::AcqRel));
            failed |= u64::from(before & WORDS.present == 0);
        }
        self.done(failed, false);
    }

    /// Loads every page's word and stores an empty one.
    #[inline(never)]
    pub fn unmap_store<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let Some(word) = (unsafe { walk(self.root, iova(page), 1) }) else {
                failed = 1;
                continue;
            };
            // ORDERING: Acquire and Release, as an owner's load and store.
            let before = word.load(Ordering::Acquire);
            word.store(0, Ordering::Release);
            failed |= u64::from(before & WORDS.present == 0);
        }
        self.done(failed, false);
    }

    /// Maps and unmaps each page, by compare-and-swap and swap.
    #[inline(never)]
    pub fn pair_cas<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let word = unsafe { walk(self.root, iova(page), 1) };
            // ORDERING: AcqRel and Acquire, as an engine that shares words needs.
            let done = word.is_some_and(|word| {
                word.compare_exchange(0, leaf(page), Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
            });
            // SAFETY: the root of this floor. Walked again, as two calls do.
            let word = unsafe { walk(black_box(self.root), iova(page), 1) };
            // ORDERING: AcqRel, as above.
            let before = word.map_or(0, |word| word.swap(0, Ordering::AcqRel));
            failed |= u64::from(!done || before & WORDS.present == 0);
        }
        self.done(failed, false);
    }

    /// Maps and unmaps each page, by release stores.
    #[inline(never)]
    pub fn pair_store<O: Order>(&self, order: &O) {
        let mut failed = 0;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            match unsafe { walk(self.root, iova(page), 1) } {
                // ORDERING: Release, as a leaf store.
                Some(word) => word.store(leaf(page), Ordering::Release),
                None => failed = 1,
            }
            // SAFETY: the root of this floor. Walked again, as two calls do.
            let Some(word) = (unsafe { walk(black_box(self.root), iova(page), 1) }) else {
                failed = 1;
                continue;
            };
            // ORDERING: Acquire and Release, as an owner's load and store.
            let before = word.load(Ordering::Acquire);
            word.store(0, Ordering::Release);
            failed |= u64::from(before & WORDS.present == 0);
        }
        self.done(failed, false);
    }

    /// Looks every page up and gives a sum of where they lead.
    #[inline(never)]
    pub fn translate<O: Order>(&self, order: &O) -> u64 {
        let mut sum = 0_u64;
        for page in order.pages() {
            // SAFETY: the root of this floor.
            let word = unsafe { walk(self.root, iova(page), 1) };
            // ORDERING: Acquire, as a walker's read.
            let word = word.map_or(0, |word| word.load(Ordering::Acquire));
            if word & WORDS.present != 0 {
                sum = sum.wrapping_add(word & WORDS.address);
            }
        }
        sum
    }

    pub(super) fn done(&self, failed: u64, filled: bool) {
        lane::check(failed, "a floor");
        self.filled.set(filled);
    }

    /// Writes all leaves, with the tables in the caches.
    pub fn fill(&self) {
        let all = Sequential {
            first: 0,
            count: self.pages,
        };
        if self.filled.get() {
            self.unmap_store(&all);
        }
        self.map_store(&all);
    }

    /// Writes all leaves, if they are not there.
    pub fn fill_once(&self) {
        if !self.filled.get() {
            self.fill();
        }
    }

    /// Empties all words, with the leaves in the caches.
    pub fn vacate(&self) {
        let all = Sequential {
            first: 0,
            count: self.pages,
        };
        if !self.filled.get() {
            self.map_store(&all);
        }
        self.unmap_store(&all);
    }
}
