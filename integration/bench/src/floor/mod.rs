//! The floors: the least work that a row's hardware words need, written by hand over the same memory.
//!
//! A floor checks what its row says and nothing else: it knows its caller, has no errors to report, and keeps no
//! account of what is pending. Nobody can be expected to reach it with an interface that is safe.

#![expect(
    unsafe_code,
    reason = "a floor walks words without asking who owns them"
)]

pub mod queue;
pub mod range;
pub mod single;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::{self, WORDS};
use crate::format::{self, WORDS as LAYOUT};
use crate::lane::{Mapped, Subject};
use crate::window::{LEVELS, index, iova, leaves};

/// A table whose interior is there from the beginning: floors never install.
#[derive(Debug)]
pub struct Floor {
    root: u64,
    pages: u64,
    /// Whether the leaves are there now.
    filled: Cell<bool>,
    /// Leaf tables that were taken out: the first page of each, and its link.
    detached: RefCell<Vec<(u64, u64)>>,
}

/// The word at `index` of the table at `table`.
///
/// # Safety
/// `table` is a table of a floor.
#[inline(always)]
unsafe fn word(table: u64, index: usize) -> &'static AtomicU64 {
    // SAFETY: the caller's table lies in the arena.
    let words = unsafe { arena::words(table) };
    &words[index & (WORDS - 1)]
}

/// The table below a word that was read, if it links one.
#[inline(always)]
fn linked(word: u64) -> Option<u64> {
    (word & LAYOUT.link_mask == LAYOUT.link).then_some(word & LAYOUT.address)
}

/// The word of `at` in its table of level `stop`, each word on the way checked to be a link.
///
/// # Safety
/// `root` is the root of a floor.
#[inline(always)]
unsafe fn walk(root: u64, at: u64, stop: u32) -> Option<&'static AtomicU64> {
    let mut table = root;
    let mut level = LEVELS;
    while level > stop {
        // SAFETY: the root and what a floor's links name are tables of that floor.
        let word = unsafe { word(table, index(at, level)) };
        // ORDERING: Acquire, as every walk reads links: behind one its table's words are seen.
        table = linked(word.load(Ordering::Acquire))?;
        level -= 1;
    }
    // SAFETY: as above.
    Some(unsafe { word(table, index(at, stop)) })
}

fn new_table() -> u64 {
    arena::take_zeroed().expect("the arena has frames for every floor")
}

impl Floor {
    /// A floor with all tables for `pages` pages of 4 KiB, or of the size whose leaves are at `level`.
    pub fn new(pages: u64, level: u32) -> Self {
        let root = new_table();
        let step = 1 << (9 * level.min(LEVELS - 1));
        for page in (0..pages).step_by(step) {
            let mut table = root;
            for above in (level + 1..=LEVELS).rev() {
                // Down to the table whose words are the leaves.
                // SAFETY: the root and what is linked here are tables of this floor.
                let word = unsafe { word(table, index(iova(page), above)) };
                // ORDERING: Relaxed, one thread builds the floor.
                let mut link = word.load(Ordering::Relaxed);
                if link == 0 {
                    link = format::link(new_table());
                    // ORDERING: Relaxed, as above.
                    word.store(link, Ordering::Relaxed);
                }
                table = link & LAYOUT.address;
            }
        }
        Self {
            root,
            pages,
            filled: Cell::new(false),
            detached: RefCell::new(Vec::with_capacity(WORDS)),
        }
    }

    fn drop_below(table: u64, level: u32) {
        if level > 1 {
            // SAFETY: the table is one of this floor.
            let words = unsafe { arena::words(table) };
            for word in words {
                // ORDERING: Relaxed, one thread ends the floor.
                if let Some(below) = linked(word.load(Ordering::Relaxed)) {
                    Self::drop_below(below, level - 1);
                }
            }
        }
        // SAFETY: `new_table` took the frame, its one link was read just now, and the floor ends.
        unsafe { arena::put(table) };
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.attach_tables();
        Self::drop_below(self.root, LEVELS);
    }
}

impl Subject for Floor {
    fn mapped(&self) -> Vec<Mapped> {
        // SAFETY: the root of a floor, whose links lead to its tables.
        unsafe { leaves(self.root, LEVELS, &LAYOUT) }
    }
}
