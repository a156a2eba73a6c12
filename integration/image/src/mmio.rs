//! Device registers: one mapped block, one instruction per access.
#![expect(
    unsafe_code,
    reason = "device registers are reached by raw loads and stores"
)]

use core::arch::asm;

use hv_core::PhysRange;
use hv_core::platform::Mmio;

use crate::memory::physical;

/// A block of device registers under the identity map.
///
/// Firmware's memory-type registers make device space uncached, so the identity map's write-back
/// pages do not matter.
///
/// # Invariants
/// The block is mapped device registers for as long as the machine runs.
#[derive(Clone, Copy, Debug)]
pub struct MmioBlock {
    range: PhysRange,
}

impl MmioBlock {
    /// The registers at `range`.
    ///
    /// # Safety
    /// The range is mapped, is device registers rather than RAM, and accesses to them by safe code
    /// cannot break memory safety (a device that does DMA must be behind an IOMMU or under the
    /// caller's control).
    pub const unsafe fn new(range: PhysRange) -> Self {
        // INVARIANT: the caller's promise.
        Self { range }
    }

    /// Where the block is.
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// The register of `width` bytes at `offset`, or `None` if it is not aligned or passes the end.
    fn register(&self, offset: u32, width: u64) -> Option<*mut u8> {
        let offset = u64::from(offset);
        let fits = offset + width <= self.range.pages().bytes();
        if !fits || offset % width != 0 {
            return None;
        }
        let address = self.range.start().checked_add(offset)?;
        Some(physical::pointer(address))
    }
}

// Each access is one `mov` in assembly: the width is certain, and an asm block without `nomem`
// keeps the compiler from moving other memory accesses across it. The CPU keeps an uncached store
// behind all earlier stores.
impl Mmio for MmioBlock {
    fn read32(&self, offset: u32) -> u32 {
        let Some(register) = self.register(offset, 4) else {
            return u32::MAX;
        };
        let value: u32;
        // SAFETY: the invariant says that the block is mapped registers; offset and alignment were
        // checked.
        unsafe {
            asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) register, options(nostack, preserves_flags))
        };
        value
    }

    fn write32(&self, offset: u32, value: u32) {
        let Some(register) = self.register(offset, 4) else {
            return;
        };
        // SAFETY: as in `read32`.
        unsafe {
            asm!("mov [{1}], {0:e}", in(reg) value, in(reg) register, options(nostack, preserves_flags))
        };
    }

    fn read64(&self, offset: u32) -> u64 {
        let Some(register) = self.register(offset, 8) else {
            return u64::MAX;
        };
        let value: u64;
        // SAFETY: as in `read32`.
        unsafe {
            asm!("mov {0}, [{1}]", out(reg) value, in(reg) register, options(nostack, preserves_flags))
        };
        value
    }

    fn write64(&self, offset: u32, value: u64) {
        let Some(register) = self.register(offset, 8) else {
            return;
        };
        // SAFETY: as in `read32`.
        unsafe {
            asm!("mov [{1}], {0}", in(reg) value, in(reg) register, options(nostack, preserves_flags))
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_core::{PageCount, PhysAddr};

    /// A page of memory that stands for registers; `u64` words of a page-aligned buffer.
    #[repr(C, align(4096))]
    struct Page([u64; 512]);

    #[test]
    fn accesses_stay_inside_the_block() {
        let mut page = Box::new(Page([0x1122_3344_5566_7788; 512]));
        let address = PhysAddr::new((&raw mut *page).expose_provenance() as u64);
        let range = PhysRange::new(address, PageCount::ONE).unwrap();
        // SAFETY: the page is mapped, and nothing else uses it while the block does.
        let block = unsafe { MmioBlock::new(range) };
        assert_eq!(block.read32(4092), 0x1122_3344);
        assert_eq!(block.read64(4088), 0x1122_3344_5566_7788);
        assert_eq!(block.read32(4096), u32::MAX);
        assert_eq!(block.read64(4092), u64::MAX);
        assert_eq!(block.read32(2), u32::MAX);
        block.write32(0, 7);
        block.write64(8, 9);
        block.write32(4096, 1);
        block.write64(u32::MAX, 1);
        assert_eq!(page.0[0], 0x1122_3344_0000_0007);
        assert_eq!(page.0[1], 9);
    }
}
