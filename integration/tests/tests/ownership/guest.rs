//! A guest's memory under its devices: pinned while mapped or pending, back by receipt or end.

use hv_core::platform::FrameSource;
use hv_core::{Access, Gpa, GuestMemory, GuestMemoryError, Iova, Owner, Perms, UserManaged};
use hv_iommu::{FlushSpan, MapError, MapRefusal};
use hv_tests::fake::DmaFault;

use super::machine::{FAR, Machine, NIC, gpas, iovas, vm};

fn assert_pinned(memory: &mut GuestMemory, pages: u64) {
    assert_eq!(memory.pinned_pages(), pages);
    let error = memory.take_back(Gpa::new(0)).unwrap_err();
    let (range, watched) = (gpas(0, 64), gpas(0, 64));
    let expected = GuestMemoryError::Pinned {
        range,
        watched,
        pages,
    };
    assert_eq!(error, expected);
}

#[test]
fn bc17_xsa_379_guest_memory_stays_while_a_device_may_reach_it() {
    let mut machine = Machine::new();
    let mut guest = machine.guest(NIC, vm(1));
    let pin = guest.memory.pin(gpas(0x3000, 2)).unwrap();
    let frame = pin.range().start();
    assert_pinned(&mut guest.memory, 2);
    // A guest's device uses guest addresses.
    let range = guest.domain.reserve(iovas(0x3000, 2)).unwrap();
    let range = range.map(pin, Perms::ReadWrite).unwrap();
    machine
        .fake
        .dma_write(NIC, Iova::from(Gpa::new(0x3000)), 42)
        .unwrap();
    let mut word = [0; 8];
    guest
        .memory
        .read(machine.host(), Gpa::new(0x3000), &mut word)
        .unwrap();
    assert_eq!(u64::from_le_bytes(word), 42);
    assert_pinned(&mut guest.memory, 2);

    let pending = range.unmap();
    assert_pinned(&mut guest.memory, 2);
    assert_eq!(
        machine.fake.dma(NIC, Iova::new(0x3000), Access::Write),
        Ok(frame)
    );
    let (_, pin) = pending.flush().unwrap();
    assert_pinned(&mut guest.memory, 2);
    guest.memory.unpin(pin).unwrap();
    let frames = guest.memory.take_back(Gpa::new(0)).unwrap();
    assert_eq!(frames.pages().get(), 64);
    machine.host().free_frames(frames);
    let gone = machine.fake.dma(NIC, Iova::new(0x3000), Access::Write);
    assert_eq!(gone, Err(DmaFault::NotMapped));
}

#[test]
fn bc17_xsa_285_the_end_of_the_domain_gives_every_pin_back_once() {
    let mut machine = Machine::new();
    let mut guest = machine.guest(NIC, vm(1));
    let map = |start, pages| {
        let pin = guest.memory.pin(gpas(start, pages)).unwrap();
        let range = guest.domain.reserve(iovas(start, pages)).unwrap();
        range.map(pin, Perms::Read).unwrap()
    };
    let (dropped, forgotten) = (map(0x1000, 3), map(0x8000, 4));
    drop(dropped);
    std::mem::forget(forgotten.unmap());
    // The same page under two addresses is pinned twice.
    let twice = guest.memory.pin(gpas(0x1000, 1)).unwrap();
    let range = guest.domain.reserve(iovas(0x9_0000, 1)).unwrap();
    drop(range.map(twice, Perms::Read).unwrap());
    assert_pinned(&mut guest.memory, 8);
    let _receipt = guest.domain.flush(FlushSpan::Domain).unwrap();
    assert_pinned(&mut guest.memory, 8);
    let _group = guest.group.detach().unwrap();
    for run in guest.domain.destroy().unwrap() {
        assert_eq!(run.owner(), vm(1));
        guest.memory.unpin(run).unwrap();
    }
    let frames = guest.memory.take_back(Gpa::new(0)).unwrap();
    machine.host().free_frames(frames);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn frames_of_another_guest_are_refused() {
    let mut machine = Machine::new();
    let (first, second) = (machine.guest(NIC, vm(1)), machine.guest(FAR, vm(2)));
    let pin = second.memory.pin(gpas(0x1000, 1)).unwrap();
    let range = first.domain.reserve(iovas(0x1000, 1)).unwrap();
    let error = range.map(pin, Perms::Read).unwrap_err();
    let MapError::Refused {
        range,
        frames,
        reason,
    } = error
    else {
        panic!("{error}");
    };
    let expected = MapRefusal::ForeignFrames {
        domain: UserManaged::owner_id(vm(1)),
        frames: UserManaged::owner_id(vm(2)),
    };
    assert_eq!(reason, expected);
    let shared = range.share().unwrap();
    let error = shared
        .map(Iova::new(0x1000), frames, Perms::Read)
        .unwrap_err();
    assert_eq!(error.reason, expected.into());
    let unreached = machine.fake.dma(NIC, Iova::new(0x1000), Access::Read);
    assert_eq!(unreached, Err(DmaFault::NotMapped));
    second.memory.unpin(error.frames.unwrap()).unwrap();
    assert_eq!(second.memory.pinned_pages(), 0);
}

#[test]
fn two_guests_use_the_same_addresses_for_memory_of_their_own() {
    let mut machine = Machine::new();
    let guests = [machine.guest(NIC, vm(1)), machine.guest(FAR, vm(2))];
    for (guest, device) in guests.iter().zip([NIC, FAR]) {
        let pin = guest.memory.pin(gpas(0, 1)).unwrap();
        let range = guest.domain.reserve(iovas(0, 1)).unwrap();
        drop(range.map(pin, Perms::ReadWrite).unwrap());
        let mark = u64::from(device.requester());
        machine.fake.dma_write(device, Iova::new(0), mark).unwrap();
    }
    for (guest, device) in guests.iter().zip([NIC, FAR]) {
        let mut word = [0; 8];
        guest
            .memory
            .read(machine.host(), Gpa::new(0), &mut word)
            .unwrap();
        assert_eq!(u64::from_le_bytes(word), u64::from(device.requester()));
    }
}

#[test]
fn runs_of_two_slots_do_not_unpin_as_one() {
    let mut machine = Machine::new();
    let host = machine.fake.host();
    let (low, high) = host
        .frames(4)
        .split_at(hv_core::PageCount::new(2).unwrap())
        .unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), low).unwrap();
    memory.give(Gpa::new(0x10_0000), high).unwrap();
    let low = memory.pin(gpas(0, 2)).unwrap();
    let high = memory.pin(gpas(0x10_0000, 2)).unwrap();
    let both = low.join(high).unwrap();
    let (both, error) = memory.unpin(both).unwrap_err();
    assert!(matches!(error, GuestMemoryError::Foreign { .. }));
    assert_eq!(memory.pinned_pages(), 4);
    let (low, high) = both.split_at(hv_core::PageCount::new(2).unwrap()).unwrap();
    memory.unpin(low).unwrap();
    memory.unpin(high).unwrap();
    assert_eq!(memory.pinned_pages(), 0);
    drop(machine.take(NIC));
}
