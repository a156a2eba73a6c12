//! Floors of whole ranges: stores a cache line at a time into tables that are found once each.

#![expect(
    unsafe_code,
    reason = "a floor walks words without asking who owns them"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Floor, walk};
use crate::arena::WORDS;
use crate::window::{PAGE, PAGES_2M, READ, WRITE, iova, phys};

/// Words of a cache line.
const LINE: usize = 8;

/// The words of the leaf table for `page`, the first page of 2 MiB.
///
/// # Safety
/// `root` is the root of a floor.
#[inline(always)]
unsafe fn leaf_table(root: u64, page: u64) -> Option<&'static [AtomicU64; WORDS]> {
    // SAFETY: the caller's root.
    let word = unsafe { walk(root, iova(page), 2) }?;
    // ORDERING: Acquire, as every walk reads links.
    let table = super::linked(word.load(Ordering::Acquire))?;
    // SAFETY: what a floor's links name are tables of that floor.
    Some(unsafe { crate::arena::words(table) })
}

impl Floor {
    /// Fills `pages` pages, whole 2 MiB each, by release stores that are unrolled by cache line.
    #[inline(never)]
    pub fn fill_tables(&self, pages: u64) {
        let mut missing = 0;
        for first in (0..pages).step_by(PAGES_2M as usize) {
            // SAFETY: the root of this floor.
            let Some(words) = (unsafe { leaf_table(self.root, first) }) else {
                missing += 1;
                continue;
            };
            let mut leaf = phys(first) | READ | WRITE;
            for line in words.as_chunks::<LINE>().0 {
                for (at, word) in line.iter().enumerate() {
                    // ORDERING: Release, as a leaf store.
                    word.store(leaf + at as u64 * PAGE, Ordering::Release);
                }
                leaf += LINE as u64 * PAGE;
            }
        }
        assert_eq!(missing, 0, "a floor without a table");
        self.filled.set(true);
    }
}
