//! Unmaps in steps: begun with the space, flushed without it, finished with it again; and what devices wrote
//! through what is gone.

use hv_core::{Gpa, GpaRange, GuestMemory, Iova, Perms, UserManaged};
use hv_iommu::{
    AddressSpace, AddressSpaceError, Domain, Needs, ParentPaging, TableQuota, UnitCaps,
};
use hv_tests::fake::{Answer, Call, Fake, Logged};

use super::access::tracked;
use super::machine::{FAR, Machine, NIC, PLAIN, full_unit, gpas, iovas, isolated, vm};
use super::space::{PAGE, guest, guest_on, listed};

#[test]
fn bc16_a_space_is_used_while_units_are_waited_for() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 2);
    one.map(0x8000, 0x8000, 2);
    let begun = one.space.begin_unmap(iovas(0x1000, 2)).unwrap();
    // Gone from the space, its place taken and its memory pinned; all else goes on.
    assert_eq!(one.listed(), [(0x8000, 0x8000, 2)]);
    let (wanted, pending) = (iovas(0x1000, 1), iovas(0x1000, 2));
    let refused = one
        .space
        .map(&one.memory, Iova::new(0x1000), gpas(0, 1), Perms::Read);
    assert_eq!(refused, Err(AddressSpaceError::Pending { wanted, pending }));
    one.map(0x3000, 0x2000, 1);
    let flushed = std::thread::scope(|scope| {
        let flush = scope.spawn(|| begun.flush().unwrap());
        one.map(0x10_0000, 0x3000, 1);
        one.space.split(Iova::new(0x9000)).unwrap();
        flush.join().unwrap()
    });
    assert_eq!(one.memory.pinned_pages(), 6);
    assert_eq!(one.space.finish(&one.memory, &flushed), Ok(2 * PAGE));
    assert_eq!(one.memory.pinned_pages(), 4);
    // Once is enough, and again is nothing.
    assert_eq!(one.space.finish(&one.memory, &flushed), Ok(0));
    one.map(0x1000, 0, 2);
    one.end();
}

#[test]
fn bc02_what_was_taken_out_later_waits_for_its_own_flush() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 1);
    one.map(0x2000, 0x1000, 1);
    one.map(0x3000, 0, 1);
    assert!(one.writes(0x2000));
    let outer = one.space.begin_revoke(gpas(0, 1));
    let early = outer.flush().unwrap();
    // Between the two.
    let inner = one.space.begin_unmap(iovas(0x2000, 1)).unwrap();
    // A receipt of before opens what it is for, and leaves the rest.
    assert_eq!(one.space.finish(&one.memory, &early), Ok(2 * PAGE));
    assert_eq!(one.memory.pinned_pages(), 1);
    assert_eq!(one.space.finish(&one.memory, &early), Ok(0));
    assert_eq!(one.memory.pinned_pages(), 1, "not by an old receipt");
    let last = inner.flush().unwrap();
    assert_eq!(one.space.finish(&one.memory, &last), Ok(PAGE));
    one.end();
}

#[test]
fn an_unmapping_that_is_dropped_or_fails_is_retried() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 1);
    one.map(0x2000, 0x1000, 1);
    drop(one.space.begin_unmap(iovas(0x1000, 1)).unwrap());
    let begun = one.space.begin_unmap(iovas(0x2000, 1)).unwrap();
    one.machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    assert!(begun.flush().is_err());
    assert_eq!(one.memory.pinned_pages(), 2);
    // By itself, or with all that is left.
    let flushed = begun.flush().unwrap();
    assert_eq!(one.space.finish(&one.memory, &flushed), Ok(PAGE));
    assert_eq!(one.space.retry(&one.memory), Ok(PAGE));
    assert_eq!(one.space.retry(&one.memory), Ok(0));
    one.end();
}

#[test]
fn another_space_or_memory_finishes_nothing() {
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    one.map(0x1000, 0, 1);
    let begun = one.space.begin_unmap(iovas(0x1000, 1)).unwrap();
    let flushed = begun.flush().unwrap();
    let refused = other.finish(&one.memory, &flushed);
    let (expected, found) = (other.domain().uid(), one.space.domain().uid());
    assert_eq!(
        refused,
        Err(AddressSpaceError::OtherDomain { expected, found })
    );
    let refused = one.space.finish(&GuestMemory::new(vm(2)), &flushed);
    let foreign = matches!(refused, Err(AddressSpaceError::ForeignMemory { .. }));
    assert!(foreign, "{refused:?}");
    assert_eq!(one.space.finish(&one.memory, &flushed), Ok(PAGE));
    super::space::end_space(other, &one.memory);
    one.end();
}

fn told(all: &[GpaRange]) -> Vec<(u64, u64)> {
    let mut all: Vec<_> = all
        .iter()
        .map(|gpas| (gpas.start().as_u64(), gpas.pages().get()))
        .collect();
    all.sort_unstable();
    all
}

/// A migration copies what was written through mappings that are gone, by the guest's addresses.
#[test]
fn bc03_what_was_written_is_told_when_the_mapping_goes() {
    let mut one = tracked();
    one.give(0x4000_0000, 512);
    one.map(0x10_0000, 0x5000, 4);
    one.map(0x4000_0000, 0x4000_0000, 512);
    one.map(0x20_0000, 0x9000, 4);
    for at in [0x10_1000, 0x10_3000, 0x4000_7000, 0x20_2000] {
        assert!(one.writes(at));
    }
    let mut written = Vec::new();
    let begun = one.space.begin_unmap(iovas(0x10_0000, 4)).unwrap();
    let flushed = begun.flush().unwrap();
    one.space
        .finish_noting(&one.memory, &flushed, &mut |gpas| written.push(gpas))
        .unwrap();
    assert_eq!(told(&written), [(0x6000, 1), (0x8000, 1)]);
    // A large page counts as a whole; a retry tells as well.
    written.clear();
    drop(one.space.begin_unmap(iovas(0x4000_0000, 512)).unwrap());
    let flushed = one.space.begin_retry().flush().unwrap();
    one.space
        .finish_noting(&one.memory, &flushed, &mut |gpas| written.push(gpas))
        .unwrap();
    assert_eq!(told(&written), [(0x4000_0000, 512)]);
    // And the end of the space.
    written.clear();
    let super::space::Guest {
        group,
        space,
        memory,
        ..
    } = one;
    drop(group.detach().unwrap());
    let mut teardown = space.destroy().unwrap();
    while !teardown.step_noting(&memory, 64, &mut |gpas| written.push(gpas)) {}
    assert_eq!(told(&written), [(0xb000, 1)]);
    assert_eq!(memory.pinned_pages(), 0);
}

/// A unit that is not told of a new mapping: the device may have used it before it was taken back.
#[test]
fn bc03_a_map_that_failed_is_retried_and_tells_what_was_written() {
    let unit = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut one = super::access::tracked_on(Machine::with_units(unit, full_unit()));
    one.machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let refused = one
        .space
        .map(&one.memory, Iova::new(0x1000), gpas(0, 1), Perms::ReadWrite);
    assert!(
        matches!(refused, Err(AddressSpaceError::Unit(_))),
        "{refused:?}"
    );
    assert_eq!(listed(&one.space), []);
    assert_eq!(one.memory.pinned_pages(), 1, "pending");
    assert_eq!(one.space.retry(&one.memory), Ok(PAGE));
    one.end();
}

/// What a guest's first stages stand on is an address space like any other.
#[test]
fn a_space_over_a_parent_maps_unmaps_and_ends() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let needs = Needs {
        dirty_tracking: true,
        ..Needs::default()
    };
    let parent = Domain::user_parent_alloc(&group, PLAIN.with(needs)).unwrap();
    let mut space: AddressSpace<Fake, ParentPaging> = AddressSpace::new(parent, None).unwrap();
    let group = group.attach_for_guest(space.domain(), &isolated()).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), machine.host().frames(64)).unwrap();
    space.map_guest(&memory, Perms::ReadWrite).unwrap();
    machine.fake.dma_write(NIC, Iova::new(0x7000), 1).unwrap();
    let mut seen = Vec::new();
    space
        .dirty(iovas(0, 64), |at, _| seen.push(at.as_u64()))
        .unwrap();
    assert_eq!(seen, [0x7000]);
    // A plain space of the guest takes a copy of it.
    let far = machine.take(FAR).claim_for_guest(vm(1));
    let plain = Domain::<UserManaged, Fake>::user_domain_alloc(&far, PLAIN).unwrap();
    let mut plain = AddressSpace::new(plain, None).unwrap();
    plain
        .copy_from(&memory, &space, iovas(0x7000, 1), Iova::new(0), Perms::Read)
        .unwrap();
    // With a first stage on it, a flush is of all of it.
    let host = machine.host();
    memory.write(host, Gpa::new(0x5000), &[0; 8]).unwrap();
    let stage = hv_tests::fake::UserStage {
        table: 0x5000,
        levels: 1,
    };
    let nested = Domain::alloc_nested(space.domain(), &stage).unwrap();
    let group = group.replace_with_gap(&nested).unwrap();
    space.split(Iova::new(0x1000)).unwrap();
    machine.fake.take_log(0);
    assert_eq!(space.unmap(&memory, iovas(0, 1)), Ok(PAGE));
    let log = machine.fake.take_log(0);
    let whole = log.iter().any(|logged| match logged {
        Logged::Flush(flush) => flush.span == hv_iommu::FlushSpan::Domain,
        _ => false,
    });
    assert!(whole, "{log:?}");
    drop(group.detach().unwrap());
    let (space, _) = space.destroy().unwrap_err();
    nested.destroy().unwrap();
    super::space::end_space(plain, &memory);
    space.destroy().unwrap().finish(&memory);
    assert_eq!(memory.pinned_pages(), 0);
}

/// A guest does not buy a walk through all of its tables with a call that is refused.
#[test]
fn bc16_refused_maps_look_for_empty_tables_once() {
    const TABLES: u64 = 300;
    // The root, one in the middle, the last ones, and one that a map might take and does not.
    let limit = hv_core::Shared::try_new(TableQuota::new(3 + TABLES)).unwrap();
    let mut one = guest_on(Machine::new(), vm(1), Some(limit.clone()));
    one.map(0x1000, 0, 1);
    for table in 0..TABLES {
        one.map(table << 21, 0, 1);
    }
    let looks = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = looks.clone();
    one.machine
        .host()
        .set_hook(Some(std::sync::Arc::new(move |moment| {
            if moment == hv_tests::host::Moment::Page {
                counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        })));
    let refuse = |one: &mut super::space::Guest| {
        looks.store(0, std::sync::atomic::Ordering::Relaxed);
        let at = Iova::new(TABLES << 21);
        let refused = one.space.map(&one.memory, at, gpas(0, 1), Perms::Read);
        let quota = matches!(refused, Err(AddressSpaceError::Quota { .. }));
        assert!(quota, "{refused:?}");
        looks.load(std::sync::atomic::Ordering::Relaxed)
    };
    // Nothing was unmapped: there is nothing to find.
    assert!(refuse(&mut one) < 16);
    // An unmap that leaves no table empty is good for one look, not for one with each call.
    one.space.unmap(&one.memory, iovas(0x1000, 1)).unwrap();
    assert!(refuse(&mut one) > TABLES);
    for _ in 0..4 {
        let looks = refuse(&mut one);
        assert!(looks < 16, "{looks} pages were looked at");
    }
    // What an unmap did leave empty comes back.
    one.space.unmap(&one.memory, iovas(5 << 21, 1)).unwrap();
    one.map(TABLES << 21, 0, 1);
    one.machine.host().set_hook(None);
    one.end();
    assert_eq!(limit.used(), 0);
}
