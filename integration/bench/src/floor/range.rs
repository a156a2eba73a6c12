//! Floors of whole ranges: stores a cache line at a time into tables that are found once each.

#![expect(
    unsafe_code,
    reason = "a floor walks words without asking who owns them"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Floor, linked, walk};
use crate::arena;
use crate::format::{self, WORDS};
use crate::lane;
use crate::platform::{store_fence, write_line_back};
use crate::window::{PAGE, PAGES_2M, index, iova, phys};

/// Words of a cache line.
const LINE: usize = 8;
/// Bytes of a word.
const WORD: u64 = 8;

/// Pages of 4 KiB below a leaf at `level`.
const fn pages_of(level: u32) -> u64 {
    1 << (9 * (level - 1))
}

/// The leaf at `level` for `page`.
#[inline(always)]
const fn leaf(page: u64, level: u32) -> u64 {
    format::leaf(phys(page), level)
}

/// The words of `count` leaves at `LEVEL` from `page` on, which lie in one table, and where they are.
///
/// # Safety
/// `root` is the root of a floor.
#[inline(always)]
unsafe fn entries<const LEVEL: u32>(
    root: u64,
    page: u64,
    count: usize,
) -> Option<(&'static [AtomicU64], u64)> {
    // SAFETY: the caller's root.
    let word = unsafe { walk(root, iova(page), LEVEL + 1) }?;
    // ORDERING: Acquire, as every walk reads links.
    let table = linked(word.load(Ordering::Acquire))?;
    // SAFETY: what a floor's links name are tables of that floor.
    let words = unsafe { arena::words(table) };
    let first = index(iova(page), LEVEL);
    let words = words.get(first..first + count)?;
    Some((words, table + first as u64 * WORD))
}

/// Writes the leaves from `page` on, unrolled by cache line.
#[inline(always)]
fn store_leaves<const LEVEL: u32>(words: &[AtomicU64], page: u64) {
    let step = pages_of(LEVEL) * PAGE;
    let mut next = leaf(page, LEVEL);
    let (lines, rest) = words.as_chunks::<LINE>();
    for line in lines {
        for (at, word) in line.iter().enumerate() {
            // ORDERING: Release, as a leaf store.
            word.store(next + at as u64 * step, Ordering::Release);
        }
        next += LINE as u64 * step;
    }
    for word in rest {
        // ORDERING: Release, as a leaf store.
        word.store(next, Ordering::Release);
        next += step;
    }
}

/// Loads and empties `words`; gives how many were empty before.
#[inline(always)]
fn clear(words: &[AtomicU64]) -> u64 {
    let mut missing = 0;
    for word in words {
        // ORDERING: Acquire, as an owner's load.
        missing += u64::from(word.load(Ordering::Acquire) & WORDS.present == 0);
        // ORDERING: Release, as an owner's store.
        word.store(0, Ordering::Release);
    }
    missing
}

impl Floor {
    /// Writes the leaves of `pages` pages in blocks of `count` leaves at `LEVEL`, each found by a walk of its own.
    #[inline(never)]
    pub fn map_blocks<const LEVEL: u32>(&self, pages: u64, count: u64) {
        let mut missing = 0;
        for first in (0..pages).step_by((count * pages_of(LEVEL)) as usize) {
            // SAFETY: the root of this floor.
            match unsafe { entries::<LEVEL>(self.root, first, count as usize) } {
                Some((words, _)) => store_leaves::<LEVEL>(words, first),
                None => missing += 1,
            }
        }
        self.done(missing, true);
    }

    /// The same for walkers that do not snoop, with a fence after each block: lines are written back one by one after
    /// their stores, or all after the stores of the block. Which of the two is faster depends on the block.
    #[inline(never)]
    pub fn map_blocks_back<const BY_LINE: bool>(&self, pages: u64, count: u64) {
        let mut missing = 0;
        for first in (0..pages).step_by(count as usize) {
            // SAFETY: the root of this floor.
            let Some((words, at)) = (unsafe { entries::<1>(self.root, first, count as usize) })
            else {
                missing += 1;
                continue;
            };
            if !BY_LINE {
                store_leaves::<1>(words, first);
            }
            for (line, words) in (0..).zip(words.chunks(LINE)) {
                if BY_LINE {
                    store_leaves::<1>(words, first + line * LINE as u64);
                }
                // SAFETY: the line lies in a table of this floor; such rows run only where the instruction exists.
                unsafe { write_line_back(at + line * LINE as u64 * WORD) };
            }
            store_fence();
        }
        self.done(missing, true);
    }

    /// Loads and empties the leaves of `pages` pages in blocks of `count` leaves at `LEVEL`.
    #[inline(never)]
    pub fn unmap_blocks<const LEVEL: u32>(&self, pages: u64, count: u64) {
        let mut missing = 0;
        for first in (0..pages).step_by((count * pages_of(LEVEL)) as usize) {
            // SAFETY: the root of this floor.
            missing += match unsafe { entries::<LEVEL>(self.root, first, count as usize) } {
                Some((words, _)) => clear(words),
                None => 1,
            };
        }
        self.done(missing, false);
    }

    /// Takes every leaf table of `pages` pages out by a swap of the word above it.
    #[inline(never)]
    pub fn detach_tables(&self, pages: u64) {
        let mut links = self.detached.borrow_mut();
        for first in (0..pages).step_by(PAGES_2M as usize) {
            // SAFETY: the root of this floor.
            if let Some(word) = unsafe { walk(self.root, iova(first), 2) } {
                // ORDERING: AcqRel, as an owner that takes a table over.
                links.push((first, word.swap(0, Ordering::AcqRel)));
            }
        }
    }

    /// As [`detach_tables`](Self::detach_tables), after a look at every word of each table.
    #[inline(never)]
    pub fn detach_scanned_tables(&self, pages: u64) {
        let mut links = self.detached.borrow_mut();
        let mut missing = 0;
        for first in (0..pages).step_by(PAGES_2M as usize) {
            // SAFETY: the root of this floor.
            let found = unsafe { entries::<1>(self.root, first, PAGES_2M as usize) };
            for word in found.map_or(&[][..], |(words, _)| words) {
                // ORDERING: Acquire, as an owner's load.
                missing += u64::from(word.load(Ordering::Acquire) & WORDS.present == 0);
            }
            // SAFETY: the root of this floor.
            if let Some(word) = unsafe { walk(self.root, iova(first), 2) } {
                // ORDERING: AcqRel, as an owner that takes a table over.
                links.push((first, word.swap(0, Ordering::AcqRel)));
            }
        }
        lane::check(missing, "a floor");
    }

    /// Looks at every word of each table.
    #[inline(never)]
    pub fn scan(&self, pages: u64) {
        let mut filled = 0;
        for first in (0..pages).step_by(PAGES_2M as usize) {
            // SAFETY: the root of this floor.
            let found = unsafe { entries::<1>(self.root, first, PAGES_2M as usize) };
            for word in found.map_or(&[][..], |(words, _)| words) {
                // ORDERING: Acquire, as an owner's load.
                filled |= word.load(Ordering::Acquire);
            }
        }
        lane::check(filled, "a floor");
    }

    /// Puts back what was detached, as it was. Not timed.
    pub fn attach_tables(&self) {
        for (first, link) in self.detached.borrow_mut().drain(..) {
            // SAFETY: the root of this floor.
            if let Some(word) = unsafe { walk(self.root, iova(first), 2) } {
                // ORDERING: Release: the table's words come with it.
                word.store(link, Ordering::Release);
            }
        }
    }

    /// Maps and unmaps each of `ranges`, given as first page and pages: leaves are stored; what fills a table is
    /// detached, other leaves are loaded and emptied.
    #[inline(never)]
    pub fn pair_ranges(&self, ranges: &[(u64, u64)]) {
        let mut missing = 0;
        for (first, pages) in ranges {
            for (page, count) in pieces(*first, *pages) {
                // SAFETY: the root of this floor.
                match unsafe { entries::<1>(self.root, page, count as usize) } {
                    Some((words, _)) => store_leaves::<1>(words, page),
                    None => missing += 1,
                }
            }
            for (page, count) in pieces(*first, *pages) {
                if count == PAGES_2M {
                    // SAFETY: the root of this floor.
                    if let Some(word) = unsafe { walk(self.root, iova(page), 2) } {
                        // ORDERING: AcqRel, as an owner that takes a table over.
                        let link = word.swap(0, Ordering::AcqRel);
                        self.detached.borrow_mut().push((page, link));
                    }
                    continue;
                }
                // SAFETY: the root of this floor.
                missing += match unsafe { entries::<1>(self.root, page, count as usize) } {
                    Some((words, _)) => clear(words),
                    None => 1,
                };
            }
        }
        lane::check(missing, "a floor");
    }

    /// Writes the leaves of single pages in the order of `pages`, each written back and fenced.
    #[inline(never)]
    pub fn map_cas_back(&self, pages: impl Iterator<Item = u64>) {
        let mut failed = 0;
        for page in pages {
            // SAFETY: the root of this floor.
            let Some((words, at)) = (unsafe { entries::<1>(self.root, page, 1) }) else {
                failed = 1;
                continue;
            };
            // ORDERING: AcqRel and Acquire, as an engine that shares words needs.
            let done =
                words[0].compare_exchange(0, leaf(page, 1), Ordering::AcqRel, Ordering::Acquire);
            failed |= u64::from(done.is_err());
            // SAFETY: the line lies in a table of this floor; such rows run only where the instruction exists.
            unsafe { write_line_back(at) };
            store_fence();
        }
        self.done(failed, true);
    }

    /// Swaps the words of single pages against empty ones, each written back and fenced.
    #[inline(never)]
    pub fn unmap_swap_back(&self, pages: impl Iterator<Item = u64>) {
        let mut failed = 0;
        for page in pages {
            // SAFETY: the root of this floor.
            let Some((words, at)) = (unsafe { entries::<1>(self.root, page, 1) }) else {
                failed = 1;
                continue;
            };
            // ORDERING: AcqRel, as an engine that shares words needs.
            let before = words[0].swap(0, Ordering::AcqRel);
            failed |= u64::from(before & WORDS.address == 0);
            // SAFETY: the line lies in a table of this floor; such rows run only where the instruction exists.
            unsafe { write_line_back(at) };
            store_fence();
        }
        self.done(failed, false);
    }
}

/// The parts of a range that lie in one leaf table each: first page and pages.
#[inline(always)]
fn pieces(first: u64, pages: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = first + pages;
    let mut next = first;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let page = next;
        next = ((page | (PAGES_2M - 1)) + 1).min(end);
        Some((page, next - page))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_tables() {
        let cut = |first, pages| pieces(first, pages).collect::<Vec<_>>();
        assert_eq!(cut(0, 1), [(0, 1)]);
        assert_eq!(cut(500, 1036), [(500, 12), (512, 512), (1024, 512)]);
        assert_eq!(cut(1023, 2), [(1023, 1), (1024, 1)]);
    }
}
