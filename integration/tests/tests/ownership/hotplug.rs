//! Functions that come and go after the subsystem is up: plugged in, switched on, pulled out.

use hv_core::{Access, Iova, OwnerId, PciAddress};
use hv_iommu::{
    AccessControl, AtRest, BusRange, ClaimError, Domain, FunctionKind, GroupTable, PciFunction,
    RescanError, RescanFailed, Rescanned, VirtualFunctions,
};
use hv_tests::fake::{DmaFault, Fake};

use super::machine::{Machine, NIC, PLAIN, PORT, TWIN, end_domain, isolated, pci, vm};

/// A function with virtual ones, behind a port whose buses go to another unit half-way: what is behind a port is
/// translated by the unit of the port.
const PHYSICAL: PciAddress = pci(0x3f, 0, 0);

fn port() -> PciFunction {
    let buses = BusRange {
        secondary: 0x3f,
        subordinate: 0x40,
    };
    PciFunction {
        access_control: AccessControl::from_registers(0x1d, 0x1d),
        ..PciFunction::new(PORT, FunctionKind::RootPort(buses))
    }
}

fn endpoint(address: PciAddress) -> PciFunction {
    PciFunction::new(address, FunctionKind::Endpoint)
}

/// One function, which says that it is alone in its device.
fn alone(address: PciAddress) -> PciFunction {
    PciFunction {
        multi_function: false,
        ..endpoint(address)
    }
}

fn with_virtual(count: u16) -> PciFunction {
    // From 3f:1f.4 on, by ARI beyond function 7, and on to the next bus.
    let virtual_functions = (count > 0).then_some(VirtualFunctions {
        first_offset: 0xfc,
        stride: 2,
        count,
    });
    PciFunction {
        virtual_functions,
        ..endpoint(PHYSICAL)
    }
}

fn machine() -> Machine {
    Machine::of(&[port(), with_virtual(0), alone(NIC)], |_| ())
}

fn with(groups: &[AtRest<Fake>], member: PciAddress) -> &AtRest<Fake> {
    let has = |group: &&AtRest<Fake>| group.members().contains(&member);
    groups.iter().find(has).unwrap()
}

fn take(groups: &mut Vec<AtRest<Fake>>, member: PciAddress) -> AtRest<Fake> {
    let has = |group: &AtRest<Fake>| group.members().contains(&member);
    let index = groups.iter().position(has).unwrap();
    groups.swap_remove(index)
}

#[test]
fn bc13_virtual_functions_that_are_switched_on_later_are_groups_of_their_own() {
    let mut machine = machine();
    // Neither the physical function's group nor any other is handed in: it goes on.
    let driver = machine.driver(PHYSICAL);
    let virtuals: Vec<_> = with_virtual(4).virtual_ids().collect();
    let places = [0x3ffc, 0x3ffe, 0x4000, 0x4002];
    assert_eq!(
        virtuals.iter().map(|id| id.requester()).collect::<Vec<_>>(),
        places
    );
    for id in &virtuals {
        machine.host().leave_bus_mastering_on(*id);
        // And asking for translations (ATS), whoever let them.
        machine.host().set_register(*id, 0x100, 0x0001_000f, 0);
        machine.host().set_register(*id, 0x104, 1 << 31, 1 << 31);
    }
    let added = machine.iommu.add_functions(&[with_virtual(4)], Vec::new());
    let Rescanned { mut groups, ended } = added.unwrap();
    assert!(ended.is_empty());
    assert_eq!(groups.len(), 4);
    for id in virtuals {
        assert_eq!(machine.host().bus_master(id), Some(false), "{id}");
        assert_eq!(machine.host().register(id, 0x104), 0, "{id}");
        let group = take(&mut groups, id).claimable().unwrap();
        assert_eq!(group.members(), [id]);
        // By the unit of its physical function, whatever its own bus number says.
        assert_eq!(group.unit(), driver.group.unit(), "{id}");
        assert_eq!(machine.iommu.unit_of(id), Some(driver.group.unit()), "{id}");
        let group = group.claim_for_guest(vm(1));
        let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
        let group = group.attach_for_guest(&domain, &isolated()).unwrap();
        group.enable_bus_mastering(id).unwrap();
        drop(group.detach().unwrap());
        assert_eq!(domain.destroy().unwrap().count(), 0);
    }
    // Told once more, nothing changes.
    let added = machine.iommu.add_functions(&[with_virtual(4)], Vec::new());
    assert!(added.unwrap().groups.is_empty());
}

#[test]
fn virtual_functions_that_are_switched_off_leave() {
    let mut machine = machine();
    let rest = machine.take_all();
    let added = machine.iommu.add_functions(&[with_virtual(3)], rest);
    let Rescanned { mut groups, .. } = added.unwrap();
    let first = with_virtual(3).virtual_ids().next().unwrap();
    let held = take(&mut groups, first).claimable().unwrap();
    let held = held.claim_for_guest(vm(1));
    // Not while somebody has one.
    let failed = machine
        .iommu
        .add_functions(&[with_virtual(0)], groups)
        .unwrap_err();
    let (group, function) = (held.id(), first);
    assert_eq!(failed.error, RescanError::Held { group, function });
    let mut groups = failed.at_rest;
    groups.push(held.release().into());
    let left = machine
        .iommu
        .add_functions(&[with_virtual(0)], groups)
        .unwrap();
    assert_eq!(left.ended.len(), 3);
    assert_eq!(left.groups.len(), 2);
    assert_eq!(with(&left.groups, PHYSICAL).members(), [PHYSICAL]);
}

#[test]
fn bc05_a_function_that_joins_a_group_in_use_gets_no_bus_mastering() {
    let mut machine = Machine::of(&[endpoint(TWIN[0]), alone(NIC)], |_| ());
    let driver = machine.driver(TWIN[0]);
    machine.host().leave_bus_mastering_on(TWIN[1]);
    let rest = machine.take_all();
    let failed = machine.iommu.add_functions(&[endpoint(TWIN[1])], rest);
    let RescanFailed { at_rest, error } = failed.unwrap_err();
    let (group, function) = (driver.group.id(), TWIN[1]);
    assert_eq!(error, RescanError::Held { group, function });
    assert!(
        error.to_string().contains("which somebody holds"),
        "{error}"
    );
    assert_eq!(at_rest.len(), 1);
    assert_eq!(machine.host().bus_master(TWIN[1]), Some(false));
    machine.host().leave_bus_mastering_on(TWIN[1]);
    let dma = machine.fake.dma(TWIN[1], Iova::new(0x4000), Access::Write);
    assert_eq!(dma, Err(DmaFault::NotBound));
    // What was held goes on, and is whole once it is at rest: both or none.
    assert_eq!(machine.host().bus_master(TWIN[0]), Some(true));
    let released = driver.group.detach().unwrap().release();
    let added = machine
        .iommu
        .add_functions(&[endpoint(TWIN[1])], vec![released.into()]);
    let Rescanned { groups, ended } = added.unwrap();
    assert!(ended.is_empty());
    let [joined] = <[_; 1]>::try_from(groups).unwrap();
    assert_eq!((joined.id(), joined.members()), (group, &TWIN[..]));
    // As its driver left it, the new one included.
    assert_eq!(joined.last_owner(), Some(OwnerId::Hypervisor));
    let AtRest::AfterDriver(joined) = joined else {
        panic!("{joined:?}");
    };
    let group = joined
        .claim_for_hypervisor()
        .attach(&driver.domain)
        .unwrap();
    for twin in TWIN {
        group.enable_bus_mastering(twin).unwrap();
    }
    drop(group.detach().unwrap());
    assert_eq!(end_domain(driver.domain, machine.host()), 0);
}

#[test]
fn groups_that_are_no_longer_apart_become_one_and_a_guests_need_of_a_reset_counts() {
    let machine = machine();
    let (one, two) = (pci(0, 4, 0), pci(0, 4, 1));
    let apart = |address| PciFunction {
        access_control: AccessControl::from_registers(0x1d, 0x1d),
        ..endpoint(address)
    };
    let added = machine
        .iommu
        .add_functions(&[apart(one), apart(two)], Vec::new());
    let mut groups = added.unwrap().groups;
    assert_eq!(groups.len(), 2);
    let guests = take(&mut groups, one).claimable().unwrap();
    let guests = guests.claim_for_guest(vm(3)).release();
    groups.push(guests.into());
    // A third one that lets everything through.
    let third = pci(0, 4, 2);
    let Rescanned { groups, ended } = machine
        .iommu
        .add_functions(&[endpoint(third)], groups)
        .unwrap();
    assert_eq!((groups.len(), ended.len()), (1, 1));
    assert_eq!(groups[0].members(), [one, two, third]);
    assert_eq!(groups[0].last_owner(), Some(OwnerId::Vm(vm(3))));
}

#[test]
fn functions_that_are_pulled_out_leave_their_groups() {
    let mut machine = Machine::of(&[endpoint(TWIN[0]), endpoint(TWIN[1]), alone(NIC)], |_| ());
    let far = machine.driver(NIC);
    let unknown = pci(0, 9, 0);
    let groups = machine.take_all();
    let failed = machine
        .iommu
        .remove_functions(&[unknown], groups)
        .unwrap_err();
    assert_eq!(failed.error, RescanError::Unknown(unknown));
    let failed = machine
        .iommu
        .remove_functions(&[NIC], failed.at_rest)
        .unwrap_err();
    let (group, function) = (far.group.id(), NIC);
    assert_eq!(failed.error, RescanError::Held { group, function });
    machine.host().unplug(TWIN[1]);
    let left = machine
        .iommu
        .remove_functions(&[TWIN[1]], failed.at_rest)
        .unwrap();
    assert_eq!((left.groups.len(), left.ended.len()), (1, 0));
    assert_eq!(left.groups[0].members(), [TWIN[0]]);
    let mut groups = left.groups;
    groups.push(far.group.detach().unwrap().release().into());
    let left = machine
        .iommu
        .remove_functions(&[TWIN[0], NIC], groups)
        .unwrap();
    assert_eq!((left.groups.len(), left.ended.len()), (0, 2));
    // What comes back is new: claimable by anybody.
    let back = machine
        .iommu
        .add_functions(&[alone(NIC)], Vec::new())
        .unwrap();
    assert!(!left.ended.contains(&back.groups[0].id()));
    assert!(matches!(back.groups[0], AtRest::Claimable(_)));
    assert_eq!(end_domain(far.domain, machine.host()), 0);
}

#[test]
fn a_table_takes_functions_in_and_lets_them_go() {
    let mut machine = machine();
    let table = GroupTable::new(machine.take_all()).unwrap();
    let nic = table.find(NIC).unwrap().group();
    let held = table.claim_for_guest(nic, vm(1)).unwrap();
    table
        .add_functions(&machine.iommu, &[with_virtual(2)])
        .unwrap();
    let first = with_virtual(2).virtual_ids().next().unwrap();
    let id = table.find(first).unwrap().group();
    let guests = table.claim_for_guest(id, vm(2)).unwrap();
    let failed = table.add_functions(&machine.iommu, &[with_virtual(0)]);
    let failed = failed.unwrap_err();
    assert!(matches!(failed.error, RescanError::Held { group, .. } if group == id));
    assert!(failed.at_rest.is_empty());
    table.put_back(guests.release().into()).unwrap();
    table
        .add_functions(&machine.iommu, &[with_virtual(0)])
        .unwrap();
    assert_eq!(
        table.claim_for_guest(id, vm(2)).err(),
        Some(ClaimError::Unknown(id))
    );
    // A driver's group is its driver's again, and nobody else's before its reset.
    table
        .put_back(held.release().without_reset("a test"))
        .unwrap();
    let driver = table.claim_for_hypervisor(nic).unwrap();
    table.put_back(driver.release().into()).unwrap();
    let (group, last) = (nic, OwnerId::Hypervisor);
    let refused = ClaimError::NeedsReset { group, last };
    assert_eq!(table.claim_for_guest(nic, vm(1)).err(), Some(refused));
    assert!(table.claim_for_hypervisor(nic).is_ok());
    assert!(table.remove_functions(&machine.iommu, &[PHYSICAL]).is_ok());
    assert_eq!(table.find(PHYSICAL), None);
}

#[test]
fn a_group_of_another_subsystem_is_not_taken_for_ones_own() {
    let (machine, mut other) = (machine(), machine());
    let strangers = other.take_all();
    let id = strangers[0].id();
    let failed = machine.iommu.add_functions(&[], strangers).unwrap_err();
    assert_eq!(failed.error, RescanError::OtherSystem(id));
}
