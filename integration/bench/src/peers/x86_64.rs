//! The crate `x86_64`: its `OffsetPageTable`.

#![expect(unsafe_code, reason = "the crate's mapping methods are unsafe")]

use std::ptr;

use x86_64::structures::paging::mapper::{Mapper, Translate};
use x86_64::structures::paging::{
    FrameAllocator, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame,
    Size1GiB, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

use super::{Peer, X86_WORDS, all};
use crate::arena;
use crate::lane::{self, Mapped, Subject};
use crate::order::{Order, Sequential};
use crate::window::{LEVELS, PAGES_2M, iova, leaves, phys};

const FLAGS: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

/// A table of the crate.
pub struct X86 {
    root: u64,
    table: OffsetPageTable<'static>,
}

struct Frames;

// SAFETY: the arena gives each free frame once.
unsafe impl FrameAllocator<Size4KiB> for Frames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        Some(PhysFrame::containing_address(PhysAddr::new(
            arena::take_zeroed()?,
        )))
    }
}

fn page<S: PageSize>(page: u64) -> Page<S> {
    Page::containing_address(VirtAddr::new_truncate(iova(page)))
}

fn frame<S: PageSize>(page: u64) -> PhysFrame<S> {
    PhysFrame::containing_address(PhysAddr::new_truncate(phys(page)))
}

impl X86 {
    #[inline(always)]
    fn map_one<S: PageSize>(&mut self, number: u64) -> bool
    where
        OffsetPageTable<'static>: Mapper<S>,
    {
        let (page, frame) = (page::<S>(number), frame::<S>(number));
        // SAFETY: nobody translates by this table, so nothing is aliased.
        let mapped = unsafe { self.table.map_to(page, frame, FLAGS, &mut Frames) };
        mapped.map(|flush| flush.ignore()).is_ok()
    }

    #[inline(always)]
    fn unmap_one<S: PageSize>(&mut self, number: u64) -> bool
    where
        OffsetPageTable<'static>: Mapper<S>,
    {
        match self.table.unmap(page::<S>(number)) {
            Ok((_, flush)) => {
                flush.ignore();
                true
            }
            Err(_) => false,
        }
    }

    #[inline(never)]
    fn each<O: Order>(&mut self, order: &O, mut act: impl FnMut(&mut Self, u64) -> bool) {
        let mut failed = 0_u64;
        for page in order.pages() {
            failed |= u64::from(!act(self, page));
        }
        lane::check(failed, Self::NAME);
    }

    fn large(pages: u64, size: u64) -> Sequential {
        all(pages / size)
    }
}

impl Peer for X86 {
    const NAME: &'static str = "x86_64";

    fn new() -> Self {
        let root = arena::take_zeroed().expect("the arena has frames for every peer");
        let pointer = ptr::with_exposed_provenance_mut::<PageTable>(root as usize);
        // SAFETY: the frame was taken just now, is zeroed, aligned, and stays in place.
        let top = unsafe { &mut *pointer };
        // SAFETY: all of the table's frames come from the arena, which has the same address in tables.
        let table = unsafe { OffsetPageTable::new(top, VirtAddr::zero()) };
        Self { root, table }
    }

    fn map<O: Order>(&mut self, order: &O) {
        self.each(order, Self::map_one::<Size4KiB>);
    }

    fn unmap<O: Order>(&mut self, order: &O) {
        self.each(order, Self::unmap_one::<Size4KiB>);
    }

    fn pair<O: Order>(&mut self, order: &O) {
        self.each(order, |peer, page| {
            peer.map_one::<Size4KiB>(page) & peer.unmap_one::<Size4KiB>(page)
        });
    }

    #[inline(never)]
    fn translate<O: Order>(&self, order: &O) -> u64 {
        let mut sum = 0_u64;
        for page in order.pages() {
            let found = self
                .table
                .translate_addr(VirtAddr::new_truncate(iova(page)));
            sum = sum.wrapping_add(found.map_or(0, PhysAddr::as_u64));
        }
        sum
    }

    fn map_ranges(&mut self, pages: u64, _step: u64) {
        self.map(&all(pages));
    }

    fn unmap_ranges(&mut self, pages: u64, _step: u64) {
        self.unmap(&all(pages));
    }

    fn map_large(&mut self, pages: u64, size: u64) {
        let order = Self::large(pages, size);
        if size == PAGES_2M {
            self.each(&order, |peer, at| peer.map_one::<Size2MiB>(at * size));
        } else {
            self.each(&order, |peer, at| peer.map_one::<Size1GiB>(at * size));
        }
    }

    fn unmap_large(&mut self, pages: u64, size: u64) {
        let order = Self::large(pages, size);
        if size == PAGES_2M {
            self.each(&order, |peer, at| peer.unmap_one::<Size2MiB>(at * size));
        } else {
            self.each(&order, |peer, at| peer.unmap_one::<Size1GiB>(at * size));
        }
    }
}

impl Subject for X86 {
    fn mapped(&self) -> Vec<Mapped> {
        // SAFETY: the table's frames come from the arena, and the crate's words are laid out so.
        unsafe { leaves(self.root, LEVELS, &X86_WORDS) }
    }
}

/// Gives the tables below `table` back.
///
/// # Safety
/// `table` is a table of `level` whose frames came from the arena, and nobody uses it any more.
pub(super) unsafe fn free_tables(table: u64, level: u32) {
    if level > 1 {
        // SAFETY: by the caller's promise a table of the arena.
        let words = unsafe { arena::words(table) };
        for word in words {
            // ORDERING: Relaxed, the table is at rest.
            let word = word.load(std::sync::atomic::Ordering::Relaxed);
            if word & X86_WORDS.link_mask == X86_WORDS.link {
                // SAFETY: a link of a table that nobody uses.
                unsafe { free_tables(word & X86_WORDS.address, level - 1) };
            }
        }
    }
    // SAFETY: each table is linked once, and this is the one walk that ends it.
    unsafe { arena::put(table) };
}

impl Drop for X86 {
    fn drop(&mut self) {
        // SAFETY: the peer ends, and its frames came from the arena.
        unsafe { free_tables(self.root, LEVELS) };
    }
}
