//! Which devices move together, which can never be claimed, and how every group starts.

use std::time::Duration;

use hv_iommu::{Config, Domain, FunctionKind, Iommu, PciFunction, SetupError};
use hv_tests::fake::{Fake, FakeConfig};
use hv_tests::host::{Host, Time};

use super::machine::{
    BRIDGE, DISK, FAR, LOST, Machine, NIC, OLD, PLAIN, PORT, SPLIT, TORN, TWIN, full_unit,
};

#[test]
fn functions_of_one_device_are_one_group() {
    let mut machine = Machine::new();
    let group = machine.take(TWIN[0]);
    assert_eq!(group.members(), TWIN);
    let group = group.claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let group = group.attach(&domain).unwrap();
    for function in TWIN {
        assert_eq!(machine.fake.bound(function), Some(domain.hw_id()));
    }
    assert!(group.detach().is_ok());
}

#[test]
fn devices_behind_a_conventional_bridge_are_one_group() {
    let mut machine = Machine::new();
    let group = machine.take(OLD[1]);
    assert_eq!(group.members(), OLD);
    // Ports keep ids apart: what is behind one is a group of its own.
    assert_eq!(machine.take(DISK).members(), [DISK]);
    assert_eq!(machine.take(NIC).members(), [NIC]);
}

#[test]
fn groups_know_their_unit() {
    let mut machine = Machine::new();
    let (near, far) = (machine.take(NIC), machine.take(FAR));
    assert_eq!((near.unit().index(), far.unit().index()), (0, 1));
    assert_ne!(near.id(), far.id());
    assert_eq!(machine.iommu.unit_caps(near.unit()), Some(full_unit()));
}

#[test]
fn bc13_acrn_what_no_unit_covers_wholly_is_never_a_group() {
    let machine = Machine::new();
    assert!(machine.has(NIC) && machine.has(OLD[0]));
    assert!(!machine.has(LOST));
    assert!(!machine.has(TORN), "its bridge is covered, it is not");
    assert!(!machine.has(SPLIT), "its bridge is covered by another unit");
    assert!(
        !machine.has(PORT) && !machine.has(BRIDGE),
        "bridges are no devices"
    );
}

#[test]
fn bus_mastering_that_firmware_left_on_is_taken_away() {
    let on = [NIC, TWIN[1], OLD[0], FAR, LOST, TORN];
    let time = Time::PerLook(Duration::from_micros(1));
    let mut machine = Machine::build([full_unit(), full_unit()], time, |host| {
        on.iter()
            .for_each(|function| host.leave_bus_mastering_on(*function));
    });
    for function in on {
        assert_eq!(
            machine.host().bus_master(function),
            Some(false),
            "{function}"
        );
    }
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let _group = group.attach(&domain).unwrap();
    assert_eq!(machine.host().bus_master(NIC), Some(false));
}

#[test]
fn a_machine_without_units_is_refused() {
    let host = Host::new(16, &[], Time::Real);
    let fake: Fake = Fake::new(host, FakeConfig::default());
    let Err(error) = Iommu::new(fake, &[], Config::default()) else {
        panic!("set up without a unit");
    };
    assert_eq!(error, SetupError::NoUnits);
}

#[test]
fn a_function_that_is_listed_twice_is_one_member() {
    let time = Time::PerLook(Duration::from_micros(1));
    let config = FakeConfig {
        units: vec![full_unit()],
        coverage: vec![(0, 0xff, 0)],
        reserved: Vec::new(),
        regions: Vec::new(),
    };
    let fake: Fake = Fake::new(Host::new(64, &[NIC], time), config);
    let endpoint = PciFunction::new(NIC, FunctionKind::Endpoint);
    let setup = Iommu::new(fake.clone(), &[endpoint, endpoint], Config::default());
    let (_iommu, mut groups) = setup.unwrap();
    let group = groups
        .pop()
        .unwrap()
        .claimable()
        .unwrap()
        .claim_for_hypervisor();
    assert!(groups.is_empty());
    assert_eq!(group.members(), [NIC]);
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let group = group.attach(&domain).unwrap();
    assert_eq!(fake.bound(NIC), Some(domain.hw_id()));
    assert!(group.detach().is_ok());
}
