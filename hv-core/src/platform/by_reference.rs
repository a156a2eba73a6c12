//! A shared reference to a platform is a platform: what lives for ever need not be moved in.

use super::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use crate::{CpuId, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange};

impl<T: FrameSource> FrameSource for &T {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        (**self).alloc_frames(pages, align)
    }
    fn alloc_table(&self) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        (**self).alloc_table()
    }
    fn alloc_table_run(&self, frames: PageCount) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        (**self).alloc_table_run(frames)
    }
    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        (**self).free_frames(run);
    }
}

// SAFETY: every call is passed on as it is to an implementation that keeps the contract.
unsafe impl<T: PhysMemory> PhysMemory for &T {
    type Cell = T::Cell;
    unsafe fn cells(&self, frame: PhysAddr) -> &[T::Cell] {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).cells(frame) }
    }
    unsafe fn cells_of(&self, first: PhysAddr, frames: PageCount) -> Option<&[T::Cell]> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).cells_of(first, frames) }
    }
    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).read(from, out) }
    }
    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).write(to, bytes) }
    }
    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).read_u32(from) }
    }
}

// SAFETY: every call is passed on as it is to an implementation that keeps the contract.
unsafe impl<T: MemoryMap> MemoryMap for &T {
    fn firmware_may_use(&self, range: PhysRange) -> bool {
        (**self).firmware_may_use(range)
    }
    fn takes_messages(&self, range: PhysRange) -> bool {
        (**self).takes_messages(range)
    }
}

impl<T: Registers> Registers for &T {
    type Block = T::Block;
    fn map_registers(&self, range: PhysRange) -> Result<T::Block, RegistersError> {
        (**self).map_registers(range)
    }
}

impl<T: PciConfig> PciConfig for &T {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        (**self).config_read32(function, offset)
    }
    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        (**self).config_write32(function, offset, value);
    }
}

impl<T: CacheMaintenance> CacheMaintenance for &T {
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        (**self).write_back(from, bytes);
    }
    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        (**self).write_back_and_drop(from, bytes);
    }
    fn walker_fence(&self) {
        (**self).walker_fence();
    }
}

impl<T: Clock> Clock for &T {
    fn now(&self) -> Instant {
        (**self).now()
    }
    fn pause(&self) {
        (**self).pause();
    }
}

// SAFETY: every call is passed on as it is to an implementation that keeps the contract.
unsafe impl<T: Cpus> Cpus for &T {
    fn current_cpu(&self) -> CpuId {
        (**self).current_cpu()
    }
    fn cpu_count(&self) -> usize {
        (**self).cpu_count()
    }
}
