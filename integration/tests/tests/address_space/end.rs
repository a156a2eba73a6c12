//! iommufd `ioas_destroy`, `ioas_area_destroy`, `ioas_auto_destroy`, `ioas_area_auto_destroy`: the end of a space.

use hv_core::platform::FrameSource;
use hv_core::{Gpa, Iova, Perms};
use hv_iommu::DestroyRefusal;

use super::machine::{gpas, iovas, vm};
use super::space::{end_space, guest};

#[test]
fn bc21_ioas_destroy_a_space_ends_only_without_devices() {
    for mapped in [false, true] {
        let mut one = guest(vm(1));
        if mapped {
            one.map(0x1000, 0, 4);
        }
        let (space, reason) = one.space.destroy().unwrap_err();
        assert_eq!(reason, DestroyRefusal::Attached { attachments: 1 });
        // It serves as before.
        one.space = space;
        one.map(0x9000, 0, 1);
        assert!(one.writes(0x9000));
        one.end();
    }
}

#[test]
fn bc18_xsa_207_a_space_that_ends_with_all_it_maps_gives_every_pin_back() {
    let mut one = guest(vm(1));
    let mut other = one.other_space();
    for page in 0..20 {
        let at = Iova::new(0x10_0000 + page * 0x8000);
        other
            .map(&one.memory, at, gpas(page * 0x1000, 2), Perms::Read)
            .unwrap();
    }
    assert_eq!(one.memory.pinned_pages(), 40);
    let mut teardown = other.destroy().unwrap();
    let mut steps = 0;
    while !teardown.step(&one.memory, 64) {
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
    assert_eq!(one.memory.pinned_pages(), 0);
    one.end();
}

/// A space that is dropped by mistake loses its memory; it frees nothing that a device could reach.
#[test]
fn bc18_a_dropped_space_frees_nothing() {
    let mut one = guest(vm(1));
    one.map(0x1000, 0, 4);
    let space = std::mem::replace(&mut one.space, {
        let group = one.machine.take(super::machine::FAR).claim_for_guest(vm(1));
        let domain = hv_iommu::Domain::user_domain_alloc(&group, super::machine::PLAIN).unwrap();
        hv_iommu::AddressSpace::new(domain, None).unwrap()
    });
    drop(space);
    assert!(one.writes(0x1000), "the device goes on");
    assert_eq!(one.memory.pinned_pages(), 4);
    assert!(one.memory.take_back(Gpa::new(0)).is_err());
    end_space(one.space, &one.memory);
}

/// `access_pin`: a pin of the hypervisor's own is beside those of mappings.
#[test]
fn access_pin_survives_spaces_that_come_and_go() {
    let mut one = guest(vm(1));
    let pin = one.memory.pin(gpas(0x1000, 2)).unwrap();
    let mut other = one.other_space();
    other
        .map(&one.memory, Iova::new(0), gpas(0, 8), Perms::Read)
        .unwrap();
    one.map(0, 0, 8);
    other.unmap(&one.memory, iovas(0, 8)).unwrap();
    end_space(other, &one.memory);
    one.space.unmap_all(&one.memory).unwrap();
    assert_eq!(one.memory.pinned_pages(), 2);
    assert!(one.memory.take_back(Gpa::new(0)).is_err());
    one.memory.unpin(pin).unwrap();
    let frames = one.memory.take_back(Gpa::new(0)).unwrap();
    one.machine.host().free_frames(frames);
    one.end();
}
