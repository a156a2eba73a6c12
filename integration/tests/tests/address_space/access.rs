//! iommufd `access_rw` and `access_rw_unaligned`: bytes through the mappings, at every offset round a page edge.

use hv_core::{Gpa, GuestMemory, Iova, Perms};
use hv_iommu::{AddressSpace, AddressSpaceError, Domain, Needs};

use super::machine::{NIC, gpas, iovas, vm};
use super::space::{PAGE, guest};

#[test]
fn access_rw_unaligned_bytes_at_every_offset_round_a_page_edge() {
    let mut one = guest(vm(1));
    // Two mappings side by side, of pages that are not.
    one.map(0x10_0000, 0x5000, 1);
    one.map(0x10_1000, 0x2000, 2);
    let host = one.machine.fake.host();
    let mut stamp = 1_u8;
    for offset in PAGE - 5..PAGE + 5 {
        for length in 0..12 {
            let at = Iova::new(0x10_0000 + offset);
            let bytes: Vec<u8> = (0..length).map(|index| stamp.wrapping_add(index)).collect();
            one.space.write(&one.memory, host, at, &bytes).unwrap();
            let mut seen = vec![0; bytes.len()];
            one.space.read(&one.memory, host, at, &mut seen).unwrap();
            assert_eq!(seen, bytes);
            // Where the guest sees them.
            for (index, byte) in bytes.iter().enumerate() {
                let place = offset + index as u64;
                let gpa = match place < PAGE {
                    true => 0x5000 + place,
                    false => 0x2000 + place - PAGE,
                };
                let mut found = [0];
                one.memory.read(host, Gpa::new(gpa), &mut found).unwrap();
                assert_eq!(found[0], *byte);
            }
            stamp = stamp.wrapping_mul(31).wrapping_add(7);
        }
    }
    one.end();
}

#[test]
fn what_is_not_mapped_or_not_allowed_is_not_accessed() {
    let mut one = guest(vm(1));
    one.space
        .map(&one.memory, Iova::new(0x1000), gpas(0, 1), Perms::Read)
        .unwrap();
    let host = one.machine.fake.host();
    let refused = one
        .space
        .write(&one.memory, host, Iova::new(0x1ff0), &[1; 4]);
    let (at, found) = (iovas(0x1000, 1), Perms::Read);
    assert_eq!(refused, Err(AddressSpaceError::NotPermitted { at, found }));
    let mut bytes = [0; 32];
    let refused = one
        .space
        .read(&one.memory, host, Iova::new(0x1ff0), &mut bytes);
    let wanted = iovas(0x2000, 1);
    assert_eq!(refused, Err(AddressSpaceError::NotMapped { wanted }));
    one.end();
}

#[test]
fn dirty_pages_are_told_only_where_units_note_them() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 4);
    assert!(one.writes(0x1000));
    let none = Err(AddressSpaceError::NoDirtyTracking);
    let range = iovas(0x1000, 4);
    assert_eq!(one.space.dirty(range, |_, _| panic!("a page")), none);
    let cleared = one.space.dirty_and_clear(range, |_, _| panic!("a page"));
    assert_eq!(cleared, none);
    one.end();
}

/// A guest whose domain tracks what devices write.
pub(super) fn tracked() -> super::space::Guest {
    tracked_on(super::machine::Machine::new())
}

pub(super) fn tracked_on(mut machine: super::machine::Machine) -> super::space::Guest {
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let needs = Needs {
        dirty_tracking: true,
        coherent_walks: false,
        coherent_dma: false,
        pasids: false,
    };
    let domain = Domain::user_domain_alloc(&group, super::machine::PLAIN.with(needs)).unwrap();
    let space = AddressSpace::new(domain, None).unwrap();
    let isolated = super::machine::isolated();
    let group = group.attach_for_guest(space.domain(), &isolated).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), machine.host().frames(64)).unwrap();
    super::space::Guest {
        machine,
        group,
        space,
        memory,
    }
}

/// iommufd `get_dirty_bitmap` and `get_dirty_bitmap_no_clear`.
#[test]
fn get_dirty_bitmap_tells_the_pages_that_were_written_until_they_are_cleared() {
    let mut one = tracked();
    one.map(0x10_0000, 0, 16);
    let range = iovas(0x10_0000, 16);
    let written = [0x10_0000, 0x10_3000, 0x10_f000];
    for at in written {
        assert!(one.writes(at + 8));
    }
    one.machine
        .fake
        .dma_read(NIC, Iova::new(0x10_5000))
        .unwrap();
    for _ in 0..2 {
        let mut seen = Vec::new();
        one.space
            .dirty(range, |at, _| seen.push(at.as_u64()))
            .unwrap();
        assert_eq!(seen, written);
    }
    let mut seen = Vec::new();
    let show = |at: Iova, _| seen.push(at.as_u64());
    one.space.dirty_and_clear(range, show).unwrap();
    assert_eq!(seen, written);
    one.space
        .dirty(range, |at, _| panic!("{at} is still noted"))
        .unwrap();
    // Noted again: the flush made the unit look again.
    assert!(one.writes(0x10_3000));
    let mut again = Vec::new();
    one.space
        .dirty(range, |at, _| again.push(at.as_u64()))
        .unwrap();
    assert_eq!(again, [0x10_3000]);
    one.end();
}

#[test]
fn what_was_written_of_a_large_page_is_not_forgotten_with_a_part_of_it() {
    let mut one = tracked();
    one.give(0x4000_0000, 512);
    one.map(0x4000_0000, 0x4000_0000, 512);
    assert!(one.writes(0x4010_0000));
    let mapping = iovas(0x4000_0000, 512);
    for wanted in [
        iovas(0x4000_0000, 8),
        iovas(0x401f_0000, 16),
        iovas(0x4000_1000, 1),
    ] {
        let refused = one.space.dirty_and_clear(wanted, |_, _| panic!("a page"));
        assert_eq!(refused, Err(AddressSpaceError::Cuts { wanted, mapping }));
    }
    let mut seen = 0;
    one.space
        .dirty_and_clear(mapping, |_, _| seen += 1)
        .unwrap();
    assert_eq!(seen, 1);
    one.end();
}
