//! A machine for models of the whole subsystem: two devices behind one unit that does at once what it is asked.
//!
//! Its own state is behind plain locks, which order nothing between the CPUs of a model.

#![expect(
    unsafe_code,
    reason = "promises what the backend and platform traits demand"
)]

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use hv_core::platform::{
    CacheMaintenance, Clock, Cpus, FrameSource, Instant, MemoryMap, OutOfFrames, PciConfig,
    PhysMemory, Registers, RegistersError,
};
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{
    Access, CpuId, FrameRun, Hypervisor, Iova, IovaRange, PageCount, PageSize, Pasid, PciAddress,
    PhysAddr, PhysRange, Segment,
};
use hv_iommu::{
    AtRest, Backend, Binding, Config, FaultClass, FaultDetail, FaultEvent, FlushRequest,
    FlushTicket, FunctionKind, HwDomainId, Iommu, LeafNeeds, Level, LevelSet, PasidBackend,
    PciFunction, RawFault, ReservedRegion, RootTables, UnitCaps, UnitError, UnitIndex,
};
use hv_rig::NoRegisters;
use hv_vtd::SecondStage;

use crate::arena::{Arena, Word};

/// The devices.
pub(crate) const DEVICES: [PciAddress; 2] = [
    PciAddress::from_requester(Segment(0), 1 << 3),
    PciAddress::from_requester(Segment(0), 2 << 3),
];

/// Where each has its capability for PASIDs, and the setting of it.
const PASIDS: u16 = 0x100;
const PASID_SETTING: u16 = 0x104;

/// The platform and the unit.
pub(crate) struct Board {
    arena: Arena,
    /// The command register of each device.
    commands: Mutex<HashMap<PciAddress, u32>>,
    bound: Mutex<HashMap<PciAddress, HwDomainId>>,
    faults: Mutex<VecDeque<RawFault>>,
    /// How many entries were taken down. Loading it says who has noticed that.
    unbound: AtomicU64,
    pasids_on: Mutex<HashSet<PciAddress>>,
    pasids: Mutex<HashMap<(PciAddress, Pasid), HwDomainId>>,
    unit: Mutex<Unit>,
}

/// What becomes of the unit, in models where it does not always do what it is asked.
#[derive(Default)]
struct Unit {
    /// It does not forget the next PASID that is taken from it.
    hangs: bool,
    wedged: bool,
    flushes: u64,
}

/// The subsystem on a board whose CPU 0 has `frames` frames, and the group of each device.
pub(crate) fn machine(frames: usize) -> (Iommu<Board>, Vec<AtRest<Board>>) {
    let board = Board {
        arena: Arena::new([frames, 0, 0], true),
        commands: Mutex::new(DEVICES.map(|device| (device, 0)).into()),
        bound: Mutex::new(HashMap::new()),
        faults: Mutex::new(VecDeque::new()),
        unbound: AtomicU64::new(0),
        pasids_on: Mutex::new(HashSet::new()),
        pasids: Mutex::new(HashMap::new()),
        unit: Mutex::default(),
    };
    let functions = DEVICES.map(|device| PciFunction::new(device, FunctionKind::Endpoint));
    let wait = Duration::from_secs(1);
    Iommu::new(
        board,
        &functions,
        Config {
            wait,
            ..Config::default()
        },
    )
    .unwrap()
}

impl Board {
    /// A device sends a request that is refused.
    pub(crate) fn fault(&self, requester: PciAddress) {
        self.faults.lock().unwrap().push_back(RawFault {
            requester,
            pasid: None,
            address: Iova::new(0x1000),
            access: Access::Write,
            class: FaultClass::NotPermitted,
            stage: None,
            detail: FaultDetail::default(),
            code: 6,
        });
    }

    /// The unit does not forget the next PASID that is taken from it.
    pub(crate) fn hang(&self) {
        self.unit.lock().unwrap().hangs = true;
    }

    /// How many flushes the unit was asked for.
    pub(crate) fn flushes(&self) -> u64 {
        self.unit.lock().unwrap().flushes
    }

    /// How many entries were taken down, as far as this CPU has noticed.
    pub(crate) fn unbound(&self) -> u64 {
        // ORDERING: Relaxed, as little as can be noticed.
        self.unbound.load(Ordering::Relaxed)
    }
}

// SAFETY: an entry is a word in a map, and nothing of it is cached, so that whatever is asked to be forgotten is
// already. No device of a model reaches memory.
unsafe impl Backend for Board {
    type Platform = Self;
    type Format = SecondStage<1>;

    fn platform(&self) -> &Self {
        self
    }

    fn unit_count(&self) -> usize {
        1
    }

    fn unit_caps(&self, _unit: UnitIndex) -> Option<UnitCaps> {
        Some(UnitCaps {
            snoop_control: false,
            root_tables: RootTables::ONE,
            second_stage: true,
            levels: LevelSet::EMPTY.with(Level::new(1)?),
            largest_page: PageSize::Size4K,
            coherent: true,
            domain_ids: 4,
            iova_bits: 13,
            phys_bits: 46,
            sync_on_map: false,
            write_only: true,
            live_resize: true,
            nested: false,
            dirty: false,
        })
    }

    fn pasid_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.unit_caps(unit)
    }

    fn unit_of(&self, _requester: PciAddress) -> Option<UnitIndex> {
        UnitIndex::new(0)
    }

    fn reserved(&self) -> &[IovaRange] {
        &[]
    }

    fn reserved_for(&self, _requester: PciAddress) -> impl Iterator<Item = ReservedRegion> {
        std::iter::empty()
    }

    fn format(&self, _caps: &UnitCaps, _leaves: LeafNeeds) -> SecondStage<1> {
        SecondStage::new()
    }

    unsafe fn bind(
        &self,
        _unit: UnitIndex,
        requester: PciAddress,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let before = self.bound.lock().unwrap().insert(requester, binding.domain);
        assert_eq!(before, None, "{requester} is bound twice");
        Ok(None)
    }

    fn unbind(
        &self,
        _unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        // ORDERING: Relaxed, as in `unbound`.
        self.unbound.fetch_add(1, Ordering::Relaxed);
        let before = self.bound.lock().unwrap().remove(&requester);
        assert_eq!(before, Some(domain), "{requester} is bound to another");
        Ok(FlushTicket::alone(1))
    }

    fn submit(&self, _unit: UnitIndex, _request: FlushRequest) -> Result<FlushTicket, UnitError> {
        self.unit.lock().unwrap().flushes += 1;
        Ok(FlushTicket::alone(1))
    }

    fn poll(&self, _unit: UnitIndex, _ticket: FlushTicket) -> Result<bool, UnitError> {
        Ok(true)
    }

    fn wedge(&self, unit: UnitIndex) {
        let mut state = self.unit.lock().unwrap();
        assert!(std::mem::take(&mut state.hangs), "{unit} is well");
        state.wedged = true;
    }

    fn is_wedged(&self, _unit: UnitIndex) -> bool {
        self.unit.lock().unwrap().wedged
    }

    fn reset(&self, unit: UnitIndex) -> Result<(), UnitError> {
        match std::mem::take(&mut self.unit.lock().unwrap().wedged) {
            true => Ok(()),
            false => Err(UnitError::NotWedged { unit }),
        }
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
        let fault = self.faults.lock().unwrap().pop_front();
        fault.map(FaultEvent::Fault)
    }
}

// SAFETY: as above, with a map of its own.
unsafe impl PasidBackend for Board {
    fn pasid_bits(&self, _unit: UnitIndex, _requester: PciAddress) -> u8 {
        8
    }

    unsafe fn bind_pasid(
        &self,
        _unit: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let mut pasids = self.pasids.lock().unwrap();
        let before = pasids.insert((requester, pasid), binding.domain);
        assert_eq!(before, None, "{pasid} of {requester} is bound twice");
        Ok(None)
    }

    fn unbind_pasid(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        pasid: Pasid,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        // ORDERING: Relaxed, as in `unbound`; here it lets the other CPU run.
        self.unbound.fetch_add(1, Ordering::Relaxed);
        let bound = self.pasids.lock().unwrap().remove(&(requester, pasid));
        if bound.is_none() {
            return Err(UnitError::NotBound { requester, domain });
        }
        match self.unit.lock().unwrap().hangs {
            true => Err(UnitError::Wedged { unit }),
            false => Ok(FlushTicket::alone(1)),
        }
    }
}

impl FrameSource for Board {
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        self.arena.alloc_frames(pages, align)
    }

    fn free_frames(&self, run: FrameRun<Hypervisor>) {
        FrameSource::free_frames(&self.arena, run);
    }
}

// SAFETY: as the arena's, which it hands on to.
unsafe impl PhysMemory for Board {
    type Cell = Word;

    unsafe fn cells(&self, frame: PhysAddr) -> &[Word] {
        // SAFETY: the caller's promise is the same.
        unsafe { self.arena.cells(frame) }
    }

    unsafe fn read(&self, from: PhysAddr, _out: &mut [u8]) {
        panic!("nothing is at {from}");
    }

    unsafe fn write(&self, to: PhysAddr, _bytes: &[u8]) {
        panic!("nothing is at {to}");
    }

    unsafe fn read_u32(&self, from: PhysAddr) -> u32 {
        panic!("nothing is at {from}");
    }
}

// SAFETY: nothing is firmware's.
unsafe impl MemoryMap for Board {
    fn firmware_may_use(&self, _range: PhysRange) -> bool {
        false
    }
}

impl Registers for Board {
    type Block = NoRegisters;

    fn map_registers(&self, range: PhysRange) -> Result<NoRegisters, RegistersError> {
        NoRegisters::refuse(range)
    }
}

impl PciConfig for Board {
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32 {
        // A capability for PASIDs of 8 bits, whose setting holds.
        match offset {
            PASIDS => return 0x0001_001b,
            PASID_SETTING => {
                let on = self.pasids_on.lock().unwrap().contains(&function);
                return u32::from(on) << 16 | 8 << 8;
            }
            _ => {}
        }
        let commands = self.commands.lock().unwrap();
        commands.get(&function).copied().unwrap_or(u32::MAX)
    }

    fn config_write32(&self, function: PciAddress, offset: u16, value: u32) {
        if offset == PASID_SETTING {
            let mut on = self.pasids_on.lock().unwrap();
            match value >> 16 & 1 {
                0 => on.remove(&function),
                _ => on.insert(function),
            };
            return;
        }
        self.commands.lock().unwrap().insert(function, value);
    }
}

impl CacheMaintenance for Board {
    fn write_back(&self, from: PhysAddr, bytes: u64) {
        self.arena.write_back(from, bytes);
    }

    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64) {
        self.arena.write_back(from, bytes);
    }

    fn walker_fence(&self) {}
}

impl Clock for Board {
    fn now(&self) -> Instant {
        Instant::from_nanos(0)
    }
}

// SAFETY: as the arena's: each thread of a model makes itself another CPU.
unsafe impl Cpus for Board {
    fn current_cpu(&self) -> CpuId {
        self.arena.current_cpu()
    }

    fn cpu_count(&self) -> usize {
        self.arena.cpu_count()
    }
}
