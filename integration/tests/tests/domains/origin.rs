//! The objects of the kernel interface that this one comes from: each has its place.

use hv_core::platform::FrameSource;
use hv_core::{Access, Gpa, GuestMemory, Iova, Perms};
use hv_iommu::{
    AttachError, AttachFailed, Blocked, Domain, DomainConfig, DomainError, Stages, UnitCaps, Unmet,
    UserDomain,
};
use hv_tests::fake::{DmaFault, Logged};

use super::machine::{
    DISK, FAR, Machine, NIC, PLAIN, TWIN, end_domain, full_unit, gpas, iovas, isolated, vm,
};

const AT: Iova = Iova::new(0x4000);

#[test]
fn a_drivers_domain_is_made_for_its_device() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let _range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    assert!(machine.fake.dma(NIC, AT, Access::Read).is_ok());
    assert_eq!(driver.end(machine.host()), 1);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn a_domain_is_there_and_filled_before_any_device_is_attached() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = domain.reserve(iovas(0x4000, 2)).unwrap();
    let (low, high) = range.split_at(hv_core::PageCount::ONE).unwrap();
    let low = low.map(machine.host().frames(1), Perms::Read).unwrap();
    let high = high.map(machine.host().frames(1), Perms::Read).unwrap();
    // A flush of a domain that reaches no unit asks nobody, and is complete.
    let (_, frames) = high.unmap().flush().unwrap();
    machine.host().free_frames(frames);
    assert_eq!(machine.fake.take_log(0), []);
    let group = group.attach(&domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    assert!(machine.fake.dma(NIC, AT, Access::Read).is_ok());
    let above = machine.fake.dma(NIC, Iova::new(0x5000), Access::Read);
    assert_eq!(above, Err(DmaFault::NotMapped));
    drop((low, group.detach().unwrap()));
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn one_device_allocates_and_another_does_the_dma() {
    let mut machine = Machine::new();
    let first = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&first, PLAIN).unwrap();
    let range = domain.reserve(iovas(0x4000, 1)).unwrap();
    let _range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let other = machine.take(FAR).claim_for_hypervisor();
    let other = other.attach(&domain).unwrap();
    other.enable_bus_mastering(FAR).unwrap();
    assert!(machine.fake.dma(FAR, AT, Access::Read).is_ok());
    // The one that it was made for is not in it.
    assert_eq!(machine.fake.bound(NIC), None);
    drop((first, other.detach().unwrap()));
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc03_flushes_reach_the_units_of_all_devices_and_no_other() {
    let mut machine = Machine::new();
    let fake = machine.fake.clone();
    let near = machine.driver(NIC);
    let flushes = || {
        [0, 1].map(|unit| {
            let log = fake.take_log(unit);
            let flush = |call: &&Logged| matches!(call, Logged::Flush(_));
            log.iter().filter(flush).count()
        })
    };
    let round = |start| {
        let range = near.domain.reserve(iovas(start, 1)).unwrap();
        let range = range.map(fake.host().frames(1), Perms::Read).unwrap();
        let _ = range.unmap().flush().unwrap();
    };
    flushes();
    round(0x4000);
    assert_eq!(flushes(), [1, 0], "one device");
    let far = machine.take(FAR).claim_for_hypervisor();
    let far = far.attach(&near.domain).unwrap();
    let twin = machine.take(TWIN[0]).claim_for_hypervisor();
    let twin = twin.attach(&near.domain).unwrap();
    flushes();
    round(0x5000);
    assert_eq!(flushes(), [1, 1], "three devices behind two units");
    let _near = near.group.detach().unwrap();
    flushes();
    round(0x6000);
    assert_eq!(flushes(), [1, 1], "the twin is behind the near unit too");
    let _twin = twin.detach().unwrap();
    flushes();
    round(0x7000);
    assert_eq!(flushes(), [0, 1], "the far one is left");
    let _far = far.detach().unwrap();
    flushes();
    round(0x8000);
    assert_eq!(flushes(), [0, 0]);
}

#[test]
fn a_users_domain_and_its_fallback_say_what_was_built() {
    let plain = UnitCaps {
        nested: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(full_unit(), plain);
    let near = machine.take(NIC).claim_for_guest(vm(1));
    let UserDomain::Parent(parent) = Domain::user_domain_alloc_or_plain(&near, PLAIN).unwrap()
    else {
        panic!("the unit can be a parent's");
    };
    let far = machine.take(FAR).claim_for_guest(vm(1));
    let built = Domain::user_domain_alloc_or_plain(&far, PLAIN).unwrap();
    let UserDomain::Plain { domain, unmet } = built else {
        panic!("the unit cannot be a parent's");
    };
    let expected = Unmet {
        what: "users' own first stages",
        needed: 1,
        found: 0,
    };
    assert_eq!(unmet, expected);
    // Whoever does not accept the fallback asks for no other.
    let unit = far.unit();
    let refused = Domain::user_parent_alloc(&far, PLAIN).unwrap_err();
    assert_eq!(refused, DomainError::Unmet { unit, unmet });
    // What else is asked for is not left out.
    let wider = DomainConfig {
        address_bits: 57,
        ..PLAIN
    };
    assert!(matches!(
        Domain::user_domain_alloc_or_plain(&far, wider),
        Err(DomainError::TooManyBits { .. })
    ));
    // Either is a user's domain, and maps the user's memory.
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), machine.host().frames(8)).unwrap();
    let map = |pages| memory.pin(gpas(0, pages)).unwrap();
    let in_parent = parent.reserve(iovas(0, 1)).unwrap();
    let _in_parent = in_parent.map(map(1), Perms::Read).unwrap();
    let in_plain = domain.reserve(iovas(0, 2)).unwrap();
    let _in_plain = in_plain.map(map(2), Perms::Read).unwrap();
    let far = far.attach_for_guest(&domain, &isolated()).unwrap();
    far.enable_bus_mastering(FAR).unwrap();
    assert!(machine.fake.dma(FAR, Iova::new(0), Access::Read).is_ok());
    let _far = far.detach().unwrap();
    assert_eq!(parent.destroy().unwrap().count(), 1);
    assert_eq!(domain.destroy().unwrap().count(), 2);
}

#[test]
fn a_parent_is_refused_by_a_unit_that_cannot_stand_under_a_first_stage() {
    let plain = UnitCaps {
        nested: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(full_unit(), plain);
    let near = machine.take(NIC).claim_for_guest(vm(1));
    let parent = Domain::user_parent_alloc(&near, PLAIN).unwrap();
    let far = machine.take(FAR).claim_for_guest(vm(1));
    let Err(AttachFailed::Refused { error, .. }) = far.attach_for_guest(&parent, &isolated())
    else {
        panic!("attached");
    };
    let AttachError::Incompatible { unmet, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(unmet, Unmet::absent("users' own first stages"));
}

#[test]
fn nobody_reaches_memory_through_the_blocked_domain() {
    let mut machine = Machine::new();
    let group = machine.take(DISK).claim_for_hypervisor();
    let blocked = Domain::blocked(&group);
    let in_use = machine.iommu.domains_in_use();
    let group = group.attach(&blocked).unwrap();
    assert_eq!(group.domain(), blocked.uid());
    assert_eq!(machine.iommu.domains_in_use(), in_use, "it takes no id");
    assert_eq!(machine.fake.take_log(0), [], "and no entry");
    machine.host().leave_bus_mastering_on(DISK);
    let reached = machine.fake.dma(DISK, AT, Access::Read);
    assert_eq!(reached, Err(DmaFault::NotBound));
    let _group = group.detach().unwrap();
    blocked.destroy().unwrap();
}

#[test]
fn stages_follow_from_the_shape() {
    use hv_core::{KernelPaging, UserManaged};
    use hv_iommu::{Identity, Nested, ParentPaging};
    use hv_tests::fake::Fake;
    assert_eq!(Domain::<KernelPaging, Fake>::STAGES, Stages::Second);
    assert_eq!(
        Domain::<UserManaged, Fake, ParentPaging>::STAGES,
        Stages::Second
    );
    assert_eq!(
        Domain::<UserManaged, Fake, Nested>::STAGES,
        Stages::FirstOnSecond
    );
    assert_eq!(
        Domain::<KernelPaging, Fake, Identity>::STAGES,
        Stages::Untranslated
    );
    assert_eq!(
        Domain::<KernelPaging, Fake, Blocked>::STAGES,
        Stages::Refused
    );
}
