//! iommufd `access_rw` and `access_rw_unaligned`: bytes through the mappings, at every offset round a page edge.

use hv_core::{Gpa, Iova, Perms};
use hv_iommu::AddressSpaceError;

use super::machine::{gpas, iovas, vm};
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
