//! Published page-table crates over the same memory. Their methods take `&mut`: one thread, no concurrent readers.
//!
//! None of them keeps an address until a flush, checks for pending pages or frees tables safely under a walker; they
//! show what straightforward code for one thread costs.

pub mod aarch64;
pub mod multiarch;
pub mod x86_64;

use crate::lane::Subject;
use crate::order::{Order, Sequential};
use crate::window::Layout;

/// How the crates that are measured with page tables of x86-64 lay words out: present, writable, large (Intel SDM, 4.5).
const X86_WORDS: Layout = Layout {
    address: 0x000f_ffff_ffff_f000,
    present: 0b1,
    link_mask: 0b1000_0011,
    link: 0b11,
};

/// What every peer can do, page by page and for whole ranges.
pub trait Peer: Subject {
    /// As it is shown.
    const NAME: &'static str;
    /// An empty table.
    fn new() -> Self;
    /// Maps each page.
    fn map<O: Order>(&mut self, order: &O);
    /// Unmaps each page.
    fn unmap<O: Order>(&mut self, order: &O);
    /// Maps and unmaps each page.
    fn pair<O: Order>(&mut self, order: &O);
    /// Looks each page up.
    fn translate<O: Order>(&self, order: &O) -> u64;
    /// Maps the first `pages` pages by 4 KiB leaves, in calls for `step` pages where there is such a call.
    fn map_ranges(&mut self, pages: u64, step: u64);
    /// Unmaps them.
    fn unmap_ranges(&mut self, pages: u64, step: u64);
    /// Maps the first `pages` pages by leaves of `size` pages each.
    fn map_large(&mut self, pages: u64, size: u64);
    /// Unmaps them.
    fn unmap_large(&mut self, pages: u64, size: u64);
}

/// Every page below `pages`.
pub(crate) const fn all(pages: u64) -> Sequential {
    Sequential {
        first: 0,
        count: pages,
    }
}
