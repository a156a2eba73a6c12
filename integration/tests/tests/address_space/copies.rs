//! iommufd `copy_area`, `copy_sweep` and `user_copy`: one mapping in two spaces, with a pin for each.

use hv_core::{Iova, Perms};
use hv_iommu::{AddressSpaceError, MappingKind};

use super::machine::{gpas, iovas, vm};
use super::space::{PAGE, end_space, guest, listed};

#[test]
fn copy_sweep_a_copy_works_only_inside_of_one_mapping() {
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    // Pages 2..8 and 8..12 side by side, 16..20 behind a hole.
    one.map(0x10_2000, 0x2000, 6);
    one.map(0x10_8000, 0x8000, 4);
    one.map(0x11_0000, 0x1_0000, 4);
    let areas = [(2, 8), (8, 12), (16, 20)];
    let mut worked = 0;
    for start in 0..22 {
        for pages in 1..8 {
            let from = iovas(0x10_0000 + start * PAGE, pages);
            let at = Iova::new(0x4000_0000);
            let copied = other.copy_from(&one.memory, &one.space, from, at, Perms::ReadWrite);
            let inside = areas
                .iter()
                .any(|(low, high)| (*low..*high).contains(&start) && start + pages <= *high);
            assert_eq!(copied.is_ok(), inside, "{from}: {copied:?}");
            match copied {
                Ok(mapping) => {
                    assert_eq!(mapping.gpa, gpas(start * PAGE, pages));
                    assert_eq!(one.memory.pinned_pages(), 14 + pages);
                    assert_eq!(other.unmap_all(&one.memory), Ok(pages * PAGE));
                    worked += 1;
                }
                Err(
                    AddressSpaceError::NotMapped { wanted }
                    | AddressSpaceError::Cuts { wanted, .. },
                ) => {
                    assert_eq!(wanted, from);
                    assert_eq!(listed(&other), []);
                }
                Err(error) => panic!("{error}"),
            }
            assert_eq!(one.memory.pinned_pages(), 14);
        }
    }
    assert_eq!(worked, 21 + 10 + 10);
    end_space(other, &one.memory);
    one.end();
}

#[test]
fn copy_area_each_mapping_holds_its_own_pin() {
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    one.map(0x1000, 0x3000, 4);
    other
        .copy_from(
            &one.memory,
            &one.space,
            iovas(0x2000, 2),
            Iova::new(0x9000),
            Perms::Read,
        )
        .unwrap();
    // Within the space, too.
    one.space
        .copy_within(
            &one.memory,
            iovas(0x1000, 4),
            Iova::new(0x8_0000),
            Perms::ReadWrite,
        )
        .unwrap();
    assert!(one.writes(0x8_0000));
    assert_eq!(one.memory.pinned_pages(), 10);
    // The source goes, its copies stay.
    one.space.unmap(&one.memory, iovas(0x1000, 4)).unwrap();
    assert!(!one.writes(0x1000) && one.writes(0x8_0000));
    let left = one.memory.take_back(hv_core::Gpa::new(0)).unwrap_err();
    assert!(matches!(
        left,
        hv_core::GuestMemoryError::Pinned { pages: 6, .. }
    ));
    // An overlap in the target, as with any map.
    let refused = other.copy_from(
        &one.memory,
        &one.space,
        iovas(0x8_0000, 2),
        Iova::new(0xa000),
        Perms::Read,
    );
    let (wanted, taken) = (iovas(0xa000, 2), iovas(0x9000, 2));
    assert_eq!(refused, Err(AddressSpaceError::Overlap { wanted, taken }));
    end_space(other, &one.memory);
    assert_eq!(one.memory.pinned_pages(), 4);
    one.end();
}

#[test]
fn a_copy_does_not_allow_more_than_its_source() {
    let mut one = guest(vm(1));
    one.space
        .map(&one.memory, Iova::new(0x1000), gpas(0, 2), Perms::Read)
        .unwrap();
    for wanted in [Perms::Write, Perms::ReadWrite] {
        let at = Iova::new(0x9000);
        let refused = one
            .space
            .copy_within(&one.memory, iovas(0x1000, 1), at, wanted);
        let found = Perms::Read;
        assert_eq!(refused, Err(AddressSpaceError::Widens { found, wanted }));
    }
    let copy = one.space.copy_within(
        &one.memory,
        iovas(0x1000, 1),
        Iova::new(0x9000),
        Perms::Read,
    );
    assert_eq!(copy.unwrap().kind, MappingKind::Memory);
    one.end();
}

#[test]
fn a_copy_out_of_another_guests_space_is_refused_and_changes_nothing() {
    let mut one = guest(vm(1));
    let mut other = guest(vm(2));
    other.map(0x1000, 0x3000, 4);
    one.map(0x1000, 0, 1);
    let at = Iova::new(0x9000);
    let from = iovas(0x2000, 2);
    let refused = one
        .space
        .copy_from(&one.memory, &other.space, from, at, Perms::Read);
    let (space, memory) = (vm(1), vm(2));
    let expected = AddressSpaceError::ForeignMemory { space, memory };
    assert_eq!(refused, Err(expected));
    assert_eq!(one.listed(), [(0x1000, 0, 1)]);
    assert_eq!(
        (one.memory.pinned_pages(), other.memory.pinned_pages()),
        (1, 4)
    );
    // Where nothing is mapped it is the guest that counts, too.
    let nothing = one
        .space
        .copy_from(&one.memory, &other.space, iovas(0x8000, 1), at, Perms::Read);
    assert_eq!(nothing, Err(expected));
    one.end();
    other.end();
}
