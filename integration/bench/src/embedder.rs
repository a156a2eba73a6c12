//! A hypervisor of the benchmark: the typed API over the arena, with one unit that is always done at once. What its
//! rows measure is software alone.

#![expect(
    unsafe_code,
    reason = "implements the traits whose contract memory safety rests on"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::{
    CpuId, FrameRun, Hypervisor, IovaRange, PageCount, PageSize, PciAddress, PhysAddr, PhysRange,
    Segment,
};
use hv_iommu::{
    AtRest, Backend, Binding, Config, FaultEvent, FlushRequest, FlushTicket, FunctionKind,
    HwDomainId, Iommu, LeafNeeds, Level, LevelSet, PciFunction, ReservedRegion, RootTables,
    UnitCaps, UnitError, UnitIndex,
};
use hv_rig::NoRegisters;

use crate::format::{self, Tables};
use crate::platform::{Memory, SNOOPED};
use crate::window::LEVELS;

/// The arena as a whole platform.
#[derive(Debug)]
pub struct Platform;

impl Platform {
    fn memory(&self) -> &'static Memory<true> {
        &SNOOPED
    }
}

impl FrameSource for Platform {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        self.memory().alloc_frames(pages, align)
    }

    fn alloc_table(&self) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        self.memory().alloc_table()
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        self.memory().free_frames(run);
    }
}

// SAFETY: all is the arena's platform's, which keeps the contract.
unsafe impl PhysMemory for Platform {
    type Cell = AtomicU64;

    #[inline]
    unsafe fn cells(&self, frame: PhysAddr) -> &[AtomicU64] {
        // SAFETY: the caller's promise is the same.
        unsafe { self.memory().cells(frame) }
    }

    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.memory().read(from, out) }
    }

    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.memory().write(to, bytes) }
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        // SAFETY: the caller's promise is the same.
        unsafe { self.memory().read_u32(from) }
    }
}

impl CacheMaintenance for Platform {
    #[inline]
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        self.memory().write_back(from, bytes);
    }

    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.memory().write_back_and_drop(from, bytes);
    }

    #[inline]
    fn walker_fence(&self) {
        self.memory().walker_fence();
    }
}

// SAFETY: the arena's platform has one number for each thread.
unsafe impl Cpus for Platform {
    #[inline]
    fn current_cpu(&self) -> CpuId {
        self.memory().current_cpu()
    }

    fn cpu_count(&self) -> usize {
        self.memory().cpu_count()
    }
}

impl Clock for Platform {
    fn now(&self) -> Instant {
        // Nothing waits here, so no time passes.
        Instant::from_nanos(0)
    }
}

// SAFETY: nothing is firmware's.
unsafe impl MemoryMap for Platform {
    fn firmware_may_use(&self, _range: PhysRange) -> bool {
        false
    }
}

impl Registers for Platform {
    type Block = NoRegisters;

    fn map_registers(&self, range: PhysRange) -> Result<NoRegisters, RegistersError> {
        NoRegisters::refuse(range)
    }
}

impl PciConfig for Platform {
    fn config_read32(&self, _function: PciAddress, _offset: u16) -> u32 {
        0
    }
    fn config_write32(&self, _function: PciAddress, _offset: u16, _value: u32) {}
}

/// A backend whose one unit completes everything at once.
#[derive(Debug)]
pub struct Instantly {
    platform: Platform,
    submitted: AtomicU64,
}

impl Instantly {
    fn ticket(&self) -> FlushTicket {
        // ORDERING: Relaxed, a number.
        let sequence = self.submitted.fetch_add(1, Ordering::Relaxed) + 1;
        FlushTicket::alone(sequence)
    }
}

// SAFETY: there is no device, so none reaches memory, and no unit, so none holds anything.
unsafe impl Backend for Instantly {
    type Platform = Platform;
    type Format = Tables;

    fn platform(&self) -> &Platform {
        &self.platform
    }

    fn unit_count(&self) -> usize {
        1
    }

    fn unit_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        (unit.index() == 0).then_some(UnitCaps {
            snoop_control: false,
            root_tables: RootTables::ONE,
            second_stage: true,
            levels: LevelSet::EMPTY.with(Level::new(LEVELS as u8)?),
            largest_page: PageSize::Size1G,
            coherent: true,
            domain_ids: 256,
            iova_bits: 48,
            phys_bits: 52,
            sync_on_map: false,
            write_only: true,
            live_resize: true,
            nested: false,
            dirty: false,
        })
    }

    fn unit_of(&self, _requester: PciAddress) -> Option<UnitIndex> {
        UnitIndex::new(0)
    }

    fn reserved(&self) -> &[IovaRange] {
        &[]
    }

    fn reserved_for(&self, _requester: PciAddress) -> impl Iterator<Item = ReservedRegion> {
        core::iter::empty()
    }

    fn format(&self, _caps: &UnitCaps, _leaves: LeafNeeds) -> Tables {
        format::tables(true, false)
    }

    unsafe fn bind(
        &self,
        _unit: UnitIndex,
        _requester: PciAddress,
        _binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        Ok(None)
    }

    fn unbind(
        &self,
        _unit: UnitIndex,
        _requester: PciAddress,
        _domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        Ok(self.ticket())
    }

    fn submit(&self, _unit: UnitIndex, _request: FlushRequest) -> Result<FlushTicket, UnitError> {
        Ok(self.ticket())
    }

    fn poll(&self, _unit: UnitIndex, _ticket: FlushTicket) -> Result<bool, UnitError> {
        Ok(true)
    }

    fn wedge(&self, _unit: UnitIndex) {}

    fn is_wedged(&self, _unit: UnitIndex) -> bool {
        false
    }

    fn reset(&self, unit: UnitIndex) -> Result<(), UnitError> {
        Err(UnitError::NotWedged { unit })
    }

    fn shut_down(&self, unit: UnitIndex) -> Result<(), UnitError> {
        Err(UnitError::NotWedged { unit })
    }
    fn quiet(&self, _unit: UnitIndex, _requester: PciAddress) -> Result<(), UnitError> {
        Ok(())
    }

    fn reread(&self, _unit: UnitIndex, _requester: PciAddress) -> Result<(), UnitError> {
        Ok(())
    }

    fn take_fault(&self, _unit: UnitIndex) -> Option<FaultEvent> {
        None
    }
}

/// The subsystem over that backend, with one device, and its group.
pub fn subsystem() -> (
    Iommu<Instantly>,
    hv_iommu::Group<Instantly, hv_iommu::Blocked>,
) {
    let backend = Instantly {
        platform: Platform,
        submitted: AtomicU64::new(0),
    };
    let address = PciAddress::from_requester(Segment(0), 8);
    let device = PciFunction::new(address, FunctionKind::Endpoint);
    let (iommu, groups) =
        Iommu::new(backend, &[device], Config::default()).expect("the host has memory");
    let mut groups = groups.into_iter().flat_map(AtRest::claimable);
    let group = groups.next().expect("one device, one group");
    (iommu, group)
}
