//! The window of addresses that every row maps, and a walker that reads what a table maps.

use std::sync::atomic::Ordering;

use crate::arena::{self, WORDS};
use crate::lane::Mapped;

/// The first IOVA of the window, where a word of the top table begins.
pub const IOVA: u64 = 0x80_0000_0000;
/// No window is longer.
pub const LONGEST: u64 = 1 << 44;
/// Where the window's first page leads. No memory of the benchmark: nobody reads through the tables.
pub const PHYS: u64 = 0x10_0000_0000;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Pages of a 2 MiB leaf.
pub const PAGES_2M: u64 = 512;
/// Pages of a 1 GiB leaf.
pub const PAGES_1G: u64 = 512 * 512;
/// Levels of a table, for 48-bit addresses.
pub const LEVELS: u32 = 4;

/// What a walker looks at in the words of a table.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The address.
    pub address: u64,
    /// Bits of which a word that means anything has one.
    pub present: u64,
    /// The bits that tell a link from a leaf above the lowest level.
    pub link_mask: u64,
    /// What they are in a link.
    pub link: u64,
}

/// The IOVA of a page of the window.
#[inline]
pub const fn iova(page: u64) -> u64 {
    IOVA + page * PAGE
}

/// Where a page of the window leads.
#[inline]
pub const fn phys(page: u64) -> u64 {
    PHYS + page * PAGE
}

/// The index of `at` in its table of `level`.
#[inline]
pub const fn index(at: u64, level: u32) -> usize {
    ((at >> (12 + 9 * (level - 1))) & (WORDS as u64 - 1)) as usize
}

/// All leaves below the table at `root`, whose words are laid out so, as a walker of a device finds them. The table is
/// at rest.
///
/// # Safety
/// `root` is the root of a table in the arena whose links lead to tables of the arena.
#[expect(unsafe_code, reason = "follows the links of tables")]
pub unsafe fn leaves(root: u64, levels: u32, layout: &Layout) -> Vec<Mapped> {
    let mut found = Vec::new();
    let mut open = vec![(root, levels, 0)];
    while let Some((table, level, base)) = open.pop() {
        // SAFETY: the root and what links name are tables of the arena.
        let words = unsafe { arena::words(table) };
        let span = PAGE << (9 * (level - 1));
        for (index, word) in words.iter().enumerate() {
            // ORDERING: Acquire, as a walker's reads depend on each other.
            let word = word.load(Ordering::Acquire);
            let at = base + index as u64 * span;
            if word & layout.present == 0 {
                continue;
            }
            if level == 1 || word & layout.link_mask != layout.link {
                found.push(Mapped {
                    at,
                    to: word & layout.address,
                    bytes: span,
                });
            } else {
                open.push((word & layout.address, level - 1, at));
            }
        }
    }
    found.sort_by_key(|mapped| mapped.at);
    found
}
