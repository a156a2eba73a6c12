//! Table pages that a guest may take.

use hv_core::{Iova, Perms, Shared};
use hv_iommu::{AddressSpace, AddressSpaceError, Domain, TableQuota};

use super::machine::{FAR, Machine, PLAIN, gpas, iovas, vm};
use super::space::{end_space, guest_on};

fn quota(limit: u64) -> Shared<TableQuota> {
    Shared::try_new(TableQuota::new(limit)).unwrap()
}

#[test]
fn a_map_over_the_quota_is_refused_and_takes_nothing() {
    let limit = quota(5);
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    assert_eq!((limit.used(), one.space.charged()), (1, 1), "the root");
    one.map(0x1000, 0, 1);
    assert_eq!(limit.used(), 3);
    // Elsewhere: two tables more, then none are left.
    one.map(0x4000_0000, 0, 1);
    assert_eq!((limit.used(), one.space.domain().table_pages()), (5, 5));
    let refused = one
        .space
        .map(&one.memory, Iova::new(0x8000_0000), gpas(0, 1), Perms::Read);
    let (needed, left) = (2, 0);
    assert_eq!(refused, Err(AddressSpaceError::Quota { needed, left }));
    assert_eq!((limit.used(), one.memory.pinned_pages()), (5, 2));
    // Its own empty tables come back for it.
    one.space.unmap(&one.memory, iovas(0x4000_0000, 1)).unwrap();
    one.map(0x8000_0000, 0, 1);
    assert_eq!((limit.used(), one.space.domain().table_pages()), (5, 5));
    one.end();
    assert_eq!(limit.used(), 0);
}

#[test]
fn the_spaces_of_a_guest_share_its_quota() {
    let limit = quota(6);
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    let group = one.machine.take(FAR).claim_for_guest(vm(1));
    let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    let mut other = AddressSpace::new(domain, Some(limit.clone())).unwrap();
    one.map(0x1000, 0, 1);
    other
        .map(&one.memory, Iova::new(0x1000), gpas(0, 1), Perms::Read)
        .unwrap();
    assert_eq!(limit.used(), 6);
    let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
    let (domain, error) = AddressSpace::new(domain, Some(limit.clone())).unwrap_err();
    let (needed, left) = (1, 0);
    assert_eq!(error, AddressSpaceError::Quota { needed, left });
    assert_eq!(domain.destroy().unwrap().count(), 0);
    end_space(other, &one.memory);
    assert_eq!(limit.used(), 3);
    one.end();
    assert_eq!(limit.used(), 0);
}

#[test]
fn a_bulk_map_is_charged_before_and_settled_after() {
    let limit = quota(8);
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    one.give(0x4000_0000, 1024);
    let parts = std::num::NonZeroUsize::new(2).unwrap();
    let mut all = one.space.bulk(&one.memory, Perms::Read, parts).unwrap();
    assert!(limit.used() > one.space.domain().table_pages());
    all.iter_mut().for_each(hv_iommu::BulkPart::map);
    one.space.adopt(&one.memory, all).unwrap();
    assert_eq!(limit.used(), one.space.domain().table_pages());
    // Too much for the rest.
    one.space.unmap_all(&one.memory).unwrap();
    one.give(0x10_0000_1000, 1);
    one.give(0x20_0000_1000, 1);
    one.give(0x30_0000_1000, 1);
    let before = limit.used();
    let refused = one.space.map_guest(&one.memory, Perms::Read);
    let quota = matches!(refused, Err(AddressSpaceError::Quota { .. }));
    assert!(quota, "{refused:?}");
    assert!(limit.used() <= before);
    assert_eq!(limit.used(), one.space.domain().table_pages());
    assert_eq!(one.memory.pinned_pages(), 0);
    one.end();
    assert_eq!(limit.used(), 0);
}
