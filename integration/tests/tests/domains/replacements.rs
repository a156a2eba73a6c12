//! Domains that are made for a group which has one: what it is moved to next.

use hv_core::{Access, Iova, Perms};
use hv_iommu::{
    AtRest, AttachError, Domain, DomainConfig, ReplaceFailed, ReservedKind, ReservedRegion,
    TrustedDevice, UserDomain,
};

use super::machine::{Machine, NIC, PLAIN, end_domain, gpas, iovas, isolated, vm};
use super::replace::{IN_ONE, IN_TWO, REQUESTERS, Stand, ends, stand, translates};

#[test]
fn an_attached_group_is_moved_to_a_domain_that_was_made_for_it_there() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    assert_eq!(end_domain(two, machine.host()), 1);
    let next = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = next.reserve(iovas(IN_TWO.as_u64(), 1)).unwrap();
    drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
    // It is in its old domain as before.
    translates(&machine, IN_ONE);
    let group = group.replace_with_gap(&next).unwrap();
    translates(&machine, IN_TWO);
    assert_eq!(end_domain(one, machine.host()), 1);

    // A third, without a gap.
    let gapless = group.gapless().unwrap();
    let third = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = third.reserve(iovas(IN_ONE.as_u64(), 1)).unwrap();
    drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
    let group = group.replace(&third, &gapless).unwrap();
    translates(&machine, IN_ONE);
    let _group = group.detach().unwrap();
    ends(&machine, next, third);
}

#[test]
fn a_group_that_is_being_reset_gets_its_next_domain_meanwhile() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    let parked = group.park().unwrap();
    let next = Domain::paging_domain_alloc(&parked, PLAIN).unwrap();
    for requester in REQUESTERS {
        assert!(machine.fake.bound(requester).is_none(), "{requester}");
    }
    let group = parked.unpark().unwrap().replace_with_gap(&next).unwrap();
    assert_eq!(group.domain(), next.uid());
    let _group = group.detach().unwrap();
    assert_eq!(end_domain(next, machine.host()), 0);
    ends(&machine, one, two);
}

#[test]
fn bc05_xsa_400_a_domain_for_an_attached_group_of_a_guest_is_that_guests() {
    let mut machine = Machine::new();
    let guest = machine.guest(NIC, vm(1));
    let UserDomain::Parent(next) = Domain::user_domain_alloc_or_plain(&guest.group, PLAIN).unwrap()
    else {
        panic!("the unit can be a parent's");
    };
    let plain = Domain::user_domain_alloc(&guest.group, PLAIN).unwrap();
    assert_eq!((next.owner(), plain.owner()), (vm(1), vm(1)));
    assert_eq!(Domain::blocked(&guest.group).owner(), vm(1));
    let range = next.reserve(iovas(0x4000, 2)).unwrap();
    let pin = guest.memory.pin(gpas(0, 2)).unwrap();
    let _range = range.map(pin, Perms::Read).unwrap();
    let group = guest.group.replace_with_gap(&next).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000), Access::Read)
            .is_ok()
    );
    // Nobody else's group comes into it.
    let other = machine
        .take(super::machine::FAR)
        .claim_for_guest(vm(2))
        .attach_for_guest(&plain, &isolated());
    assert!(other.is_err());
}

#[test]
fn bc06_xsa_378_a_domain_for_an_attached_pinned_group_has_its_regions() {
    let wide = DomainConfig {
        address_bits: 48,
        ..PLAIN
    };
    let mut machine = Machine::with_regions(|host| {
        let memory = host.frames(3).into_range();
        host.set_aside(memory);
        let start = Iova::new(memory.start().as_u64());
        let range = hv_core::IovaRange::new(start, memory.pages()).unwrap();
        let kind = ReservedKind::Pinned;
        vec![(NIC, ReservedRegion { range, kind })]
    });
    let AtRest::ForHypervisor(group) = machine.take_at_rest(NIC) else {
        panic!("not firmware's");
    };
    let region = group.reserved_regions().last().unwrap();
    let group = group.claim_for_hypervisor();
    let first = Domain::paging_domain_alloc(&group, wide).unwrap();
    let group = group.attach(&first).unwrap();
    let next = Domain::paging_domain_alloc(&group, wide).unwrap();
    let at = region.range.start();
    assert_eq!(next.translate(at).unwrap().to.as_u64(), at.as_u64());
    assert!(next.reserve(region.range).is_err());
    // One that was made for another group does not have them.
    let far = machine.take(super::machine::FAR).claim_for_hypervisor();
    let bare = Domain::paging_domain_alloc(&far, wide).unwrap();
    let Err(ReplaceFailed::Refused { group, error }) = group.replace_with_gap(&bare) else {
        panic!("moved");
    };
    assert!(matches!(error, AttachError::RegionNotMapped { .. }));
    let group = group.replace_with_gap(&next).unwrap();
    let _group = group.detach().unwrap();
    for domain in [first, next, bare] {
        assert_eq!(end_domain(domain, machine.host()), 0, "firmware's are kept");
    }
}

#[test]
fn a_group_with_open_pasids_has_domains_made_for_them() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let group = driver.group.open_pasids().unwrap();
    let inner = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let pasid = hv_core::Pasid::new(1).unwrap();
    let attachment = group.attach_pasid(NIC, pasid, &inner).unwrap();
    assert_eq!(attachment.domain(), inner.uid());
    group.detach_pasid(attachment).unwrap();
    let _group = group.close_pasids().unwrap().detach().unwrap();
    for domain in [driver.domain, inner] {
        assert_eq!(end_domain(domain, machine.host()), 0);
    }
}

#[test]
fn an_attached_group_is_vouched_for_in_its_claim() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let trusted = TrustedDevice::vouch_for(&driver.group, "a test");
    let identity = Domain::identity_domain_alloc(&driver.group, &trusted).unwrap();
    let claimed = driver.group.detach().unwrap();
    let group = claimed.attach_untranslated(&identity, trusted).unwrap();
    let _group = group.detach().unwrap();
    identity.destroy().unwrap();
    assert_eq!(end_domain(driver.domain, machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}
