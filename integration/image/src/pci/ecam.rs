//! Configuration space through its memory-mapped regions (ECAM).

use core::ops::RangeInclusive;

use arrayvec::ArrayVec;
use hv_core::platform::{Mmio, PciConfig, Registers, RegistersError};
use hv_core::{PageCount, PciAddress, PhysAddr, PhysRange, Segment};

/// Bytes of configuration space of one function.
const FUNCTION_BYTES: u16 = 4096;
/// Log2 of the same.
const FUNCTION_SHIFT: u32 = 12;

/// Log2 of the bytes that one bus takes: 32 devices of 8 functions of 4 KiB.
const BUS_SHIFT: u32 = 20;

/// Memory-mapped configuration space of some buses of one segment.
///
/// # Invariants
/// `first_bus <= last_bus`, and the whole region lies below 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamRegion {
    segment: Segment,
    first_bus: u8,
    last_bus: u8,
    range: PhysRange,
}

impl EcamRegion {
    /// The region of these buses, where the registers of bus 0 are (or would be) at `base`; `None` when there is no
    /// bus, `base` is not a page, or the end of memory is passed.
    pub fn new(segment: Segment, buses: RangeInclusive<u8>, base: PhysAddr) -> Option<Self> {
        let (first_bus, last_bus) = (*buses.start(), *buses.end());
        let bytes = Self::bytes(buses);
        let start = base.checked_add(u64::from(first_bus) << BUS_SHIFT)?;
        let range = PhysRange::new(start, PageCount::for_bytes(bytes)?).ok()?;
        // INVARIANT: no bus at all has no bytes, which is no page count; `PhysRange` does not wrap.
        Some(Self {
            segment,
            first_bus,
            last_bus,
            range,
        })
    }

    /// How many bytes the registers of these buses take.
    pub fn bytes(buses: RangeInclusive<u8>) -> u64 {
        (buses.count() as u64) << BUS_SHIFT
    }

    /// The segment.
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// The buses that the region decodes.
    pub fn buses(&self) -> RangeInclusive<u8> {
        self.first_bus..=self.last_bus
    }

    /// The registers, from those of the first bus on.
    pub fn range(&self) -> PhysRange {
        self.range
    }
}

/// Configuration space of every segment that firmware names.
pub struct Ecam<B> {
    regions: ArrayVec<(EcamRegion, B), 16>,
}

impl<B: Mmio> Ecam<B> {
    /// Maps the regions that firmware names.
    ///
    /// # Errors
    /// [`RegistersError`] when a region cannot be mapped.
    pub fn map(
        named: &[EcamRegion],
        registers: &impl Registers<Block = B>,
    ) -> Result<Self, RegistersError> {
        let mut regions = ArrayVec::new();
        for region in named {
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

    /// The regions, in firmware's order.
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
