//! Device registers: one mapped block, one instruction per access.
#![expect(
    unsafe_code,
    reason = "device registers are reached by raw loads and stores"
)]

use hv_core::PhysRange;
use hv_core::platform::Mmio;

use crate::arch::access;
use crate::memory::physical;

/// A block of device registers under the identity map.
///
/// It is uncached: by firmware's memory-type registers on x86, by the identity map's device pages on Arm.
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

// Each access is one instruction in assembly, with what keeps it in order on this architecture.
impl Mmio for MmioBlock {
    fn read32(&self, offset: u32) -> u32 {
        match self.register(offset, 4) {
            // SAFETY: the invariant says that the block is mapped registers; offset and alignment were checked.
            Some(register) => unsafe { access::read32(register.cast()) },
            None => u32::MAX,
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        if let Some(register) = self.register(offset, 4) {
            // SAFETY: as in `read32`.
            unsafe { access::write32(register.cast(), value) };
        }
    }

    fn read64(&self, offset: u32) -> u64 {
        match self.register(offset, 8) {
            // SAFETY: as in `read32`.
            Some(register) => unsafe { access::read64(register.cast()) },
            None => u64::MAX,
        }
    }

    fn write64(&self, offset: u32, value: u64) {
        if let Some(register) = self.register(offset, 8) {
            // SAFETY: as in `read32`.
            unsafe { access::write64(register.cast(), value) };
        }
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
