//! The bare machine as the platform that the IOMMU crates ask for.
#![expect(
    unsafe_code,
    reason = "implements the platform traits whose contract memory safety rests on"
)]

use arrayvec::ArrayVec;
use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::sync::AtomicU64;
use hv_core::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange};

use crate::arch::machine::REGISTERS;
use crate::arch::{cache, clock, cpu};
use crate::device_tree::Doorbells;
use crate::memory::frames::{FrameAllocator, FrameCounts};
use crate::memory::physical;
use crate::memory::usable::{MAX_SPANS, Span};
use crate::mmio::MmioBlock;
use crate::pci::Ecam;

/// 64-bit words of a frame.
const WORDS: usize = PageSize::Size4K.bytes() as usize / size_of::<AtomicU64>();

/// Maps registers: everything under the identity map that is not RAM.
#[derive(Clone, Debug)]
pub struct DeviceSpace {
    ram: ArrayVec<Span, MAX_SPANS>,
    firmware: ArrayVec<Span, MAX_SPANS>,
    doorbells: Doorbells,
    limit: PhysAddr,
}

impl DeviceSpace {
    /// Device space below `limit`, beside `ram` and what is `firmware`'s.
    pub const fn new(
        ram: ArrayVec<Span, MAX_SPANS>,
        firmware: ArrayVec<Span, MAX_SPANS>,
        limit: PhysAddr,
    ) -> Self {
        Self {
            ram,
            firmware,
            doorbells: Doorbells::new_const(),
            limit,
        }
    }

    /// The same, with places where devices write interrupt messages.
    #[must_use]
    pub fn with_doorbells(self, doorbells: Doorbells) -> Self {
        Self { doorbells, ..self }
    }
}

impl DeviceSpace {
    /// Whether the memory map lists nothing of the range as RAM, all of which is the image's or its guests'.
    fn is_no_ram(&self, range: PhysRange) -> bool {
        !self.ram.iter().any(|span| span.overlaps(range))
    }

    /// Whether all of the range takes interrupt messages, by the device tree, and none of it is RAM.
    pub fn takes_messages(&self, range: PhysRange) -> bool {
        self.is_no_ram(range) && self.doorbells.iter().any(|frame| frame.covers(&range))
    }

    /// Whether the memory map says of all of the range that it is reserved, and of nothing of it that it is RAM.
    pub fn is_firmwares(&self, range: PhysRange) -> bool {
        self.is_no_ram(range) && self.firmware.iter().any(|span| span.covers(range))
    }
}

impl Registers for DeviceSpace {
    type Block = MmioBlock;

    fn map_registers(&self, range: PhysRange) -> Result<MmioBlock, RegistersError> {
        if range.last() >= self.limit {
            let reason = "it lies above the identity map";
            return Err(RegistersError { range, reason });
        }
        if !self.is_no_ram(range) {
            let reason = "the memory map says that it is RAM";
            return Err(RegistersError { range, reason });
        }
        // SAFETY: the range is mapped and not RAM. What its registers do to memory is up to the
        // device's driver: bus mastering is off for every device until it was given to a
        // domain.
        Ok(unsafe { MmioBlock::new(range) })
    }
}

/// The machine that the image runs on.
pub struct BareMetal {
    frames: FrameAllocator,
    devices: DeviceSpace,
    config: Ecam<MmioBlock>,
    cpus: usize,
}

impl BareMetal {
    /// The machine made of these parts; `cpus` of its CPUs run.
    ///
    /// # Safety
    /// `frames` hands out RAM under the identity map that nothing else uses, and the CPUs numbered
    /// below `cpus` by [`cpu::current`] are all that run.
    pub unsafe fn new(
        frames: FrameAllocator,
        devices: DeviceSpace,
        config: Ecam<MmioBlock>,
        cpus: usize,
    ) -> Self {
        Self {
            frames,
            devices,
            config,
            cpus,
        }
    }

    /// How many frames there are and how many are out.
    pub fn frame_counts(&self) -> FrameCounts {
        self.frames.counts()
    }

    /// Whether interrupt messages go to services that tell who sent them, as far as firmware says.
    pub fn tells_senders_apart(&self) -> bool {
        !self.devices.doorbells.is_empty()
    }

    /// PCI configuration space.
    pub fn config(&self) -> &Ecam<MmioBlock> {
        &self.config
    }
}

impl FrameSource for BareMetal {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        let range = self.frames.take(pages, align)?;
        // SAFETY: the frames are RAM under the identity map, and were just taken for this caller
        // alone.
        unsafe { physical::zero(range) };
        // SAFETY: as above.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn alloc_table(&self) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        let range = self.frames.take(PageCount::ONE, PageSize::Size4K)?;
        // SAFETY: the frame is RAM under the identity map, and was just taken for this caller alone. A
        // table has every word of it written, so nothing is zeroed here.
        Ok(unsafe { FrameRun::from_raw(range, ()) })
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        // A run is the one owner of its frames, so this fails only after memory was corrupted: no
        // reason to go on.
        if let Err(error) = self.frames.give_back(run.range()) {
            panic!("{error}");
        }
    }
}

// SAFETY: the identity map shows every frame at its own address, and each method reaches just the
// bytes it is asked for.
unsafe impl PhysMemory for BareMetal {
    type Cell = AtomicU64;

    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        let cells = physical::pointer(frame).cast::<AtomicU64>().cast_const();
        // SAFETY: the caller owns the frame, which is mapped and 4 KiB aligned; any bits are valid,
        // and all access to table memory goes through atomics.
        unsafe { core::slice::from_raw_parts(cells, WORDS) }
    }

    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]) {
        // SAFETY: the caller owns the bytes, and `out` is memory of its own.
        unsafe { physical::copy(out.as_mut_ptr(), physical::pointer(from), out.len()) };
    }

    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]) {
        // SAFETY: the caller owns the bytes, and `bytes` is memory of its own.
        unsafe { physical::copy(physical::pointer(to), bytes.as_ptr(), bytes.len()) };
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        // SAFETY: the caller owns the four aligned bytes.
        unsafe { physical::read_word(physical::pointer(from).cast()) }
    }
}

// SAFETY: the image and its guests use RAM of the memory map alone. Registers may be listed as reserved too: those
// of interrupt controllers and IOMMUs are where the architecture has them, those of configuration space where firmware
// says. The translation frame of an ITS, which has one register, is where the tree says that the ITS is: the same
// tree that tells where its control registers are.
unsafe impl MemoryMap for BareMetal {
    fn firmware_may_use(&self, range: PhysRange) -> bool {
        let mut config = self.config.regions();
        self.devices.is_firmwares(range)
            && !REGISTERS.overlaps(range)
            && !config.any(|region| region.range().overlaps(&range))
    }

    fn takes_messages(&self, range: PhysRange) -> bool {
        self.devices.takes_messages(range)
    }
}

impl Registers for BareMetal {
    type Block = MmioBlock;

    fn map_registers(&self, range: PhysRange) -> Result<MmioBlock, RegistersError> {
        self.devices.map_registers(range)
    }
}

impl PciConfig for BareMetal {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.config.config_read32(function, offset)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.config.config_write32(function, offset, value);
    }
}

impl CacheMaintenance for BareMetal {
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        cache::write_back(from, bytes);
    }

    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        cache::write_back_and_drop(from, bytes);
    }

    fn walker_fence(&self) {
        cache::walker_fence();
    }
}

impl Clock for BareMetal {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn pause(&self) {
        clock::pause();
    }
}

// SAFETY: every CPU has a number of its own in a register of its own, below the number of CPUs that run.
// Code is never moved between CPUs: there is no scheduler. Interrupt handlers do not call into the
// IOMMU crates.
unsafe impl Cpus for BareMetal {
    fn current_cpu(&self) -> CpuId {
        cpu::current()
    }

    fn cpu_count(&self) -> usize {
        self.cpus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_and_what_is_not_mapped_are_no_registers() {
        let ram = [Span::new(PhysAddr::new(0x10_0000), 0x10_0000)];
        let (ram, none) = (ram.into_iter().collect(), ArrayVec::new());
        let devices = DeviceSpace::new(ram, none, PhysAddr::new(1 << 32));
        let page = |at| PhysRange::new(PhysAddr::new(at), PageCount::ONE).unwrap();
        assert!(devices.map_registers(page(0xfed9_0000)).is_ok());
        assert!(devices.map_registers(page(0x20_0000)).is_ok());
        assert!(devices.map_registers(page(0x1f_f000)).is_err());
        assert!(devices.map_registers(page(1 << 32)).is_err());
    }

    #[test]
    fn bc06_firmwares_is_what_the_map_reserves_and_does_not_call_ram() {
        let span = |at, bytes| Span::new(PhysAddr::new(at), bytes);
        let ram = [span(0x10_0000, 0x10_0000)].into_iter().collect();
        // The second one claims a page of RAM too.
        let firmware = [span(0x30_0000, 0x4000), span(0x1f_f000, 0x3000)];
        let limit = PhysAddr::new(1 << 32);
        let devices = DeviceSpace::new(ram, firmware.into_iter().collect(), limit);
        let pages =
            |at, count| PhysRange::new(PhysAddr::new(at), PageCount::new(count).unwrap()).unwrap();
        for (at, count, expected) in [
            (0x30_0000, 4, true),
            (0x30_3000, 1, true),
            // Beyond it, before it, in no entry at all, in RAM, over both.
            (0x30_3000, 2, false),
            (0x2f_f000, 2, false),
            (0x40_0000, 1, false),
            (0x10_0000, 1, false),
            (0x1f_f000, 2, false),
            (0x20_0000, 2, true),
        ] {
            let found = devices.is_firmwares(pages(at, count));
            assert_eq!(found, expected, "{count} pages at {at:#x}");
        }
    }
}
