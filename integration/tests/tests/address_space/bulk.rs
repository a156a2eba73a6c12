//! All memory of a guest: in one call, or by several CPUs at once.

use std::num::NonZeroUsize;

use hv_core::{Gpa, Iova, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{AddressSpaceError, BulkPart, MapRefusal, ReservedFor};

use super::machine::{iovas, level, vm};
use super::space::{PAGE, guest};

fn parts(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

#[test]
fn one_call_maps_every_slot_with_large_pages() {
    let mut one = guest(vm(1));
    one.give(0x4000_0000, 1024);
    one.give(0x8000_0000, 700);
    let bytes = one.space.map_guest(&one.memory, Perms::ReadWrite).unwrap();
    assert_eq!(bytes, (64 + 1024 + 700) * PAGE);
    assert_eq!(
        one.listed(),
        [
            (0, 0, 64),
            (0x4000_0000, 0x4000_0000, 1024),
            (0x8000_0000, 0x8000_0000, 700)
        ]
    );
    let found = one
        .space
        .domain()
        .translate(Iova::new(0x4020_0000))
        .unwrap();
    assert_eq!(found.level, level(2));
    assert!(one.writes(0) && one.writes(0x402f_f000) && one.writes(0x8000_0000 + 699 * PAGE));
    assert_eq!(one.space.unmap_all(&one.memory), Ok(bytes));
    one.end();
}

#[test]
fn several_cpus_map_parts_and_each_slot_is_one_mapping_again() {
    for count in 1..9 {
        let mut one = guest(vm(1));
        one.give(0x4000_0000, 1536);
        one.give(0x8000_0000, 1024);
        let mut all = one
            .space
            .bulk(&one.memory, Perms::ReadWrite, parts(count))
            .unwrap();
        assert!(
            all.len() <= count && all.len() * 2 >= count.min(5),
            "{} of {count}",
            all.len()
        );
        let pages: u64 = all.iter().map(BulkPart::pages).sum();
        assert_eq!(pages, 64 + 1536 + 1024);
        // Meanwhile the space serves others: their places are not in the way.
        let at = Iova::new(0x1_0000_0000);
        let gpa = super::machine::gpas(0x1000, 1);
        one.space.map(&one.memory, at, gpa, Perms::Read).unwrap();
        std::thread::scope(|scope| {
            for part in &mut all {
                scope.spawn(|| part.map());
            }
        });
        let bytes = one.space.adopt(&one.memory, all).unwrap();
        assert_eq!(bytes, pages * PAGE);
        assert_eq!(
            one.listed(),
            [
                (0, 0, 64),
                (0x4000_0000, 0x4000_0000, 1536),
                (0x8000_0000, 0x8000_0000, 1024),
                (0x1_0000_0000, 0x1000, 1),
            ]
        );
        // Cut at the borders of large pages.
        for large in [
            0x4000_0000,
            0x4020_0000,
            0x4040_0000,
            0x8000_0000,
            0x8020_0000,
        ] {
            let found = one.space.domain().translate(Iova::new(large)).unwrap();
            assert_eq!(found.level, level(2), "{large:#x} in {count} parts");
        }
        one.end();
    }
}

/// Two slots side by side in the guest and in memory stay two mappings: each pin goes back to its slot.
#[test]
fn slots_that_touch_are_not_joined() {
    let mut one = guest(vm(1));
    let frames = one.machine.host().frames_aligned(1024, PageSize::Size2M);
    let (low, high) = frames.split_at(super::machine::pages(512)).unwrap();
    one.memory.give(Gpa::new(0x4000_0000), low).unwrap();
    one.memory.give(Gpa::new(0x4020_0000), high).unwrap();
    one.space.map_guest(&one.memory, Perms::Read).unwrap();
    assert_eq!(one.listed().len(), 3);
    one.space.unmap_all(&one.memory).unwrap();
    assert_eq!(one.memory.pinned_pages(), 0);
    one.end();
}

#[test]
fn all_slots_are_mapped_or_none() {
    let mut one = guest(vm(1));
    one.give(0x4000_0000, 512);
    one.give(0x8000_0000, 512);
    // A place that is taken, one that is reserved.
    one.map(0x8010_0000, 0, 1);
    let refused = one.space.map_guest(&one.memory, Perms::Read);
    assert!(matches!(refused, Err(AddressSpaceError::Overlap { .. })));
    assert_eq!(one.listed(), [(0x8010_0000, 0, 1)]);
    one.space.unmap_all(&one.memory).unwrap();
    let range = iovas(0x8000_0000, 1);
    one.space.reserve(range, ReservedFor::Firmware).unwrap();
    let refused = one.space.map_guest(&one.memory, Perms::Read);
    assert!(matches!(refused, Err(AddressSpaceError::Reserved { .. })));
    one.space.unreserve(range).unwrap();
    assert_eq!((one.memory.pinned_pages(), one.listed()), (0, vec![]));
    // Nothing is lost: it works now.
    one.space.map_guest(&one.memory, Perms::Read).unwrap();
    one.end();
}

#[test]
fn a_part_that_fails_or_is_not_tried_undoes_all_parts() {
    let mut one = guest(vm(1));
    one.give(0x4000_0000, 1024);
    one.map(0x1_0000_0000, 0, 1);
    let memory = &one.memory;
    let mut all = one.space.bulk(memory, Perms::Read, parts(3)).unwrap();
    all[0].map();
    assert!(matches!(
        one.space.adopt(memory, all),
        Err((left, AddressSpaceError::NotMapped { .. })) if left.is_empty()
    ));
    let mut all = one.space.bulk(memory, Perms::Read, parts(3)).unwrap();
    let last = all.len() - 1;
    for (number, part) in all.iter_mut().enumerate() {
        one.machine
            .fake
            .host()
            .fail_allocation_after((number == last).then_some(0));
        part.map();
    }
    one.machine.fake.host().fail_allocation_after(None);
    let (_, error) = one.space.adopt(memory, all).unwrap_err();
    assert!(matches!(
        error,
        AddressSpaceError::Map(MapRefusal::Table(TableError::OutOfFrames { .. }))
    ));
    assert_eq!(one.listed(), [(0x1_0000_0000, 0, 1)]);
    assert_eq!(one.memory.pinned_pages(), 1);
    one.space.map_guest(&one.memory, Perms::Read).unwrap();
    one.end();
}

#[test]
fn parts_of_another_space_come_back() {
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    let mut all = other.bulk(&one.memory, Perms::Read, parts(2)).unwrap();
    all.iter_mut().for_each(BulkPart::map);
    let (all, error) = one.space.adopt(&one.memory, all).unwrap_err();
    assert!(matches!(error, AddressSpaceError::OtherDomain { .. }));
    other.adopt(&one.memory, all).unwrap();
    super::space::end_space(other, &one.memory);
    one.end();
}
