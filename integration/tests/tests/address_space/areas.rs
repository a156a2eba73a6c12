//! iommufd `area`, `unmap_fully_contained_areas`, `ioas_iova_alloc` and `all_aligns`: what is mapped, what overlaps,
//! what an unmap takes.

use hv_core::{GuestMemoryError, Iova, Perms, RangeError};
use hv_iommu::table::TableError;
use hv_iommu::{AddressSpaceError, CutRefusal, MapRefusal, MappingKind, UnitCaps};

use super::machine::{Machine, NIC, full_unit, gpas, iovas, vm};
use super::space::{PAGE, end_space, guest, guest_on};

#[test]
fn area_nothing_is_not_unmapped_and_all_may_be_nothing() {
    let mut one = guest(vm(1));
    let wanted = iovas(0, 1 << 20);
    let refused = one.space.unmap(&one.memory, wanted);
    assert_eq!(refused, Err(AddressSpaceError::NotMapped { wanted }));
    assert_eq!(one.space.unmap_all(&one.memory), Ok(0));
    for number in 0..8 {
        one.map(
            0x10_0000 + number * 0x1_0000,
            number * 0x1000,
            1 + number % 3,
        );
    }
    let bytes = (0..8).map(|number| (1 + number % 3) * PAGE).sum();
    assert!(one.writes(0x12_1000));
    assert_eq!(one.space.unmap_all(&one.memory), Ok(bytes));
    assert!(!one.writes(0x12_1000));
    assert_eq!(one.space.unmap_all(&one.memory), Ok(0));
    one.end();
}

#[test]
fn area_every_overlap_is_refused_and_changes_nothing() {
    let mut one = guest(vm(1));
    // 16 pages at 0x10_0000.
    one.map(0x10_0000, 0x1_0000, 16);
    let pinned = one.memory.pinned_pages();
    for (start, pages, what) in [
        (0x10_0000, 16, "exact"),
        (0x10_3000, 4, "inside"),
        (0x0f_f000, 2, "over its begin"),
        (0x10_f000, 2, "over its end"),
        (0x0f_0000, 48, "around it"),
        (0x10_0000, 1, "its first page"),
        (0x10_f000, 1, "its last page"),
    ] {
        let wanted = iovas(start, pages);
        let refused = one
            .space
            .map(&one.memory, Iova::new(start), gpas(0, pages), Perms::Read);
        let taken = iovas(0x10_0000, 16);
        assert_eq!(
            refused,
            Err(AddressSpaceError::Overlap { wanted, taken }),
            "{what}"
        );
        assert_eq!(one.memory.pinned_pages(), pinned, "{what}");
        assert_eq!(one.listed(), [(0x10_0000, 0x1_0000, 16)], "{what}");
    }
    // Side by side is no overlap.
    one.map(0x0f_f000, 0, 1);
    one.map(0x11_0000, 0, 1);
    one.end();
}

#[test]
fn unmap_fully_contained_areas_whole_ones_go_and_none_is_cut() {
    let mut one = guest(vm(1));
    for number in 0..4 {
        one.map(0x10_0000 + number * 0x10_0000, number * 0x4000, 4);
    }
    let all = one.listed();
    for (start, pages, mapping) in [
        // At the begin, at the end, at both, in the middle of one.
        (0x10_1000, 0x400, 0x10_0000),
        (0x00_0000, 0x302, 0x30_0000),
        (0x20_1000, 2, 0x20_0000),
        (0x20_0000, 3, 0x20_0000),
    ] {
        let wanted = iovas(start, pages);
        let mapping = iovas(mapping, 4);
        let refused = one.space.unmap(&one.memory, wanted);
        assert_eq!(refused, Err(AddressSpaceError::Cuts { wanted, mapping }));
        assert_eq!(one.listed(), all);
        assert!(one.writes(0x10_0000) && one.writes(0x40_3000));
    }
    // Holes between are fine; the bytes are those that were mapped.
    let unmapped = one.space.unmap(&one.memory, iovas(0x08_0000, 0x200));
    assert_eq!(unmapped, Ok(2 * 4 * PAGE));
    assert!(!one.writes(0x10_0000) && !one.writes(0x20_3000) && one.writes(0x30_0000));
    assert_eq!(one.memory.pinned_pages(), 8);
    // Its exact range.
    assert_eq!(
        one.space.unmap(&one.memory, iovas(0x40_0000, 4)),
        Ok(4 * PAGE)
    );
    one.end();
}

#[test]
fn bc03_xsa_80_one_flush_for_all_that_an_unmap_takes() {
    let mut one = guest(vm(1));
    for number in 0..16 {
        one.map(0x10_0000 + number * 0x1_0000, number * 0x1000, 1);
        assert!(one.writes(0x10_0000 + number * 0x1_0000));
    }
    one.machine.fake.take_log(0);
    assert_eq!(one.space.unmap_all(&one.memory), Ok(16 * PAGE));
    let log = one.machine.fake.take_log(0);
    assert_eq!(log.len(), 1, "{log:?}");
    for number in 0..16 {
        assert!(!one.writes(0x10_0000 + number * 0x1_0000));
    }
    one.end();
}

#[test]
fn a_split_is_asked_for_by_name() {
    let mut one = guest(vm(1));
    one.give(0x4000_0000, 1024);
    one.map(0x8000_0000, 0x4000_0000, 1024);
    // Through large pages, at their borders, and again.
    for cut in [0x8000_5000, 0x8020_0000, 0x8000_1000, 0x803f_f000] {
        assert!(one.writes(cut) && one.writes(cut - 1));
        one.space.split(Iova::new(cut)).unwrap();
        assert!(one.writes(cut) && one.writes(cut - 1));
        // There is a border already.
        let at = Iova::new(cut);
        let before = (one.listed(), one.space.charged());
        let again = one.space.split(at);
        assert_eq!(again, Err(AddressSpaceError::BeginsThere { at }));
        assert_eq!((one.listed(), one.space.charged()), before);
    }
    assert_eq!(
        one.listed(),
        [
            (0x8000_0000, 0x4000_0000, 1),
            (0x8000_1000, 0x4000_1000, 4),
            (0x8000_5000, 0x4000_5000, 507),
            (0x8020_0000, 0x4020_0000, 511),
            (0x803f_f000, 0x403f_f000, 1),
        ]
    );
    // iommufd splits by an unmap; here each part is a mapping of its own now.
    assert_eq!(
        one.space.unmap(&one.memory, iovas(0x8000_1000, 4)),
        Ok(4 * PAGE)
    );
    assert!(one.writes(0x8000_0000) && !one.writes(0x8000_1000) && one.writes(0x8000_5000));
    assert_eq!(one.memory.pinned_pages(), 1020);
    one.map(0x8000_1000, 0, 4);
    let bad = one.space.split(Iova::new(0x8000_5800));
    assert_eq!(
        bad,
        Err(RangeError::Unaligned { start: 0x8000_5800 }.into())
    );
    let wanted = iovas(0x1000, 1);
    let nothing = one.space.split(Iova::new(0x1000));
    assert_eq!(nothing, Err(AddressSpaceError::NotMapped { wanted }));
    one.end();
}

#[test]
fn bc09_xsa_304_a_split_that_units_cannot_follow_is_refused() {
    let unit = UnitCaps {
        live_resize: false,
        ..full_unit()
    };
    let mut one = guest_on(Machine::with_units(unit, unit), vm(1), None);
    one.give(0x4000_0000, 1024);
    one.map(0x8000_0000, 0x4000_0000, 1024);
    let at = Iova::new(0x8000_0000);
    let refused = one.space.split(Iova::new(0x8000_1000));
    let breaks = CutRefusal::Table(TableError::Breaks { at });
    assert_eq!(refused, Err(breaks.into()));
    assert_eq!(one.listed(), [(0x8000_0000, 0x4000_0000, 1024)]);
    // At the border of a large page nothing has to follow.
    one.space.split(Iova::new(0x8020_0000)).unwrap();
    one.end();
}

#[test]
fn what_is_no_range_or_no_memory_is_refused() {
    let mut one = guest(vm(1));
    let mut map = |at, gpa| {
        let refused = one.space.map(&one.memory, Iova::new(at), gpa, Perms::Read);
        refused.unwrap_err()
    };
    assert_eq!(
        map(0x800, gpas(0, 1)),
        RangeError::Unaligned { start: 0x800 }.into()
    );
    let pages = 2;
    let start = u64::MAX - 0xfff;
    assert_eq!(
        map(start, gpas(0, pages)),
        RangeError::Overflow { start, pages }.into()
    );
    let outside = map(1 << 39, gpas(0, 1));
    assert!(matches!(outside, AddressSpaceError::Outside { .. }));
    // Over the end of the slot.
    let wanted = gpas(63 * PAGE, 2);
    assert_eq!(
        map(0x1000, wanted),
        GuestMemoryError::NotMemory { wanted }.into()
    );
    assert_eq!(one.memory.pinned_pages(), 0);
    assert_eq!(one.listed(), []);
    one.end();
}

#[test]
fn bc17_memory_of_another_guest_is_refused() {
    let mut one = guest(vm(1));
    let mut two = one.machine.guest(super::machine::FAR, vm(2));
    let refused = one
        .space
        .map(&two.memory, Iova::new(0), gpas(0, 1), Perms::Read);
    let foreign = AddressSpaceError::ForeignMemory {
        space: vm(1),
        memory: vm(2),
    };
    assert_eq!(refused, Err(foreign));
    assert_eq!(one.space.unmap_all(&two.memory), Err(foreign));
    assert_eq!(two.memory.pinned_pages(), 0);
    drop(two.group.detach().unwrap());
    assert_eq!(two.domain.destroy().unwrap().count(), 0);
    let frames = two.memory.take_back(hv_core::Gpa::new(0)).unwrap();
    hv_core::platform::FrameSource::free_frames(one.machine.host(), frames);
    one.end();
}

#[test]
fn mappings_for_reading_only_are_that() {
    let mut one = guest(vm(1));
    let mapping = one
        .space
        .map(&one.memory, Iova::new(0x1000), gpas(0, 2), Perms::Read)
        .unwrap();
    assert_eq!(
        (mapping.perms, mapping.kind),
        (Perms::Read, MappingKind::Memory)
    );
    assert!(!one.writes(0x1000));
    one.machine.fake.dma_read(NIC, Iova::new(0x1000)).unwrap();
    one.end();
}

/// Every start and length at page granularity, over the border of a table; with a second space that maps the same
/// added and removed.
#[test]
fn all_aligns_each_page_leads_to_the_guests_and_is_pinned_once() {
    const PAGES: u64 = 6;
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    for start in 0..PAGES {
        for pages in 1..=PAGES - start {
            let at = 0x20_0000 - 3 * PAGE + start * PAGE;
            one.map(at, start * PAGE, pages);
            assert_eq!(one.memory.pinned_pages(), pages);
            other
                .map(
                    &one.memory,
                    Iova::new(at),
                    gpas(start * PAGE, pages),
                    Perms::Read,
                )
                .unwrap();
            assert_eq!(one.memory.pinned_pages(), 2 * pages);
            for page in 0..pages {
                let mark = start << 32 | pages << 16 | page;
                let place = Iova::new(at + page * PAGE + 8);
                one.machine.fake.dma_write(NIC, place, mark).unwrap();
                let mut word = [0; 8];
                let gpa = hv_core::Gpa::new((start + page) * PAGE + 8);
                one.memory.read(one.machine.host(), gpa, &mut word).unwrap();
                assert_eq!(u64::from_le_bytes(word), mark);
            }
            assert!(!one.writes(at - 1) && !one.writes(at + pages * PAGE));
            assert_eq!(other.unmap_all(&one.memory), Ok(pages * PAGE));
            assert_eq!(
                one.space.unmap(&one.memory, iovas(at, pages)),
                Ok(pages * PAGE)
            );
            assert_eq!(one.memory.pinned_pages(), 0);
        }
    }
    end_space(other, &one.memory);
    one.end();
}

/// VFIO `map`: page-wise unmaps in any order.
#[test]
fn pages_are_unmapped_in_random_order() {
    let mut one = guest(vm(1));
    for page in 0..64 {
        one.map(0x10_0000 + page * PAGE, page * PAGE, 1);
    }
    let mut order: Vec<u64> = (0..64).map(|number| number * 37 % 64).collect();
    while let Some(page) = order.pop() {
        let at = 0x10_0000 + page * PAGE;
        assert!(one.writes(at));
        assert_eq!(one.space.unmap(&one.memory, iovas(at, 1)), Ok(PAGE));
        assert!(!one.writes(at));
        assert_eq!(one.listed().len(), order.len());
    }
    one.end();
}

/// `mock_domain`: a map that fails half way, or at its first page, leaves nothing.
#[test]
fn mock_domain_a_map_that_the_table_refuses_leaves_nothing() {
    let mut one = guest(vm(1));
    // Beyond what the unit reaches of memory.
    let unit = UnitCaps {
        phys_bits: 30,
        ..full_unit()
    };
    let mut far = guest_on(Machine::with_units(unit, unit), vm(1), None);
    let refused = far
        .space
        .map(&far.memory, Iova::new(0), gpas(0, 1), Perms::Read);
    assert!(matches!(
        refused,
        Err(AddressSpaceError::Map(MapRefusal::PhysTooWide { .. }))
    ));
    assert_eq!((far.memory.pinned_pages(), far.listed()), (0, vec![]));
    far.end();
    // At each of the table's allocations.
    let host = one.machine.fake.host();
    let mut failing = 0;
    loop {
        let tables = one.space.domain().table_pages();
        host.fail_allocation_after(Some(failing));
        let at = Iova::new(0x4000_0000 - 2 * PAGE);
        let mapped = one.space.map(&one.memory, at, gpas(0, 4), Perms::ReadWrite);
        host.fail_allocation_after(None);
        if mapped.is_ok() {
            break;
        }
        let refused = mapped.unwrap_err();
        assert!(matches!(
            refused,
            AddressSpaceError::Map(MapRefusal::Table(TableError::OutOfFrames { .. }))
        ));
        assert_eq!(one.memory.pinned_pages(), 0);
        assert_eq!(one.space.mappings().count(), 0);
        assert_eq!(one.space.domain().table_pages(), tables);
        failing += 1;
    }
    assert_eq!(failing, 4);
    one.end();
}

/// Every second mapping goes in one call, and what stays is where it was.
#[test]
fn revoke_takes_every_second_mapping_out_in_one_pass() {
    const EACH: u64 = 500;
    let mut one = guest(vm(1));
    let at = |number: u64| 0x10_0000 + number * 2 * PAGE;
    for number in 0..2 * EACH {
        one.map(at(number), number % 2 * PAGE, 1);
    }
    one.machine.fake.take_log(0);
    let revoked = one.space.revoke(&one.memory, gpas(PAGE, 1));
    assert_eq!(revoked, Ok(EACH * PAGE));
    let log = one.machine.fake.take_log(0);
    assert_eq!(log.len(), 1, "{log:?}");
    let left: Vec<_> = (0..EACH).map(|number| (at(2 * number), 0, 1)).collect();
    assert_eq!(one.listed(), left);
    assert!(one.writes(at(0)) && !one.writes(at(1)) && one.writes(at(2)));
    assert_eq!(one.memory.pinned_pages(), EACH);
    // The places are free again.
    one.map(at(1), PAGE, 1);
    one.end();
}
