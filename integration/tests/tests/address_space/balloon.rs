//! Memory under mappings: ballooned, lent, registers of other devices.

#![expect(unsafe_code, reason = "makes a run of registers on the fake machine")]

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, GuestMemoryError, Iova, MmioRun, Perms};
use hv_iommu::{AddressSpaceError, MappingKind};
use hv_tests::fake::Fake;

use super::machine::{DISK, FAR, gpas, vm};
use super::space::{PAGE, end_space, guest};

#[test]
fn bc17_xsa_379_a_balloon_takes_a_part_only_after_its_receipt() {
    let mut one = guest(vm(1));
    one.give(0x4000_0000, 1024);
    one.map(0x4000_0000, 0x4000_0000, 1024);
    let part = gpas(0x4000_0000, 512);
    let pinned = |memory: &mut GuestMemory| {
        matches!(
            memory.take_back_part(part),
            Err(GuestMemoryError::Pinned { .. })
        )
    };
    assert!(pinned(&mut one.memory));
    one.space.split(Iova::new(0x4020_0000)).unwrap();
    assert!(pinned(&mut one.memory));
    one.space
        .unmap(&one.memory, super::machine::iovas(0x4000_0000, 512))
        .unwrap();
    let taken = one.memory.take_back_part(part).unwrap();
    assert_eq!(taken.pages().get(), 512);
    assert!(!one.writes(0x4000_0000) && one.writes(0x4020_0000));
    one.machine.host().free_frames(taken);
    // Given again, elsewhere in memory or not, it can be mapped again.
    one.give(0x4000_0000, 512);
    one.map(0x4000_0000, 0x4000_0000, 512);
    assert!(one.writes(0x4000_0000));
    one.end();
}

#[test]
fn bc17_lent_memory_is_mapped_by_both_and_goes_back_by_both() {
    let mut one = guest(vm(1));
    let two = one.machine.guest(FAR, vm(2));
    let mut two_memory = two.memory;
    let mut two_space = hv_iommu::AddressSpace::<Fake>::new(two.domain, None).unwrap();
    let loan = one.memory.lend(gpas(0x4000, 4), vm(2)).unwrap();
    two_memory.accept(Gpa::new(0x100_0000), loan).unwrap();
    one.map(0x4000, 0x4000, 1);
    let at = Iova::new(0x9000);
    two_space
        .map(&two_memory, at, gpas(0x100_0000, 4), Perms::ReadWrite)
        .unwrap();
    one.machine.fake.dma_write(FAR, at, 7).unwrap();
    assert_eq!(
        one.machine
            .fake
            .dma_read(super::machine::NIC, Iova::new(0x4000)),
        Ok(7)
    );
    let held = |result: Result<_, GuestMemoryError>| {
        matches!(result, Err(GuestMemoryError::Pinned { .. }))
    };
    assert!(held(two_memory.hand_back(Gpa::new(0x100_0000)).map(drop)));
    assert_eq!(
        two_space.revoke(&two_memory, gpas(0x100_0000, 1)),
        Ok(4 * PAGE)
    );
    assert!(one.machine.fake.dma_read(FAR, at).is_err());
    let loan = two_memory.hand_back(Gpa::new(0x100_0000)).unwrap();
    one.space.unmap_all(&one.memory).unwrap();
    assert!(held(one.memory.take_back(Gpa::new(0)).map(drop)));
    one.memory.end_loan(loan).unwrap();
    drop(two.group.detach().unwrap());
    end_space(two_space, &two_memory);
    one.machine
        .host()
        .free_frames(two_memory.take_back(Gpa::new(0)).unwrap());
    one.end();
}

#[test]
fn registers_are_mapped_by_name_and_revoked_when_they_go() {
    let mut one = guest(vm(1));
    // The fake has no registers: frames stand for them.
    let stand_in = one.machine.host().frames(4);
    let range = stand_in.range();
    // SAFETY: nobody else reaches these frames while the value is alive.
    let registers = unsafe { MmioRun::from_bar(range, DISK) };
    let gpa = Gpa::new(0xe000_0000);
    one.memory.give_registers(gpa, registers).unwrap();
    let at = Iova::new(0xe000_0000);
    let whole = gpas(0xe000_0000, 4);
    let refused = one.space.map(&one.memory, at, whole, Perms::ReadWrite);
    let error = GuestMemoryError::Registers { range: whole };
    assert_eq!(refused, Err(AddressSpaceError::Memory(error)));
    let mapping = one
        .space
        .map_registers(&one.memory, at, whole, Perms::ReadWrite)
        .unwrap();
    assert_eq!(mapping.kind, MappingKind::Registers);
    assert!(one.writes(0xe000_2000));
    one.map(0x1000, 0x1000, 2);
    // A copy of registers is one too.
    one.space
        .copy_within(
            &one.memory,
            super::machine::iovas(0xe000_1000, 1),
            Iova::new(0x9000),
            Perms::Read,
        )
        .unwrap();
    // By the CPU they are not memory.
    let mut word = [0; 8];
    let host = one.machine.fake.host();
    assert!(one.space.read(&one.memory, host, at, &mut word).is_err());
    // Their function is about to stop to decode them.
    let early = one.memory.take_back_registers(gpa);
    assert!(matches!(
        early,
        Err(GuestMemoryError::Pinned { pages: 5, .. })
    ));
    assert_eq!(one.space.revoke(&one.memory, whole), Ok(5 * PAGE));
    assert!(!one.writes(0xe000_2000) && one.writes(0x1000));
    assert_eq!(one.memory.take_back_registers(gpa).unwrap().range(), range);
    one.machine.host().free_frames(stand_in);
    one.end();
}
