//! Faults: who caused them, in which group and domain, and what a full log says.

use hv_core::{Access, Iova, KernelPaging, Owner, Perms, UserManaged};
use hv_iommu::{FaultClass, FaultNotice, FaultReport};
use hv_tests::fake::{DmaFault, FAULT_LOG};

use super::machine::{ALIAS, Machine, NIC, OLD, TWIN, iovas, vm};

fn notices(machine: &Machine) -> Vec<FaultNotice> {
    let mut found = Vec::new();
    machine.iommu.take_faults(|notice| found.push(notice));
    found
}

fn reports(machine: &Machine) -> Vec<FaultReport> {
    let report = |notice| match notice {
        FaultNotice::Fault(report) => report,
        FaultNotice::Lost(unit) => panic!("{unit} lost faults"),
    };
    notices(machine).into_iter().map(report).collect()
}

#[test]
fn a_fault_names_device_address_group_domain_and_owner() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let guest = machine.guest(TWIN[1], vm(7));
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
    for (device, at, access) in [
        (NIC, 0x4010, Access::Write),
        (TWIN[1], 0x123_4567, Access::Read),
        (TWIN[1], 1 << 40, Access::Read),
    ] {
        machine.fake.dma(device, Iova::new(at), access).unwrap_err();
    }
    let of_driver = (
        driver.group.id(),
        driver.domain.uid(),
        KernelPaging::owner_id(()),
    );
    let of_guest = (
        guest.group.id(),
        guest.domain.uid(),
        UserManaged::owner_id(vm(7)),
    );
    let found: Vec<_> = reports(&machine)
        .into_iter()
        .map(|report| {
            let fault = report.fault;
            let what = (fault.address.as_u64(), fault.access, fault.class);
            (fault.requester, what, report.bound_to)
        })
        .collect();
    let expected = [
        (
            NIC,
            (0x4000, Access::Write, FaultClass::NotPermitted),
            Some(of_driver),
        ),
        (
            TWIN[1],
            (0x123_4000, Access::Read, FaultClass::NotPermitted),
            Some(of_guest),
        ),
        (
            TWIN[1],
            (1 << 40, Access::Read, FaultClass::AddressTooWide),
            Some(of_guest),
        ),
    ];
    assert_eq!(found, expected);
    assert_eq!(notices(&machine), [], "a fault is told once");
}

#[test]
fn a_fault_of_an_unbound_device_is_nobodys() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let _group = driver.group.detach().unwrap();
    machine.host().leave_bus_mastering_on(NIC);
    let unbound = machine.fake.dma(NIC, Iova::new(0), Access::Read);
    assert_eq!(unbound, Err(DmaFault::NotBound));
    let [report] = reports(&machine)[..] else {
        panic!("one fault");
    };
    assert_eq!(
        (report.fault.class, report.bound_to),
        (FaultClass::NotBound, None)
    );
}

#[test]
fn a_fault_under_an_alias_names_the_group() {
    let mut machine = Machine::new();
    let driver = machine.driver(OLD[0]);
    // The bridge forwards for its devices under an id that no function has.
    machine
        .fake
        .dma(ALIAS, Iova::new(0x9000), Access::Read)
        .unwrap_err();
    let [report] = reports(&machine)[..] else {
        panic!("one fault");
    };
    let owner = KernelPaging::owner_id(());
    let expected = Some((driver.group.id(), driver.domain.uid(), owner));
    assert_eq!((report.fault.requester, report.bound_to), (ALIAS, expected));
}

/// Shows: bc19.
#[test]
fn a_storm_is_told_in_bounded_steps_with_what_was_lost() {
    let mut machine = Machine::new();
    let _driver = machine.driver(NIC);
    for page in 0..FAULT_LOG as u64 + 5 {
        let at = Iova::new(page * 0x1000);
        machine.fake.dma(NIC, at, Access::Read).unwrap_err();
    }
    let found = notices(&machine);
    assert_eq!(found.len(), FAULT_LOG + 1);
    let lost =
        |notice: &FaultNotice| matches!(notice, FaultNotice::Lost(unit) if unit.index() == 0);
    assert_eq!(found.iter().position(lost), Some(FAULT_LOG));
    assert_eq!(notices(&machine), []);
}
