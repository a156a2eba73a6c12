//! Table pages that a guest may take.

use hv_core::{Iova, Perms, Shared};
use hv_iommu::{AddressSpace, AddressSpaceError, Domain, TableQuota};
use hv_tests::fake::{Answer, Call};
use hv_tests::heap;

use super::machine::{FAR, Machine, PLAIN, gpas, iovas, vm};
use super::space::{PAGE, end_space, guest_on};

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

/// A guest that maps one page all over fills the hypervisor's heap no further than the quota says.
#[test]
fn mappings_are_bounded_and_come_back_one_by_one() {
    assert_eq!(quota(5).mappings_limit(), 5 * 512);
    let limit = Shared::try_new(TableQuota::with_mappings(100, 3)).unwrap();
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    one.map(0x1000, 0, 2);
    one.map(0x8000, 0, 2);
    one.space.split(Iova::new(0x2000)).unwrap();
    assert_eq!(limit.mappings_used(), 3);
    let before = (one.listed(), limit.used(), one.memory.pinned_pages());
    let (needed, used) = (1, 3);
    let full = AddressSpaceError::TooManyMappings {
        needed,
        used,
        limit: 3,
    };
    let mapped = one
        .space
        .map(&one.memory, Iova::new(0x4000_0000), gpas(0, 1), Perms::Read);
    assert_eq!(mapped, Err(full));
    assert_eq!(one.space.split(Iova::new(0x9000)), Err(full));
    let guest = one.space.map_guest(&one.memory, Perms::Read);
    assert!(guest.is_err(), "{guest:?}");
    let after = (one.listed(), limit.used(), one.memory.pinned_pages());
    assert_eq!((after, limit.mappings_used()), (before, 3));
    one.space.unmap(&one.memory, iovas(0x2000, 1)).unwrap();
    assert_eq!(limit.mappings_used(), 2);
    // What waits for a flush is held by the space as before.
    one.machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    assert!(one.space.unmap_all(&one.memory).is_err());
    assert_eq!(limit.mappings_used(), 2);
    one.space.retry(&one.memory).unwrap();
    assert_eq!(limit.mappings_used(), 0);
    one.map(0x1000, 0, 2);
    one.end();
    assert_eq!((limit.used(), limit.mappings_used()), (0, 0));
}

#[test]
fn pieces_of_a_bulk_map_are_charged_until_they_are_joined() {
    let limit = Shared::try_new(TableQuota::with_mappings(100, 6)).unwrap();
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    one.give(0x4000_0000, 2048);
    let parts = |count| std::num::NonZeroUsize::new(count).unwrap();
    // Two slots, and up to five cuts.
    let refused = one.space.bulk(&one.memory, Perms::Read, parts(5));
    let over = matches!(
        refused,
        Err(AddressSpaceError::TooManyMappings { limit: 6, .. })
    );
    assert!(over, "{refused:?}");
    assert_eq!((limit.mappings_used(), one.memory.pinned_pages()), (0, 0));
    for adopted in [true, false] {
        let mut all = one.space.bulk(&one.memory, Perms::Read, parts(4)).unwrap();
        assert!(limit.mappings_used() > 2);
        if adopted {
            all.iter_mut().for_each(hv_iommu::BulkPart::map);
        }
        assert_eq!(one.space.adopt(&one.memory, all).is_ok(), adopted);
        assert_eq!(limit.mappings_used(), if adopted { 2 } else { 0 });
        one.space.unmap_all(&one.memory).unwrap();
        assert_eq!(limit.mappings_used(), 0);
    }
    one.end();
}

/// More pieces come back than went out, and the domain's list of free ranges cannot grow: the space keeps the piece,
/// charged, until the next call.
#[test]
fn what_the_domain_could_not_take_back_is_kept_and_settled_by_the_next_call() {
    const PAGES: u64 = 512;
    let limit = quota(100);
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    one.give(0x4000_0000, PAGES);
    let at = |number: u64| 0x8000_0000 + number * PAGE;
    one.map(at(0), 0x4000_0000, PAGES);
    for number in 1..PAGES {
        one.space.split(Iova::new(at(number))).unwrap();
    }
    let mut left = PAGES;
    let (mut kept, mut times) = (false, 0);
    for number in (1..PAGES).step_by(2) {
        // What is kept goes back with the next unmap, which finds memory.
        heap::fail_after((!kept).then_some(0));
        let unmapped = one.space.unmap(&one.memory, iovas(at(number), 1));
        kept = !kept && heap::count() > 0;
        heap::fail_after(None);
        assert_eq!(unmapped, Ok(PAGE));
        left -= 1;
        times += u64::from(kept);
        assert_eq!(limit.mappings_used(), left + u64::from(kept));
        assert_eq!(one.listed().len() as u64, left);
    }
    assert!(times > 0 && !kept, "the list did not grow");
    assert_eq!(limit.mappings_used(), left);
    for number in (1..PAGES).step_by(2) {
        one.map(at(number), 0, 1);
    }
    one.end();
}
