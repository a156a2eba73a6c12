//! Guard pages: single 4 KiB pages taken out of the identity map, so that running into one is a
//! page fault.
#![expect(unsafe_code, reason = "edits the page tables that the CPU uses")]

use hv_core::{PageCount, PageSize, PhysAddr};
use thiserror::Error;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::page_table::{PageTable, PageTableEntry};
use x86_64::structures::paging::{PageTableFlags, PhysFrame, Size4KiB};

use crate::memory::frames::FrameAllocator;
use crate::memory::physical;

/// A guard page could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GuardError {
    /// The identity map uses pages larger than 2 MiB there, or none.
    #[error("{page} is not mapped by a 2 MiB or 4 KiB page, so it cannot become a guard page")]
    NotSplittable {
        /// The page.
        page: PhysAddr,
    },
    /// No frame for the finer table.
    #[error("no frame for the page table around guard page {page}")]
    NoFrame {
        /// The page.
        page: PhysAddr,
    },
}

/// Takes the 4 KiB page at `page` out of the identity map.
///
/// # Errors
/// [`GuardError`]; nothing is changed then.
///
/// # Safety
/// Called on the only CPU that runs; nothing uses the page from then on.
pub unsafe fn unmap(page: PhysAddr, frames: &FrameAllocator) -> Result<(), GuardError> {
    let address = VirtAddr::new_truncate(page.as_u64());
    let not_splittable = GuardError::NotSplittable { page };
    let (root, _) = Cr3::read();
    let mut entry = child(root, address.p4_index().into());
    for index in [address.p3_index(), address.p2_index()] {
        let frame = entry.frame().map_err(|_| not_splittable)?;
        entry = child(frame, index.into());
    }
    if entry.flags().contains(PageTableFlags::HUGE_PAGE) {
        split(entry, page, frames)?;
    }
    let frame = entry.frame().map_err(|_| not_splittable)?;
    child(frame, address.p1_index().into()).set_unused();
    tlb::flush(address);
    Ok(())
}

/// Replaces a 2 MiB page by a table of 4 KiB pages of the same meaning.
fn split(
    entry: &mut PageTableEntry,
    page: PhysAddr,
    frames: &FrameAllocator,
) -> Result<(), GuardError> {
    let range = frames
        .take(PageCount::ONE, PageSize::Size4K)
        .map_err(|_| GuardError::NoFrame { page })?;
    let table = physical::pointer(range.start()).cast::<PageTable>();
    // SAFETY: the frame was just taken, so it is mapped RAM that nothing else uses, and page
    // aligned as a table is; any bits are valid entries.
    let table = unsafe { &mut *table };
    let flags = entry.flags() - PageTableFlags::HUGE_PAGE;
    let mut address = entry.addr();
    for small in table.iter_mut() {
        small.set_addr(address, flags);
        address += PageSize::Size4K.bytes();
    }
    let frame = PhysFrame::<Size4KiB>::containing_address(x86_64::PhysAddr::new_truncate(
        range.start().as_u64(),
    ));
    entry.set_frame(frame, PageTableFlags::PRESENT | PageTableFlags::WRITABLE);
    Ok(())
}

/// One entry of a table of the identity map.
///
/// The reference is the only one: `unmap` runs on the only CPU, and uses one entry after the other.
fn child(table: PhysFrame<Size4KiB>, index: usize) -> &'static mut PageTableEntry {
    let address = PhysAddr::new(table.start_address().as_u64());
    let table = physical::pointer(address).cast::<PageTable>();
    // SAFETY: the frame was found by walking from CR3, so it is a live, page-aligned table of the
    // identity map.
    let table = unsafe { &mut *table };
    &mut table[index & 511]
}
