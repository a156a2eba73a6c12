//! iommufd `area_allowed` and the reserved half of `area_auto_iova`.

use hv_core::{Iova, Perms};
use hv_iommu::{AddressSpaceError, ReservedFor};

use super::machine::{gpas, iovas, vm};
use super::space::guest;

#[test]
fn area_allowed_and_reserved_refuse_each_other() {
    let mut one = guest(vm(1));
    let allowed = iovas(0x100_0000, 0x100);
    one.space.allow(allowed).unwrap();
    for wanted in [
        allowed,
        iovas(0x100_4000, 2),
        iovas(0xff_f000, 2),
        iovas(0x10f_f000, 9),
    ] {
        let refused = one.space.reserve(wanted, ReservedFor::Firmware);
        assert_eq!(refused, Err(AddressSpaceError::Allowed { wanted, allowed }));
    }
    let by = iovas(0x200_0000, 0x10);
    one.space.reserve(by, ReservedFor::Firmware).unwrap();
    let why = ReservedFor::Firmware;
    for wanted in [
        by,
        iovas(0x200_f000, 4),
        iovas(0x1ff_f000, 2),
        iovas(0x100_0000, 0x8000),
    ] {
        let refused = one.space.allow(wanted);
        assert_eq!(
            refused,
            Err(AddressSpaceError::Reserved { wanted, by, why })
        );
        let twice = one.space.reserve(wanted, ReservedFor::User);
        assert_eq!(twice, Err(AddressSpaceError::Reserved { wanted, by, why }));
    }
    // Taken back, each may be the other.
    one.space.disallow(allowed).unwrap();
    one.space.unreserve(by).unwrap();
    one.space.reserve(allowed, ReservedFor::User).unwrap();
    one.space.allow(by).unwrap();
    let wanted = iovas(0x300_0000, 1);
    let unknown = Err(AddressSpaceError::NoSuchWindow { wanted });
    assert_eq!(one.space.unreserve(wanted), unknown);
    assert_eq!(one.space.disallow(wanted), unknown);
    one.end();
}

#[test]
fn bc06_nothing_is_mapped_over_what_is_reserved() {
    let mut one = guest(vm(1));
    // The window of interrupt messages is reserved by the unit.
    let hardware = iovas(0xfee0_0000, 256);
    let firmware = iovas(0x1000_0000, 2);
    one.space.reserve(firmware, ReservedFor::Firmware).unwrap();
    let all: Vec<_> = one.space.reserved().collect();
    assert_eq!(
        all,
        [
            (hardware, ReservedFor::Hardware),
            (firmware, ReservedFor::Firmware)
        ]
    );
    for (start, pages, by, why) in [
        (0xfee0_0000, 1, hardware, ReservedFor::Hardware),
        (0xfedf_f000, 2, hardware, ReservedFor::Hardware),
        (0xfeef_f000, 2, hardware, ReservedFor::Hardware),
        (0x1000_1000, 1, firmware, ReservedFor::Firmware),
        (0x0fff_f000, 8, firmware, ReservedFor::Firmware),
    ] {
        let wanted = iovas(start, pages);
        let refused = one
            .space
            .map(&one.memory, Iova::new(start), gpas(0, pages), Perms::Read);
        assert_eq!(
            refused,
            Err(AddressSpaceError::Reserved { wanted, by, why })
        );
        assert_eq!(
            one.space.unmap(&one.memory, wanted),
            Err(AddressSpaceError::NotMapped { wanted })
        );
    }
    assert_eq!(one.memory.pinned_pages(), 0);
    // Beside it there is room.
    one.map(0xfedf_f000, 0, 1);
    one.map(0xfef0_0000, 0, 1);
    // What is mapped cannot be reserved.
    let (wanted, taken) = (iovas(0xfedf_e000, 2), iovas(0xfedf_f000, 1));
    let refused = one.space.reserve(wanted, ReservedFor::User);
    assert_eq!(refused, Err(AddressSpaceError::Overlap { wanted, taken }));
    one.end();
}

#[test]
fn once_ranges_are_allowed_mappings_lie_in_one_of_them() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 1);
    one.space.allow(iovas(0x10_0000, 16)).unwrap();
    one.space.allow(iovas(0x20_0000, 16)).unwrap();
    for (start, pages) in [(0x3000, 1), (0x10_f000, 2), (0x0f_f000, 2), (0x1f_f000, 1)] {
        let wanted = iovas(start, pages);
        let refused = one
            .space
            .map(&one.memory, Iova::new(start), gpas(0, pages), Perms::Read);
        assert_eq!(refused, Err(AddressSpaceError::NotAllowed { wanted }));
    }
    one.map(0x10_0000, 0, 16);
    one.map(0x20_f000, 0, 1);
    assert!(one.writes(0x1000), "what was mapped stays");
    one.space.disallow(iovas(0x20_0000, 16)).unwrap();
    one.space.disallow(iovas(0x10_0000, 16)).unwrap();
    one.map(0x3000, 0, 1);
    one.end();
}
