//! Configuration space through its memory-mapped regions (ECAM).

use arrayvec::ArrayVec;
use hv_core::PciAddress;
use hv_core::platform::{Mmio, PciConfig, Registers, RegistersError};

use crate::acpi::{EcamRegion, Mcfg};

/// Bytes of configuration space of one function.
const FUNCTION_BYTES: u16 = 4096;
/// Log2 of the same.
const FUNCTION_SHIFT: u32 = 12;

/// Configuration space of every segment that the MCFG names.
pub struct Ecam<B> {
    regions: ArrayVec<(EcamRegion, B), 16>,
}

impl<B: Mmio> Ecam<B> {
    /// Maps the regions of the table.
    ///
    /// # Errors
    /// [`RegistersError`] when a region cannot be mapped.
    pub fn map(mcfg: &Mcfg, registers: &impl Registers<Block = B>) -> Result<Self, RegistersError> {
        let mut regions = ArrayVec::new();
        for region in &mcfg.regions {
            let block = registers.map_registers(region.range())?;
            regions
                .try_push((*region, block))
                .map_err(|_| RegistersError {
                    range: region.range(),
                    reason: "more configuration regions than the image keeps",
                })?;
        }
        Ok(Self { regions })
    }

    /// The regions, in table order.
    pub fn regions(&self) -> impl Iterator<Item = &EcamRegion> {
        self.regions.iter().map(|(region, _)| region)
    }

    /// The block that holds the function's registers, and the offset of one of them in it.
    fn place(&self, function: PciAddress, offset: u16) -> Option<(&B, u32)> {
        if offset >= FUNCTION_BYTES {
            return None;
        }
        let (region, block) = self.regions.iter().find(|(region, _)| {
            region.segment() == function.segment() && region.buses().contains(&function.bus())
        })?;
        // The region's mapping starts at its first bus.
        let bus = u32::from(function.bus() - region.buses().start());
        let slot = bus << 8 | u32::from(function.devfn());
        Some((block, slot << FUNCTION_SHIFT | u32::from(offset)))
    }
}

impl<B: Mmio> PciConfig for Ecam<B> {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.place(function, offset)
            .map_or(u32::MAX, |(block, at)| block.read32(at))
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        if let Some((block, at)) = self.place(function, offset) {
            block.write32(at, value);
        }
    }
}
