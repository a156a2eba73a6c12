//! What firmware says that bring-up and attaching have to heed: memory that it goes on using through ids that are no
//! function's own, streams that a unit's table has no room for, and devices that are not coherent.

use hv_core::platform::PciConfig;
use hv_core::{IovaRange, PageCount, PageSize, PciAddress, Perms, PhysAddr, PhysRange, VmId};
use hv_iommu::{
    AccessControl, AttachError, AttachFailed, BufferRequest, BusRange, Coherency, Config,
    DmaConfig, DmaError, DmaRefusal, Domain, DomainConfig, FirmwareKept, FunctionKind,
    InterruptsIsolated, Iommu, KeptSetup, ReservedKind, Snooping, UnitIndex, VirtualFunctions,
};
use hv_rig::{FunctionModel, Machine, RegionModel, Rig, Tenant, Vendor};
use hv_smmu::firmware::{Firmware, ReservedStreams};
use hv_smmu::{BringUpError, CoveragePolicy, IdWindow, Smmu, StreamId};

use super::stand::{Backend, Retires, Stand, WAIT, iovas, pci, small};

/// A PCI Express to PCI bridge, what sends through it, and the id that it may send with for them: no function has it.
const BRIDGE: PciAddress = pci(0, 0x1e, 0);
const BEHIND: [PciAddress; 2] = [pci(2, 1, 0), pci(2, 2, 0)];
const ALIAS: PciAddress = pci(2, 0, 0);

/// Where the rig's firmware has memory of its own.
fn memory() -> PhysRange {
    PhysRange::new(PhysAddr::new(0x1_0010_0000), PageCount::ONE).unwrap()
}

/// A machine with such a bridge and with memory of firmware's.
fn with_bridge() -> Rig {
    let mut machine = Machine::calm_of(Vendor::Smmu);
    let buses = BusRange {
        secondary: 2,
        subordinate: 2,
    };
    let bridge = FunctionModel::new(BRIDGE, FunctionKind::ConventionalBridge(buses));
    machine.functions.push(bridge);
    for function in BEHIND {
        let endpoint = FunctionModel::new(function, FunctionKind::Endpoint);
        machine.functions.push(endpoint);
    }
    for function in &mut machine.functions {
        function.left_on = true;
    }
    machine.regions.push(RegionModel {
        memory: memory(),
        functions: vec![BEHIND[1]],
    });
    Rig::new(machine).unwrap()
}

/// Its tables, by which firmware uses the memory with the stream of this id.
fn used_by(rig: &Rig, user: PciAddress) -> Firmware {
    let mut firmware = rig.smmu_firmware().unwrap();
    let [reserved] = &mut firmware.reserved[..] else {
        panic!("{:?}", firmware.reserved);
    };
    let before = BEHIND[1].requester() - user.requester();
    let stream = StreamId::new(reserved.first.get() - u32::from(before));
    (reserved.first, reserved.last) = (stream, stream);
    firmware
}

fn discover(rig: &Rig, firmware: Firmware, policy: CoveragePolicy) -> Result<(), BringUpError> {
    Smmu::discover(rig.clone(), firmware, &rig.functions(), policy).map(drop)
}

fn masters(rig: &Rig, function: PciAddress) -> bool {
    rig.config_read32(function, 4) & 1 << 2 != 0
}

/// A bridge sends in the name of what is behind it: bring-up would stop that too.
#[test]
fn bc06_memory_that_firmware_uses_through_a_bridges_alias_is_seen() {
    for user in [ALIAS, BRIDGE, BEHIND[1]] {
        let rig = with_bridge();
        let of = |policy| discover(&rig, used_by(&rig, user), policy);
        let expected = BringUpError::ReservedRegion {
            memory: memory(),
            device: user,
        };
        assert_eq!(of(CoveragePolicy::Strict), Err(expected));
        assert_eq!(of(CoveragePolicy::Lenient), Ok(()));
    }
}

/// What is kept running behind a bridge: all that may be whoever firmware uses, the bridge, and nothing else.
#[test]
fn bc06_what_firmware_uses_through_a_bridges_alias_runs_on() {
    let rig = with_bridge();
    let _retires = Retires(rig.clone());
    let tenant = Tenant(1);
    let range = iovas(memory().start().as_u64(), 1);
    rig.mapping(tenant, range, memory(), Perms::ReadWrite);
    rig.mapped(tenant, range, Perms::ReadWrite);
    rig.keep_running(&BEHIND, tenant);
    let policy = FirmwareKept::keep_pinned_devices_running("a test").accepting_gap();
    let (firmware, strict) = (used_by(&rig, ALIAS), CoveragePolicy::Strict);
    let found = Smmu::discover_keeping(rig.clone(), firmware, &rig.functions(), strict, &policy);
    let dormant = found.unwrap().bring_up().unwrap();
    let check = |when: &str| {
        for function in BEHIND.into_iter().chain([BRIDGE]) {
            assert!(masters(&rig, function), "{function} {when}");
        }
        for other in [pci(0, 1, 0), pci(0, 2, 0)] {
            assert!(!masters(&rig, other), "{other} {when}");
        }
    };
    check("before translation goes on");
    let config = Config {
        wait: WAIT,
        ..Config::default()
    };
    let wide = DomainConfig {
        address_bits: 34,
        largest_page: PageSize::Size1G,
    };
    let made = Iommu::new_keeping(dormant, &rig.functions(), config, wide, &policy);
    let KeptSetup { kept, groups, .. } = made.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].group.members(), BEHIND);
    check("after it");
    drop((kept, groups));
}

/// Firmware uses one virtual function, by a stream that its physical one has not: that one runs on, and the port above it.
#[test]
fn bc06_what_firmware_uses_through_a_virtual_functions_stream_runs_on() {
    let (port, physical, of_firmware) = (pci(0, 0x1d, 0), pci(3, 0, 0), pci(3, 0, 1));
    let mut machine = Machine::calm_of(Vendor::Smmu);
    let buses = BusRange {
        secondary: 3,
        subordinate: 3,
    };
    let root = FunctionModel::new(port, FunctionKind::RootPort(buses));
    machine.functions.push(root);
    for function in [physical, of_firmware] {
        let endpoint = FunctionModel::new(function, FunctionKind::Endpoint);
        machine.functions.push(endpoint);
    }
    for function in &mut machine.functions {
        function.left_on = true;
    }
    machine.regions.push(RegionModel {
        memory: memory(),
        functions: vec![of_firmware],
    });
    let rig = Rig::new(machine).unwrap();
    let _retires = Retires(rig.clone());
    let tenant = Tenant(1);
    let range = iovas(memory().start().as_u64(), 1);
    rig.mapping(tenant, range, memory(), Perms::ReadWrite);
    rig.mapped(tenant, range, Perms::ReadWrite);
    rig.keep_running(&[of_firmware], tenant);
    // The list has the second as the first's virtual one, apart from it.
    let apart = AccessControl::from_registers(0b0001_1101, 0b0001_1101);
    let mut functions = rig.functions();
    functions.retain(|function| function.address != of_firmware);
    for function in &mut functions {
        if function.address == physical || function.address == port {
            function.access_control = apart;
        }
        if function.address == physical {
            function.virtual_functions = Some(VirtualFunctions {
                first_offset: 1,
                stride: 1,
                count: 1,
            });
        }
    }
    let policy = FirmwareKept::keep_pinned_devices_running("a test").accepting_gap();
    let (firmware, strict) = (rig.smmu_firmware().unwrap(), CoveragePolicy::Strict);
    let found = Smmu::discover_keeping(rig.clone(), firmware, &functions, strict, &policy);
    let dormant = found.unwrap().bring_up().unwrap();
    assert!(masters(&rig, port) && masters(&rig, of_firmware));
    assert!(!masters(&rig, physical));
    let config = Config {
        wait: WAIT,
        ..Config::default()
    };
    let wide = DomainConfig {
        address_bits: 34,
        largest_page: PageSize::Size1G,
    };
    let made = Iommu::new_keeping(dormant, &functions, config, wide, &policy);
    let KeptSetup { kept, groups, .. } = made.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].group.members(), [of_firmware]);
    assert!(masters(&rig, port) && masters(&rig, of_firmware));
    drop((kept, groups));
}

/// Nobody that is known sends as that stream, so nobody can keep it running, nor claim it.
#[test]
fn bc06_memory_that_firmware_uses_with_a_stream_of_nobody_refuses_the_machine() {
    let rig = Rig::new(Machine::calm_of(Vendor::Smmu)).unwrap();
    let unit = UnitIndex::new(0).unwrap();
    let of = |streams: (u32, u32), kind, policy| {
        let mut firmware = rig.smmu_firmware().unwrap();
        firmware.reserved.push(ReservedStreams {
            unit,
            first: StreamId::new(streams.0),
            last: StreamId::new(streams.1),
            memory: memory(),
            kind,
        });
        discover(&rig, firmware, policy)
    };
    let nobodys = BringUpError::ReservedForNobody {
        memory: IovaRange::new(iovas(memory().start().as_u64(), 1).start(), PageCount::ONE)
            .unwrap(),
        unit,
        first: StreamId::new(0xff00),
        last: StreamId::new(0xff03),
    };
    let streams = (0xff00, 0xff03);
    assert_eq!(
        of(streams, ReservedKind::Pinned, CoveragePolicy::Strict),
        Err(nobodys)
    );
    assert_eq!(
        of(streams, ReservedKind::Pinned, CoveragePolicy::Lenient),
        Ok(())
    );
    assert_eq!(
        of(streams, ReservedKind::Relaxable, CoveragePolicy::Strict),
        Ok(())
    );
}

/// A stream behind the end of the unit's table is a bad one for ever: strict bring-up says so, and whose it is.
#[test]
fn bc13_a_stream_that_a_units_table_has_no_room_for_refuses_the_machine() {
    let with = |two_level, stream_bits, output| {
        let mut machine = Machine::calm_of(Vendor::Smmu);
        let identity = machine.units[0].smmu().unwrap();
        (identity.two_level, identity.stream_bits) = (two_level, stream_bits);
        let rig = Rig::new(machine).unwrap();
        let mut firmware = rig.smmu_firmware().unwrap();
        for host in &mut firmware.hosts {
            for route in &mut host.streams {
                route.window = IdWindow::new(0, 0xffff, output);
            }
        }
        [CoveragePolicy::Strict, CoveragePolicy::Lenient]
            .map(|policy| discover(&rig, firmware.clone(), policy))
    };
    let beyond = |output, bits| BringUpError::StreamBeyondTable {
        device: pci(0, 1, 0),
        unit: UnitIndex::new(0).unwrap(),
        stream: StreamId::new(output + 8),
        bits,
    };
    // What the unit knows; what a linear table has; what one of two levels has.
    for (two_level, stream_bits, output, bits) in [
        (true, 16, 0x1_0000, 16),
        (false, 20, 0x1_0000, 16),
        (true, 30, 0x200_0000, 25),
    ] {
        let [strict, lenient] = with(two_level, stream_bits, output);
        assert_eq!(strict, Err(beyond(output, bits)));
        assert_eq!(lenient, Ok(()));
    }
    for (two_level, stream_bits, output) in [(true, 30, 0x1ff_0000), (false, 20, 0)] {
        assert_eq!(with(two_level, stream_bits, output), [Ok(()), Ok(())]);
    }
}

/// A driver's domain gives no buffer that only seems to be seen by its device at once, whatever its configuration says.
fn lends_by_streams_alone(stand: &mut Stand, but: PciAddress) {
    let other = stand.rig.endpoints().into_iter().find(|at| *at != but);
    let group = stand.take(other.unwrap()).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, small()).unwrap();
    let request = BufferRequest {
        pages: PageCount::ONE,
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    };
    let no = DmaError::Device(DmaRefusal::DoesNotSnoop);
    assert_eq!(domain.alloc_coherent(request).err(), Some(no));
    let device = domain.dma_device(DmaConfig::default());
    assert_eq!(device.config().snooping, Snooping::DoesNotSnoop);
    assert_eq!(device.alloc_coherent(request).err(), Some(no));
    drop(device);
    assert_eq!(domain.destroy().unwrap().count(), 0);
}

/// A guest takes its device for coherent. One that firmware says is not goes to a driver, or to a guest by name.
///
/// Shows: T18.
#[test]
fn bc05_a_device_that_is_not_coherent_is_no_guests_unless_somebody_says_so() {
    let said = "a test";
    for seed in 0..10 {
        let mut machine = Machine::calm_of(Vendor::Smmu);
        machine.seed = seed;
        let rig = Rig::new(machine).unwrap();
        let mut firmware = rig.smmu_firmware().unwrap();
        assert!(
            firmware
                .hosts
                .iter()
                .all(|host| host.limits.coherency == Coherency::Coherent)
        );
        for host in &mut firmware.hosts {
            host.limits.coherency = Coherency::NotCoherent { said };
        }
        let found = Smmu::discover(
            rig.clone(),
            firmware,
            &rig.functions(),
            CoveragePolicy::Strict,
        );
        let backend: Backend = found.unwrap().bring_up().unwrap();
        let mut stand = Stand::of(rig, Ok(backend));
        let (device, vm) = (pci(0, 1, 0), VmId::new(1).unwrap());
        let group = stand.take(device);
        assert_eq!(group.snooping(), Snooping::DoesNotSnoop);
        lends_by_streams_alone(&mut stand, device);
        let group = group.claim_for_guest(vm);
        let domain = Domain::user_domain_alloc(&group, small()).unwrap();
        let anyhow = InterruptsIsolated::override_unsafe_interrupts("a test");
        let Err(AttachFailed::Refused { group, error }) = group.attach_for_guest(&domain, &anyhow)
        else {
            panic!("attached");
        };
        let AttachError::NotCoherent(why) = error else {
            panic!("{error}");
        };
        assert_eq!((why.requester, why.said), (device, said));
        assert!(error.to_string().contains(said));
        let group = group.override_incoherent_dma("a test");
        let tenant = stand.tenant();
        let members = group.members().to_vec();
        stand.rig.attaching(&members, tenant);
        let group = group.attach_for_guest(&domain, &anyhow).unwrap();
        stand.rig.attached(&members, tenant);
        stand.rig.detaching(&members, tenant);
        let group = group.detach().unwrap();
        stand.rig.detached(&members);
        drop(group);
        assert_eq!(domain.destroy().unwrap().count(), 0);
        stand.rig.ended(tenant);
        stand.check();
    }
}
