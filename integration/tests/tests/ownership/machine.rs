//! The machine that the tests run on: two units, a handful of devices, and shorthands.

use std::time::Duration;

use hv_core::{
    Gpa, GpaRange, GuestMemory, Iova, IovaRange, KernelPaging, PageCount, PageSize, PciAddress,
    Segment, UserManaged, VmId,
};
use hv_iommu::{
    AtRest, Attached, Blocked, BusRange, Config, Domain, DomainConfig, FunctionKind, Group,
    InterruptsIsolated, Iommu, Level, LevelSet, PciFunction, ReservedRegion, RootTables, UnitCaps,
};
use hv_tests::fake::{Fake, FakeConfig};
use hv_tests::host::{Host, Time};

/// The function at this place of segment 0.
pub(crate) const fn pci(bus: u8, device: u8, function: u8) -> PciAddress {
    let requester = (bus as u16) << 8 | (device as u16) << 3 | function as u16;
    PciAddress::from_requester(Segment(0), requester)
}

/// A device of one function, behind unit 0.
pub(crate) const NIC: PciAddress = pci(0, 1, 0);
/// A device of two functions.
pub(crate) const TWIN: [PciAddress; 2] = [pci(0, 2, 0), pci(0, 2, 1)];
/// An Express port, and the device behind it.
pub(crate) const PORT: PciAddress = pci(0, 0x1c, 0);
pub(crate) const DISK: PciAddress = pci(1, 0, 0);
/// A bridge to a conventional bus, two devices behind it, and the id that it may use for them.
pub(crate) const BRIDGE: PciAddress = pci(0, 0x1e, 0);
pub(crate) const OLD: [PciAddress; 2] = [pci(2, 1, 0), pci(2, 2, 0)];
pub(crate) const ALIAS: PciAddress = pci(2, 0, 0);
/// A device behind unit 1.
pub(crate) const FAR: PciAddress = pci(0x40, 0, 0);
/// A device that no unit covers.
pub(crate) const LOST: PciAddress = pci(0x80, 0, 0);
/// A bridge that unit 0 covers, and a device behind it that no unit covers.
pub(crate) const TORN_BRIDGE: PciAddress = pci(0, 0x1f, 0);
pub(crate) const TORN: PciAddress = pci(0x90, 1, 0);
/// A bridge that unit 0 covers, and a device behind it that unit 1 covers.
pub(crate) const SPLIT_BRIDGE: PciAddress = pci(0, 0x1d, 0);
pub(crate) const SPLIT: PciAddress = pci(0x50, 1, 0);

/// Two guests.
pub(crate) fn vm(number: u16) -> VmId {
    VmId::new(number).unwrap()
}

/// The level with this number.
pub(crate) fn level(number: u8) -> Level {
    Level::new(number).unwrap()
}

/// Addresses of a device: this many pages from this byte on.
pub(crate) fn iovas(start: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), PageCount::new(pages).unwrap()).unwrap()
}

/// Addresses of a guest.
pub(crate) fn gpas(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), PageCount::new(pages).unwrap()).unwrap()
}

/// A count of pages.
pub(crate) fn pages(count: u64) -> PageCount {
    PageCount::new(count).unwrap()
}

/// A unit that can do everything and caches nothing absent.
pub(crate) fn full_unit() -> UnitCaps {
    UnitCaps {
        root_tables: RootTables::ONE,
        second_stage: true,
        levels: LevelSet::EMPTY.with(level(3)).with(level(4)),
        largest_page: PageSize::Size1G,
        coherent: true,
        snoop_control: true,
        domain_ids: 16,
        iova_bits: 48,
        phys_bits: 46,
        sync_on_map: false,
        write_only: true,
        live_resize: true,
        nested: true,
        dirty: true,
    }
}

/// What a unit is asked for when a test does not care.
pub(crate) const PLAIN: DomainConfig = DomainConfig {
    address_bits: 39,
    largest_page: PageSize::Size1G,
};

/// The deliberate fault that the environment names, in a build that has it.
pub(crate) fn switch_fault_on() {
    #[cfg(hv_fault)]
    if let Ok(name) = std::env::var("HV_FAULT") {
        match hv_core::fault::Fault::from_name(&name) {
            Some(fault) => fault.switch_on(),
            None => panic!("HV_FAULT={name}: there is no such fault"),
        }
    }
}

pub(crate) struct Machine {
    pub(crate) iommu: Iommu<Fake>,
    /// The other end of the backend that `iommu` has.
    pub(crate) fake: Fake,
    groups: Vec<AtRest<Fake>>,
}

fn functions() -> Vec<PciFunction> {
    let buses = |secondary, subordinate| BusRange {
        secondary,
        subordinate,
    };
    let endpoints = [
        NIC, TWIN[0], TWIN[1], DISK, OLD[0], OLD[1], FAR, LOST, TORN, SPLIT,
    ];
    let mut functions: Vec<_> = endpoints
        .map(|address| PciFunction::new(address, FunctionKind::Endpoint))
        .into();
    functions.extend([
        PciFunction::new(PORT, FunctionKind::RootPort(buses(1, 1))),
        PciFunction::new(BRIDGE, FunctionKind::ConventionalBridge(buses(2, 2))),
        PciFunction::new(
            TORN_BRIDGE,
            FunctionKind::ConventionalBridge(buses(0x90, 0x90)),
        ),
        PciFunction::new(
            SPLIT_BRIDGE,
            FunctionKind::ConventionalBridge(buses(0x50, 0x50)),
        ),
    ]);
    functions
}

impl Machine {
    /// The machine with units that can do everything.
    pub(crate) fn new() -> Self {
        Self::with_functions(|_| ())
    }

    /// The machine with these two units. Each look at its clock takes a microsecond.
    pub(crate) fn with_units(first: UnitCaps, second: UnitCaps) -> Self {
        let time = Time::PerLook(Duration::from_micros(1));
        Self::build([first, second], time, |_| ())
    }

    /// The machine with these units and clock, and its host as `prepare` leaves it.
    pub(crate) fn build(units: [UnitCaps; 2], time: Time, prepare: impl FnOnce(&Host)) -> Self {
        let nothing = |host: &Host| {
            prepare(host);
            Vec::new()
        };
        Self::build_with(units, time, nothing)
    }

    /// The machine with the regions that firmware wants mapped, and for whom.
    pub(crate) fn with_regions(
        regions: impl FnOnce(&Host) -> Vec<(PciAddress, ReservedRegion)>,
    ) -> Self {
        let time = Time::PerLook(Duration::from_micros(1));
        Self::build_with([full_unit(), full_unit()], time, regions)
    }

    fn build_with(
        units: [UnitCaps; 2],
        time: Time,
        prepare: impl FnOnce(&Host) -> Vec<(PciAddress, ReservedRegion)>,
    ) -> Self {
        Self::build_of(functions(), units, time, prepare)
    }

    /// The machine with functions that are known to be otherwise.
    pub(crate) fn with_functions(change: impl FnOnce(&mut [PciFunction])) -> Self {
        let mut functions = functions();
        change(&mut functions);
        let time = Time::PerLook(Duration::from_micros(1));
        let units = [full_unit(), full_unit()];
        Self::build_of(functions, units, time, |_| Vec::new())
    }

    fn build_of(
        functions: Vec<PciFunction>,
        units: [UnitCaps; 2],
        time: Time,
        prepare: impl FnOnce(&Host) -> Vec<(PciAddress, ReservedRegion)>,
    ) -> Self {
        switch_fault_on();
        let present: Vec<_> = functions.iter().map(|function| function.address).collect();
        let host = Host::new(4096, &present, time);
        for function in &present {
            host.give_pasids(*function, 16);
        }
        let regions = prepare(&host);
        let config = FakeConfig {
            units: units.into(),
            coverage: vec![(0, 0x3f, 0), (0x40, 0x7f, 1)],
            reserved: vec![iovas(0xfee0_0000, 256)],
            regions,
        };
        let fake = Fake::new(host, config);
        let wait = match time {
            Time::Real => Duration::from_secs(20),
            Time::PerLook(_) => Duration::from_millis(1),
        };
        let config = Config {
            wait,
            device_wait: 3 * wait,
            ..Config::default()
        };
        let (iommu, groups) = Iommu::new(fake.clone(), &functions, config).unwrap();
        Self {
            iommu,
            fake,
            groups,
        }
    }

    /// A machine with these functions only, all behind unit 0 but those on buses above 0x3f.
    pub(crate) fn of(functions: &[PciFunction], prepare: impl FnOnce(&Host)) -> Self {
        switch_fault_on();
        let present: Vec<_> = functions.iter().map(|function| function.address).collect();
        let time = Time::PerLook(Duration::from_micros(1));
        let host = Host::new(1024, &present, time);
        prepare(&host);
        let config = FakeConfig {
            units: vec![full_unit(), full_unit()],
            coverage: vec![(0, 0x3f, 0), (0x40, 0x7f, 1)],
            reserved: Vec::new(),
            regions: Vec::new(),
        };
        let fake = Fake::new(host, config);
        let config = Config {
            wait: Duration::from_millis(1),
            ..Config::default()
        };
        let (iommu, groups) = Iommu::new(fake.clone(), functions, config).unwrap();
        Self {
            iommu,
            fake,
            groups,
        }
    }

    /// All groups that nobody took yet.
    pub(crate) fn take_all(&mut self) -> Vec<AtRest<Fake>> {
        std::mem::take(&mut self.groups)
    }

    pub(crate) fn host(&self) -> &Host {
        self.fake.host()
    }

    /// Whether there is a group with this function that nobody took yet.
    pub(crate) fn has(&self, member: PciAddress) -> bool {
        let with = |group: &&AtRest<Fake>| group.members().contains(&member);
        self.groups.iter().find(with).is_some()
    }

    /// The group with this function, that anybody may claim.
    pub(crate) fn take(&mut self, member: PciAddress) -> Group<Fake, Blocked> {
        self.take_at_rest(member).claimable().unwrap()
    }

    /// The group with this function.
    pub(crate) fn take_at_rest(&mut self, member: PciAddress) -> AtRest<Fake> {
        let with = |group: &AtRest<Fake>| group.members().contains(&member);
        let index = self.groups.iter().position(with).unwrap();
        self.groups.swap_remove(index)
    }

    /// A driver's domain, with the device attached and sending.
    pub(crate) fn driver(&mut self, device: PciAddress) -> Driver {
        self.driver_with(device, PLAIN)
    }

    /// As [`driver`](Self::driver), with the device trusted with what shares pages with its buffers.
    pub(crate) fn trusted_driver(&mut self, device: PciAddress) -> Driver {
        let group = self.take(device).claim_for_hypervisor().trust("a test");
        let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let group = group.attach(&domain).unwrap();
        group.enable_bus_mastering(device).unwrap();
        Driver { group, domain }
    }

    /// As [`driver`](Self::driver), with a domain as configured.
    pub(crate) fn driver_with(&mut self, device: PciAddress, config: DomainConfig) -> Driver {
        let group = self.take(device).claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&group, config).unwrap();
        let group = group.attach(&domain).unwrap();
        group.enable_bus_mastering(device).unwrap();
        Driver { group, domain }
    }

    /// A guest with 64 pages at guest address 0, its domain, and the device attached and sending.
    pub(crate) fn guest(&mut self, device: PciAddress, vm: VmId) -> Passthrough {
        let group = self.take(device).claim_for_guest(vm);
        let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
        let group = group.attach_for_guest(&domain, &isolated()).unwrap();
        group.enable_bus_mastering(device).unwrap();
        let mut memory = GuestMemory::new(vm);
        memory.give(Gpa::new(0), self.host().frames(64)).unwrap();
        Passthrough {
            group,
            domain,
            memory,
        }
    }
}

/// A driver of the hypervisor: its device and its domain.
pub(crate) struct Driver {
    pub(crate) group: Group<Fake, Attached<KernelPaging, Fake>>,
    pub(crate) domain: Domain<KernelPaging, Fake>,
}

impl Driver {
    /// Detaches the device, ends the domain and gives back all that comes out of it. Gives how many
    /// frames came.
    pub(crate) fn end(self, host: &Host) -> u64 {
        let group = self.group.detach().unwrap();
        let count = end_domain(self.domain, host);
        drop(group);
        count
    }
}

/// Ends a domain that nothing is attached to; gives how many frames it had mapped or pending.
pub(crate) fn end_domain(domain: Domain<KernelPaging, Fake>, host: &Host) -> u64 {
    let mut count = 0;
    for frames in domain.destroy().unwrap() {
        count += frames.pages().get();
        hv_core::platform::FrameSource::free_frames(host, frames);
    }
    count
}

/// A guest with a device.
pub(crate) struct Passthrough {
    pub(crate) group: Group<Fake, Attached<UserManaged, Fake>>,
    pub(crate) domain: Domain<UserManaged, Fake>,
    pub(crate) memory: GuestMemory,
}

/// The witness that the tests assume.
pub(crate) fn isolated() -> InterruptsIsolated {
    InterruptsIsolated::override_unsafe_interrupts("a test without interrupts")
}
