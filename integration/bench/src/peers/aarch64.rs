//! The crate `aarch64-paging`: its `RootTable` for a second stage, which unlike its `Mapping` flushes nothing.

#![expect(unsafe_code, reason = "the crate's trait gives frames as pointers")]

use std::ptr::{self, NonNull};

use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes, VirtualAddress};
use aarch64_paging::paging::{
    Constraints, MemoryRegion, PageTable, RootTable, Stage2, Translation,
};

use super::{Peer, all};
use crate::arena;
use crate::lane::{self, Mapped, Subject};
use crate::order::Order;
use crate::window::{IOVA, LONGEST, PAGE, iova, phys};

/// A table of the crate.
pub struct Aarch64(RootTable<Stage2, Frames>);

struct Frames;

fn pointer(at: u64) -> NonNull<PageTable<Stage2Attributes>> {
    let pointer = ptr::with_exposed_provenance_mut(at as usize);
    NonNull::new(pointer).expect("the arena begins above address 0")
}

impl Translation<Stage2Attributes> for Frames {
    fn allocate_table(&mut self) -> (NonNull<PageTable<Stage2Attributes>>, PhysicalAddress) {
        let at = arena::take_zeroed().expect("the arena has frames for every peer");
        (pointer(at), PhysicalAddress(at as usize))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<Stage2Attributes>>) {
        let at = table.expose_provenance().get();
        // SAFETY: by the caller's promise the frame came from `allocate_table` and is given back once.
        unsafe { arena::put(at as u64) };
    }

    #[inline]
    fn physical_to_virtual(&self, at: PhysicalAddress) -> NonNull<PageTable<Stage2Attributes>> {
        pointer(at.0 as u64)
    }
}

const FLAGS: Stage2Attributes = Stage2Attributes::VALID
    .union(Stage2Attributes::S2AP_ACCESS_RW)
    .union(Stage2Attributes::SH_INNER)
    .union(Stage2Attributes::ACCESS_FLAG)
    .union(Stage2Attributes::MEMATTR_NORMAL_INNER_WB)
    .union(Stage2Attributes::MEMATTR_NORMAL_OUTER_WB);

impl Aarch64 {
    #[inline(always)]
    fn set(&mut self, page: u64, pages: u64, flags: Stage2Attributes, only: Constraints) -> bool {
        let start = iova(page) as usize;
        let region = MemoryRegion::new(start, start + (pages * PAGE) as usize);
        let to = PhysicalAddress(phys(page) as usize);
        self.0.map_range(&region, to, flags, only).is_ok()
    }

    #[inline(never)]
    fn each<O: Order>(&mut self, order: &O, mut act: impl FnMut(&mut Self, u64) -> bool) {
        let mut failed = 0_u64;
        for page in order.pages() {
            failed |= u64::from(!act(self, page));
        }
        lane::check(failed, Self::NAME);
    }
}

impl Peer for Aarch64 {
    const NAME: &'static str = "aarch64-paging";

    fn new() -> Self {
        Self(RootTable::new(Frames, 0, Stage2))
    }

    fn map<O: Order>(&mut self, order: &O) {
        self.each(order, |peer, page| {
            peer.set(page, 1, FLAGS, Constraints::NO_BLOCK_MAPPINGS)
        });
    }

    fn unmap<O: Order>(&mut self, order: &O) {
        self.each(order, |peer, page| {
            peer.set(page, 1, Stage2Attributes::empty(), Constraints::empty())
        });
    }

    fn pair<O: Order>(&mut self, order: &O) {
        self.each(order, |peer, page| {
            peer.set(page, 1, FLAGS, Constraints::NO_BLOCK_MAPPINGS)
                & peer.set(page, 1, Stage2Attributes::empty(), Constraints::empty())
        });
    }

    #[inline(never)]
    fn translate<O: Order>(&self, order: &O) -> u64 {
        let mut sum = 0_u64;
        for page in order.pages() {
            let at = iova(page) as usize;
            let region = MemoryRegion::new(at, at + PAGE as usize);
            let _ = self.0.walk_range(&region, &mut |_, descriptor, _| {
                sum = sum.wrapping_add(descriptor.output_address().0 as u64);
                Ok(())
            });
        }
        sum
    }

    fn map_ranges(&mut self, pages: u64, step: u64) {
        self.each(&all(pages / step), |peer, at| {
            peer.set(at * step, step, FLAGS, Constraints::NO_BLOCK_MAPPINGS)
        });
    }

    fn unmap_ranges(&mut self, pages: u64, step: u64) {
        self.each(&all(pages / step), |peer, at| {
            peer.set(
                at * step,
                step,
                Stage2Attributes::empty(),
                Constraints::empty(),
            )
        });
    }

    fn map_large(&mut self, pages: u64, size: u64) {
        // The crate takes the largest leaf that fits: a call for each leaf keeps the size.
        self.each(&all(pages / size), |peer, at| {
            peer.set(at * size, size, FLAGS, Constraints::empty())
        });
    }

    fn unmap_large(&mut self, pages: u64, size: u64) {
        self.unmap_ranges(pages, size);
    }
}

impl Subject for Aarch64 {
    fn mapped(&self) -> Vec<Mapped> {
        let mut found = Vec::new();
        let window = MemoryRegion::new(IOVA as usize, (IOVA + LONGEST) as usize);
        let _ = self.0.walk_range(&window, &mut |region, descriptor, _| {
            if descriptor.is_valid() {
                let VirtualAddress(at) = region.start();
                found.push(Mapped {
                    at: at as u64,
                    to: descriptor.output_address().0 as u64,
                    bytes: region.len() as u64,
                });
            }
            Ok(())
        });
        found
    }
}
