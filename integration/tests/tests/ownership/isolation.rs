//! A reset clears what keeps groups apart: it is set again, read back, and believed only then.

use hv_core::{Access, Iova, KernelPaging, PciAddress, Perms};
use hv_iommu::{
    AccessControl, AtRest, AttachError, AttachFailed, Attached, BusRange, Domain, FunctionKind,
    Group, IsolationError, IsolationFact, PciFunction, ResetFailed, ResetRefusal, UnparkFailed,
    VirtualFunctions,
};
use hv_tests::fake::{DmaFault, Fake};
use hv_tests::host::Host;

use super::machine::{DISK, Machine, PLAIN, PORT, TWIN, end_domain, iovas, vm};

/// Capability and control of access control: all that isolates is there, and on.
const ACS: (u16, u16) = (0x5d, 0x1d);
/// Where the registers are: the header of the capability, and capability with control.
const HEADER: u16 = 0x100;
const REGISTERS: u16 = 0x104;
const AT: Iova = Iova::new(0x4000);

fn word((capability, control): (u16, u16)) -> u32 {
    u32::from(capability) | u32::from(control) << 16
}

/// Gives a function an access control capability that is on, and takes writes.
fn give_acs(host: &Host, function: PciAddress) {
    host.set_register(function, HEADER, 0x0001_000d, 0);
    set_acs(host, function, ACS.1, true);
}

fn set_acs(host: &Host, function: PciAddress, control: u16, takes_writes: bool) {
    let writable = if takes_writes { 0xffff_0000 } else { 0 };
    host.set_register(function, REGISTERS, word((ACS.0, control)), writable);
}

fn isolated(address: PciAddress, kind: FunctionKind) -> PciFunction {
    PciFunction {
        access_control: AccessControl::from_registers(ACS.0, ACS.1),
        ..PciFunction::new(address, kind)
    }
}

fn port() -> PciFunction {
    let buses = BusRange {
        secondary: 1,
        subordinate: 1,
    };
    isolated(PORT, FunctionKind::RootPort(buses))
}

/// A device of two functions that are kept apart, and a disk behind a port that keeps it apart.
fn machine() -> Machine {
    let mut functions = TWIN
        .map(|twin| isolated(twin, FunctionKind::Endpoint))
        .to_vec();
    functions.extend([port(), PciFunction::new(DISK, FunctionKind::Endpoint)]);
    let mut disk = functions[3];
    disk.multi_function = false;
    functions[3] = disk;
    Machine::of(&functions, |host| {
        TWIN.iter().for_each(|twin| give_acs(host, *twin));
        give_acs(host, PORT);
        host.set_register(PORT, 0x18, 0x0001_0100, u32::MAX);
        // A PCI Express capability at 0x40, for ARI forwarding; the status register says that there is one.
        host.set_register(PORT, 0x04, 1 << 20, 0);
        host.set_register(PORT, 0x34, 0x40, 0);
        host.set_register(PORT, 0x40, 0x0002_0010, 0);
        host.set_register(PORT, 0x68, 0, u32::MAX);
    })
}

type Attachment = Group<Fake, Attached<KernelPaging, Fake>>;

fn attached(machine: &mut Machine, member: PciAddress) -> (Attachment, Domain<KernelPaging, Fake>) {
    let group = machine.take(member).claim_for_hypervisor();
    assert_eq!(group.members(), [member], "apart from its neighbours");
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = domain.reserve(iovas(AT.as_u64(), 1)).unwrap();
    let frames = machine.host().frames(1);
    drop(range.map(frames, Perms::ReadWrite).unwrap());
    (group.attach(&domain).unwrap(), domain)
}

fn access_control(function: PciAddress, found: u16) -> (PciAddress, IsolationFact) {
    let expected = AccessControl::from_registers(ACS.0, ACS.1);
    let found = AccessControl::from_registers(ACS.0, found);
    let fact = IsolationFact::AccessControl { expected, found };
    (function, fact)
}

fn lost(error: IsolationError) -> (PciAddress, IsolationFact) {
    match error {
        IsolationError::Lost { function, fact, .. } => (function, fact),
        IsolationError::OutOfMemory(error) => panic!("{error}"),
    }
}

#[test]
fn bc05_what_a_reset_cleared_of_access_control_is_set_again() {
    let mut machine = machine();
    let (group, domain) = attached(&mut machine, TWIN[0]);
    let group = group.park().unwrap();
    set_acs(machine.host(), TWIN[0], 0, true);
    let group = group.unpark().unwrap();
    assert_eq!(machine.host().register(TWIN[0], REGISTERS), word(ACS));
    // The same by a reset between two owners.
    let released = group.detach().unwrap().release();
    let reset = released.reset_members(|member| {
        set_acs(machine.host(), member, 0, true);
        Ok::<_, ()>(())
    });
    assert!(reset.unwrap().all().is_ok());
    assert_eq!(machine.host().register(TWIN[0], REGISTERS), word(ACS));
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc05_a_group_that_a_reset_left_open_to_its_neighbours_stays_parked() {
    // The function itself does not take it again; or its neighbour, whose reset is not this group's, lost it.
    for (function, control, takes_writes) in [
        (TWIN[0], 0, false),
        (TWIN[0], 0x19, false),
        // A way past the IOMMU by a table of its own.
        (TWIN[0], 0x3d, false),
        (TWIN[1], 0, true),
    ] {
        let mut machine = machine();
        let (group, domain) = attached(&mut machine, TWIN[0]);
        let group = group.park().unwrap();
        set_acs(machine.host(), function, control, takes_writes);
        let Err(UnparkFailed::NotApart { group, error }) = group.unpark() else {
            panic!("{function} {control:#x}: back in its domain, and reached by its neighbour");
        };
        assert_eq!(lost(error), access_control(function, control));
        assert!(error.to_string().contains("access control"), "{error}");
        machine.host().leave_bus_mastering_on(TWIN[0]);
        let dma = machine.fake.dma(TWIN[0], AT, Access::Write);
        assert_eq!(dma, Err(DmaFault::NotBound));
        // Once it is as it was, the group goes back.
        set_acs(machine.host(), function, ACS.1, true);
        let group = group.unpark().unwrap();
        assert_eq!(group.domain(), domain.uid());
        drop(group.detach().unwrap());
        assert_eq!(end_domain(domain, machine.host()), 1);
    }
}

#[test]
fn bc05_a_group_that_is_not_apart_after_its_reset_still_needs_one() {
    let mut machine = machine();
    let group = machine.take(TWIN[0]).claim_for_guest(vm(1)).release();
    let reset = group.reset_members(|member| {
        set_acs(machine.host(), member, 0, false);
        Ok::<_, &str>(())
    });
    let Err(ResetFailed { group, error }) = reset else {
        panic!("claimable, and reached by its neighbour");
    };
    let ResetRefusal::NotApart(why) = error else {
        panic!("{error}");
    };
    assert_eq!(lost(why), access_control(TWIN[0], 0));
    assert_eq!(group.last_owner(), vm(1));
    let reset = group.reset_members(|member| {
        set_acs(machine.host(), member, 0, true);
        Ok::<_, &str>(())
    });
    assert!(reset.unwrap().all().unwrap().claimable().is_ok());
}

#[test]
fn bc05_a_group_that_left_its_reset_by_another_way_is_looked_at_when_it_is_attached() {
    // Detached while parked; or with a member that did not answer, and came back as another device.
    for parked in [true, false] {
        let mut machine = machine();
        let (group, domain) = attached(&mut machine, TWIN[0]);
        let group = if parked {
            let group = group.park().unwrap();
            set_acs(machine.host(), TWIN[0], 0, false);
            group.detach()
        } else {
            let released = group.detach().unwrap().release();
            machine.host().unplug(TWIN[0]);
            let reset = released.reset_members(|_| Ok::<_, ()>(())).unwrap();
            let gone = reset.all().unwrap_err();
            machine.host().plug(TWIN[0]);
            set_acs(machine.host(), TWIN[0], 0, false);
            let rest = gone.without_them("it was pulled out");
            rest.claimable().unwrap().claim_for_hypervisor()
        };
        let Err(AttachFailed::Refused { group, error }) = group.attach(&domain) else {
            panic!("parked {parked}: attached, and reached by its neighbour");
        };
        let AttachError::NotApart(error) = error else {
            panic!("{error}");
        };
        assert_eq!(lost(error), access_control(TWIN[0], 0));
        set_acs(machine.host(), TWIN[0], 0, true);
        drop(group.attach(&domain).unwrap().detach().unwrap());
        assert_eq!(end_domain(domain, machine.host()), 1);
    }
}

#[test]
fn bc05_a_port_that_is_not_as_it_was_keeps_what_is_behind_it_parked() {
    let buses = |secondary, subordinate| BusRange {
        secondary,
        subordinate,
    };
    let moved = IsolationFact::Buses {
        expected: buses(1, 1),
        found: buses(0, 0),
    };
    let rows = [
        (0x18, 0, 0x0001_0100, PORT, moved),
        (0x68, 1 << 5, 0, PORT, IsolationFact::AriForwarding),
    ];
    for (offset, after, before, function, fact) in rows {
        let mut machine = machine();
        let (group, domain) = attached(&mut machine, DISK);
        let group = group.park().unwrap();
        machine.host().set_register(PORT, offset, after, u32::MAX);
        let Err(UnparkFailed::NotApart { group, error }) = group.unpark() else {
            panic!("{fact}");
        };
        assert_eq!(lost(error), (function, fact));
        machine.host().set_register(PORT, offset, before, u32::MAX);
        drop(group.unpark().unwrap().detach().unwrap());
        assert_eq!(end_domain(domain, machine.host()), 1);
    }
}

#[test]
fn what_a_reset_lost_and_what_joins_nobody_keeps_no_group_parked() {
    let mut machine = machine();
    let (group, domain) = attached(&mut machine, DISK);
    let group = group.park().unwrap();
    // The port is the only one of its device, and the disk alone behind it; it may say that it is one of several now.
    set_acs(machine.host(), PORT, 0, false);
    machine.host().set_register(DISK, 0x0c, 1 << 23, 0);
    let group = group.unpark().unwrap();
    drop(group.detach().unwrap());
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc05_virtual_functions_that_come_back_elsewhere_stay_parked() {
    let three = VirtualFunctions {
        first_offset: 0x80,
        stride: 2,
        count: 3,
    };
    let physical = PciFunction {
        virtual_functions: Some(three),
        ..PciFunction::new(DISK, FunctionKind::Endpoint)
    };
    let places = |offset: u32, stride: u32| offset | stride << 16;
    let mut machine = Machine::of(&[port(), physical], |host| {
        give_acs(host, PORT);
        host.set_register(PORT, 0x18, 0x0001_0100, u32::MAX);
        host.set_register(DISK, HEADER, 0x0001_0010, 0);
        host.set_register(DISK, 0x108, 1, u32::MAX);
        host.set_register(DISK, 0x110, 3, u32::MAX);
        host.set_register(DISK, 0x114, places(0x80, 2), u32::MAX);
        physical.virtual_ids().for_each(|id| host.plug(id));
    });
    let second = physical.virtual_ids().nth(1).unwrap();
    let (group, domain) = attached(&mut machine, second);
    let group = group.park().unwrap();
    // The reset of the physical function switched them off: they are gone, and reach nothing.
    machine.host().set_register(DISK, 0x108, 0, u32::MAX);
    let group = group.unpark().unwrap();
    let gone = AttachError::Gone { function: second };
    assert_eq!(group.enable_bus_mastering(second), Err(gone));
    // On again, closer together: the second has the id of what was none, the third that of the second.
    machine.host().set_register(DISK, 0x108, 1, u32::MAX);
    machine
        .host()
        .set_register(DISK, 0x114, places(0x80, 1), u32::MAX);
    let Err(AttachError::NotApart(error)) = group.enable_bus_mastering(second) else {
        panic!("another function sends with its id");
    };
    assert_eq!(lost(error), (DISK, IsolationFact::VirtualFunctions));
    let group = group.park().unwrap();
    let Err(UnparkFailed::NotApart { group, error }) = group.unpark() else {
        panic!("another function has its id");
    };
    assert_eq!(lost(error), (DISK, IsolationFact::VirtualFunctions));
    machine
        .host()
        .set_register(DISK, 0x114, places(0x80, 2), u32::MAX);
    drop(group.unpark().unwrap().detach().unwrap());
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc05_xsa_302_a_driver_s_device_goes_to_a_guest_after_its_reset_only() {
    let mut machine = machine();
    let (group, domain) = attached(&mut machine, TWIN[0]);
    let used = group.detach().unwrap().release();
    // The driver has it back as it left it; a guest does not.
    let used = used.claim_for_hypervisor().release();
    let AtRest::AfterDriver(used) = AtRest::from(used) else {
        panic!("claimable as its driver left it");
    };
    let mut reset = Vec::new();
    let rest = used.reset_members(|member| {
        reset.push(member);
        Ok::<_, ()>(())
    });
    let group = rest.unwrap().all().unwrap().claimable().unwrap();
    assert_eq!(reset, [TWIN[0]]);
    drop(group.claim_for_guest(vm(1)));
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc15_nothing_is_written_to_a_function_that_is_gone() {
    let mut machine = Machine::new();
    let driver = machine.driver(DISK);
    machine.host().unplug(DISK);
    assert_eq!(machine.host().lost_writes(), 0);
    let gone = Err(AttachError::Gone { function: DISK });
    assert_eq!(driver.group.disable_bus_mastering(DISK), gone);
    assert_eq!(driver.group.enable_bus_mastering(DISK), gone);
    let group = driver.group.park().unwrap().unpark().unwrap();
    let released = group.detach().unwrap().release();
    assert!(released.reset_members(Err::<(), _>).unwrap().all().is_err());
    assert_eq!(machine.host().lost_writes(), 0);
    // One that is there, and does not give it up, is named.
    let driver = machine.driver(TWIN[0]);
    machine.host().keep_bus_mastering(TWIN[0]);
    let kept = driver.group.disable_bus_mastering(TWIN[0]);
    assert!(matches!(
        kept,
        Err(AttachError::KeepsBusMastering { function, .. }) if function == TWIN[0]
    ));
}

#[test]
fn bc05_a_function_that_could_not_be_looked_at_is_looked_at_before_it_sends() {
    for parked in [true, false] {
        let mut machine = machine();
        let (group, domain) = attached(&mut machine, TWIN[0]);
        let group = if parked {
            let group = group.park().unwrap();
            // It does not answer yet.
            machine.host().unplug(TWIN[0]);
            group.unpark().unwrap()
        } else {
            let released = group.detach().unwrap().release();
            machine.host().unplug(TWIN[0]);
            let reset = released.reset_members(|_| Ok::<_, ()>(())).unwrap();
            let rest = reset.all().unwrap_err().without_them("it was pulled out");
            let group = rest.claimable().unwrap().claim_for_hypervisor();
            group.attach(&domain).unwrap()
        };
        let gone = AttachError::Gone { function: TWIN[0] };
        assert_eq!(group.enable_bus_mastering(TWIN[0]), Err(gone));
        // It answers, and lost its access control.
        machine.host().plug(TWIN[0]);
        set_acs(machine.host(), TWIN[0], 0, false);
        let Err(AttachError::NotApart(error)) = group.enable_bus_mastering(TWIN[0]) else {
            panic!("parked {parked}: sends, and its requests to its neighbour pass the IOMMU");
        };
        assert_eq!(lost(error), access_control(TWIN[0], 0));
        assert_eq!(machine.host().bus_master(TWIN[0]), Some(false));
        // It answers from the second look on: nobody looked at what sends then.
        set_acs(machine.host(), TWIN[0], 0, true);
        machine.host().answer_late(TWIN[0], 1);
        assert_eq!(group.enable_bus_mastering(TWIN[0]), Err(gone));
        group.enable_bus_mastering(TWIN[0]).unwrap();
        assert_eq!(machine.host().register(TWIN[0], REGISTERS), word(ACS));
        drop(group.detach().unwrap());
        assert_eq!(end_domain(domain, machine.host()), 1);
    }
}

#[test]
fn bc05_what_is_known_of_a_function_is_not_what_a_reset_left() {
    let mut machine = machine();
    let (group, domain) = attached(&mut machine, TWIN[0]);
    let group = group.park().unwrap();
    set_acs(machine.host(), TWIN[0], 0, false);
    // Given once more, as the embedder knows it.
    let known = isolated(TWIN[0], FunctionKind::Endpoint);
    drop(machine.iommu.add_functions(&[known], vec![]).unwrap());
    let Err(UnparkFailed::NotApart { group, error }) = group.unpark() else {
        panic!("back in its domain, and reached by its neighbour");
    };
    assert_eq!(lost(error), access_control(TWIN[0], 0));
    set_acs(machine.host(), TWIN[0], 0, true);
    drop(group.unpark().unwrap().detach().unwrap());
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc05_what_an_embedder_changed_of_a_function_is_what_is_known() {
    let mut machine = machine();
    let (group, domain) = attached(&mut machine, DISK);
    // The buses behind the port are two now, and it says so.
    machine
        .host()
        .set_register(PORT, 0x18, 0x0002_0100, u32::MAX);
    let buses = BusRange {
        secondary: 1,
        subordinate: 2,
    };
    let port = isolated(PORT, FunctionKind::RootPort(buses));
    drop(machine.iommu.add_functions(&[port], vec![]).unwrap());
    let group = group.park().unwrap().unpark().unwrap();
    drop(group.detach().unwrap());
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc05_a_member_that_answered_late_was_not_reset() {
    let mut machine = machine();
    let used = machine.take(TWIN[0]).claim_for_guest(vm(1)).release();
    machine.host().answer_late(TWIN[0], 1);
    let nobody = |_| -> Result<(), ()> { panic!("it does not answer") };
    let Err(gone) = used.reset_members(nobody).unwrap().all() else {
        panic!("anybody may claim it, as its last owner left it");
    };
    assert_eq!(gone.gone(), [TWIN[0]]);
    let reset = gone.try_again().reset_members(|_| Ok::<_, ()>(()));
    assert!(reset.unwrap().all().unwrap().claimable().is_ok());
}
