//! The crate `page_table_multiarch`: its `PageTable64` with entries of x86-64.

use memory_addr::{PhysAddr, VirtAddr};
use page_table_entry::x86_64::X64PTE;
use page_table_multiarch::{
    MappingFlags, PageSize, PageTable64, PageTable64Cursor, PagingHandler, PagingMetaData,
};

use super::{Peer, X86_WORDS, all};
use crate::arena;
use crate::lane::{self, Mapped, Subject};
use crate::order::Order;
use crate::window::{IOVA, LEVELS, PAGE, PAGES_2M, iova, leaves, phys};

/// A table of the crate.
pub struct Multiarch(PageTable64<Meta, X64PTE, Frames>);

type Cursor<'c> = PageTable64Cursor<'c, Meta, X64PTE, Frames>;

struct Meta;

impl PagingMetaData for Meta {
    const LEVELS: usize = LEVELS as usize;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = VirtAddr;

    /// The table is no CPU's.
    fn flush_tlb(_at: Option<VirtAddr>) {}
}

struct Frames;

impl PagingHandler for Frames {
    fn alloc_frames(count: usize, align: usize) -> Option<PhysAddr> {
        if count != 1 || align != arena::FRAME {
            return None;
        }
        arena::take_zeroed().map(|at| PhysAddr::from(at as usize))
    }

    #[expect(unsafe_code, reason = "the arena takes frames back by promise")]
    fn dealloc_frames(at: PhysAddr, count: usize) {
        assert_eq!(count, 1, "frames are given one by one");
        // SAFETY: the crate gives a frame back that it was given, when its table ends.
        unsafe { arena::put(at.as_usize() as u64) };
    }

    #[inline]
    fn phys_to_virt(at: PhysAddr) -> VirtAddr {
        VirtAddr::from(at.as_usize())
    }
}

const FLAGS: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);

fn at(page: u64) -> VirtAddr {
    VirtAddr::from(iova(page) as usize)
}

fn to(page: u64) -> PhysAddr {
    PhysAddr::from(phys(page) as usize)
}

fn size_of_pages(size: u64) -> PageSize {
    match size {
        1 => PageSize::Size4K,
        PAGES_2M => PageSize::Size2M,
        _ => PageSize::Size1G,
    }
}

impl Multiarch {
    /// Does `act` for every page through one cursor, which gathers what is to be flushed.
    #[inline(never)]
    fn each<O: Order>(&mut self, order: &O, mut act: impl FnMut(&mut Cursor<'_>, u64) -> bool) {
        let mut failed = 0_u64;
        let mut cursor = self.0.cursor();
        for page in order.pages() {
            failed |= u64::from(!act(&mut cursor, page));
        }
        lane::check(failed, Self::NAME);
    }
}

impl Peer for Multiarch {
    const NAME: &'static str = "page_table_multiarch";

    fn new() -> Self {
        Self(PageTable64::try_new().expect("the arena has frames for every peer"))
    }

    fn map<O: Order>(&mut self, order: &O) {
        self.each(order, |cursor, page| {
            cursor
                .map(at(page), to(page), PageSize::Size4K, FLAGS)
                .is_ok()
        });
    }

    fn unmap<O: Order>(&mut self, order: &O) {
        self.each(order, |cursor, page| cursor.unmap(at(page)).is_ok());
    }

    fn pair<O: Order>(&mut self, order: &O) {
        self.each(order, |cursor, page| {
            let mapped = cursor.map(at(page), to(page), PageSize::Size4K, FLAGS);
            mapped.is_ok() & cursor.unmap(at(page)).is_ok()
        });
    }

    #[inline(never)]
    fn translate<O: Order>(&self, order: &O) -> u64 {
        let mut sum = 0_u64;
        for page in order.pages() {
            let found = self.0.query(at(page));
            sum = sum.wrapping_add(found.map_or(0, |(to, _, _)| to.as_usize() as u64));
        }
        sum
    }

    fn map_ranges(&mut self, pages: u64, step: u64) {
        self.each(&all(pages / step), |cursor, number| {
            let offset = (phys(0).wrapping_sub(IOVA)) as usize;
            let (first, bytes) = (at(number * step), (step * PAGE) as usize);
            let target = |at: VirtAddr| PhysAddr::from(at.as_usize().wrapping_add(offset));
            cursor
                .map_region(first, target, bytes, FLAGS, false)
                .is_ok()
        });
    }

    fn unmap_ranges(&mut self, pages: u64, step: u64) {
        self.each(&all(pages / step), |cursor, number| {
            cursor
                .unmap_region(at(number * step), (step * PAGE) as usize)
                .is_ok()
        });
    }

    fn map_large(&mut self, pages: u64, size: u64) {
        self.each(&all(pages / size), |cursor, number| {
            let page = number * size;
            cursor
                .map(at(page), to(page), size_of_pages(size), FLAGS)
                .is_ok()
        });
    }

    fn unmap_large(&mut self, pages: u64, size: u64) {
        self.each(&all(pages / size), |cursor, number| {
            cursor.unmap(at(number * size)).is_ok()
        });
    }
}

impl Subject for Multiarch {
    #[expect(unsafe_code, reason = "reads the table as a device would")]
    fn mapped(&self) -> Vec<Mapped> {
        // SAFETY: the table's frames come from the arena; the crate's words have present, writable, size and address
        // where a second-stage word has read, write, size and address.
        unsafe { leaves(self.0.root_paddr().as_usize() as u64, LEVELS, &X86_WORDS) }
    }
}
