//! The witness that a guest's device raises no interrupts but its own: who gets it, for what, and for how long.

use hv_core::PciAddress;
use hv_iommu::{
    AttachError, AttachFailed, Domain, FunctionKind, MessageSource, NotIsolated, PciFunction,
};

use super::machine::{DISK, Machine, NIC, PLAIN, PORT, TWIN, pci, vm};

const fn source(id: u32) -> MessageSource {
    MessageSource { controller: 0, id }
}

/// Everybody is a sender of its own.
fn told_apart() -> Machine {
    let machine = Machine::new();
    let senders = [NIC, TWIN[0], TWIN[1], PORT, DISK];
    for (id, requester) in (8..).zip(senders) {
        machine.fake.knows_as(requester, source(id));
    }
    machine
}

#[test]
fn a_group_whose_senders_are_its_own_shows_that_its_interrupts_are_isolated() {
    let mut machine = told_apart();
    // Those of one group need not be told apart, and on another controller ids mean something else.
    machine.fake.knows_as(TWIN[1], source(9));
    let controller = 1;
    machine
        .fake
        .knows_as(DISK, MessageSource { controller, id: 8 });
    for (device, number) in [(NIC, 1), (TWIN[0], 2), (DISK, 3)] {
        let group = machine.take(device);
        let isolated = group.interrupts_isolated().unwrap();
        let group = group.claim_for_guest(vm(number));
        let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
        let group = group.attach_for_guest(&domain, &isolated).unwrap();
        // Another time, too.
        let group = group.detach().unwrap();
        assert!(group.attach_for_guest(&domain, &isolated).is_ok());
    }
}

#[test]
fn without_a_controller_that_tells_senders_apart_there_is_no_witness() {
    let mut machine = Machine::new();
    let group = machine.take(NIC);
    let requester = NIC;
    let refused = group.interrupts_isolated().unwrap_err();
    assert_eq!(refused, NotIsolated::NotRemapped { requester });
    // One of two functions is not enough.
    machine.fake.knows_as(TWIN[0], source(1));
    let refused = machine.take(TWIN[0]).interrupts_isolated().unwrap_err();
    let requester = TWIN[1];
    assert_eq!(refused, NotIsolated::NotRemapped { requester });
}

#[test]
fn a_sender_that_is_of_two_groups_is_no_witness_for_either() {
    let mut machine = told_apart();
    machine.fake.knows_as(TWIN[1], source(8));
    let shared = |requester, other| NotIsolated::Shared {
        requester,
        source_id: source(8),
        other,
    };
    let (nic, twins) = (machine.take(NIC), machine.take(TWIN[0]));
    assert_eq!(nic.interrupts_isolated().unwrap_err(), shared(NIC, TWIN[1]));
    assert_eq!(
        twins.interrupts_isolated().unwrap_err(),
        shared(TWIN[1], NIC)
    );
    // A port is nobody's to claim, and sends messages all the same.
    machine.fake.knows_as(TWIN[1], source(9));
    machine.fake.knows_as(PORT, source(8));
    assert_eq!(nic.interrupts_isolated().unwrap_err(), shared(NIC, PORT));
    machine.fake.knows_as(PORT, source(0x100));
    assert!(nic.interrupts_isolated().is_ok());
}

/// Firmware tells of another device twice, once as this group's sender.
#[test]
fn bc10_a_sender_that_another_may_be_is_no_witness() {
    let mut machine = told_apart();
    let nic = machine.take(NIC);
    machine.fake.also_tells_as(DISK, source(8));
    let refused = nic.interrupts_isolated().unwrap_err();
    let expected = NotIsolated::MayBeShared {
        requester: NIC,
        source_id: source(8),
        other: DISK,
    };
    assert_eq!(refused, expected);
    // Told twice, and as none of the twins' either time.
    assert!(machine.take(TWIN[0]).interrupts_isolated().is_ok());
    let requester = DISK;
    let own = machine.take(DISK).interrupts_isolated().unwrap_err();
    assert_eq!(own, NotIsolated::NotTold { requester });
}

#[test]
fn a_witness_is_for_its_own_group_in_its_own_subsystem() {
    let (mut machine, mut other) = (told_apart(), told_apart());
    let of_twins = machine.take(TWIN[0]).interrupts_isolated().unwrap();
    let elsewhere = other.take(NIC).interrupts_isolated().unwrap();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let own = group.interrupts_isolated().unwrap();
    let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    let mut group = group;
    for wrong in [of_twins, elsewhere] {
        let Err(AttachFailed::Refused { group: back, error }) =
            group.attach_for_guest(&domain, &wrong)
        else {
            panic!("another's witness");
        };
        let expected =
            matches!(error, AttachError::OtherWitness { group, .. } if group == back.id());
        assert!(expected, "{error}");
        assert_eq!(machine.fake.bound(NIC), None);
        group = back;
    }
    assert!(group.attach_for_guest(&domain, &own).is_ok());
}

#[test]
fn a_witness_is_looked_at_again_when_devices_came() {
    const LATE: PciAddress = pci(0, 9, 0);
    let mut machine = told_apart();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let isolated = group.interrupts_isolated().unwrap();
    let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    machine.host().plug(LATE);
    machine.fake.knows_as(LATE, source(8));
    let late = PciFunction::new(LATE, FunctionKind::Endpoint);
    let groups = machine.take_all();
    let _groups = machine.iommu.add_functions(&[late], groups).unwrap();
    let Err(AttachFailed::Refused { error, .. }) = group.attach_for_guest(&domain, &isolated)
    else {
        panic!("attached with a sender that is another's");
    };
    let expected = NotIsolated::Shared {
        requester: NIC,
        source_id: source(8),
        other: LATE,
    };
    assert_eq!(error, AttachError::NotIsolated(expected));
}
