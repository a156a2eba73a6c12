//! Giving, pinning, lending, ballooning and taking back, without any memory behind it.

#![expect(unsafe_code, reason = "makes runs of frames that nobody touches")]

use super::*;
use crate::PhysAddr;

fn frames(start: u64, pages: u64) -> FrameRun<Hypervisor> {
    let range = PhysRange::new(PhysAddr::new(start), PageCount::new(pages).unwrap()).unwrap();
    // SAFETY: the test never touches the memory behind these addresses.
    unsafe { FrameRun::from_raw(range, ()) }
}

fn gpas(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa::new(start), PageCount::new(pages).unwrap()).unwrap()
}

#[test]
fn pinned_memory_cannot_be_taken_back() {
    let mut memory = GuestMemory::new(VmId::new(3).unwrap());
    memory
        .give(Gpa::new(0x10_0000), frames(0x80_0000, 16))
        .unwrap();
    let run = memory.pin(gpas(0x10_2000, 4)).unwrap();
    assert_eq!(run.range().start(), PhysAddr::new(0x80_2000));
    assert!(matches!(
        memory.take_back(Gpa::new(0x10_0000)),
        Err(GuestMemoryError::Pinned { pages: 4, .. })
    ));
    let (left, right) = run.split_at(PageCount::ONE).unwrap();
    memory.unpin(left).unwrap();
    assert_eq!(memory.pinned_pages(), 3);
    memory.unpin(right).unwrap();
    assert_eq!(
        memory.take_back(Gpa::new(0x10_0000)).unwrap().pages().get(),
        16
    );
}

#[test]
fn foreign_frames_and_overlaps_come_back() {
    let mut first = GuestMemory::new(VmId::new(1).unwrap());
    let mut second = GuestMemory::new(VmId::new(2).unwrap());
    first.give(Gpa::new(0), frames(0x10_0000, 2)).unwrap();
    second.give(Gpa::new(0), frames(0x20_0000, 2)).unwrap();
    let run = first.pin(gpas(0, 1)).unwrap();
    let (run, error) = second.unpin(run).unwrap_err();
    assert!(matches!(error, GuestMemoryError::Foreign { .. }));
    first.unpin(run).unwrap();
    let (_, error) = first
        .give(Gpa::new(0x1000), frames(0x30_0000, 1))
        .unwrap_err();
    assert!(matches!(error, GuestMemoryError::Overlap { .. }));
    assert!(first.pin(gpas(0x1000, 2)).is_err());
}

fn vm(number: u16) -> VmId {
    VmId::new(number).unwrap()
}

fn registers(start: u64, pages: u64) -> MmioRun {
    let range = PhysRange::new(PhysAddr::new(start), PageCount::new(pages).unwrap()).unwrap();
    let function = crate::PciAddress::from_requester(crate::Segment(0), 8);
    // SAFETY: the test never touches what is behind these addresses.
    unsafe { MmioRun::from_bar(range, function) }
}

#[test]
fn slots_stay_sorted_and_are_found_whatever_order_they_came_in() {
    let mut memory = GuestMemory::new(vm(1));
    // Guest addresses rise where frames fall.
    for place in [5_u64, 1, 7, 0, 3, 6, 2, 4] {
        let gpa = Gpa::new(place * 0x4000);
        memory
            .give(gpa, frames(0x100_0000 - place * 0x8000, 2))
            .unwrap();
    }
    let found: Vec<_> = memory
        .slots()
        .map(|slot| slot.range.start().as_u64())
        .collect();
    assert!(found.is_sorted() && found.len() == 8, "{found:?}");
    let mut pins = Vec::new();
    for place in 0..8 {
        let pin = memory.pin(gpas(place * 0x4000 + 0x1000, 1)).unwrap();
        let expected = 0x100_0000 - place * 0x8000 + 0x1000;
        assert_eq!(pin.range().start(), PhysAddr::new(expected));
        pins.push(pin);
        assert!(memory.pin(gpas(place * 0x4000 + 0x1000, 2)).is_err());
    }
    for pin in pins {
        memory.unpin(pin).unwrap();
    }
    for place in 0..8 {
        let _ = memory.take_back(Gpa::new(place * 0x4000)).unwrap();
    }
    assert_eq!(memory.slots().count(), 0);
}

#[test]
fn bc17_a_balloon_takes_what_is_not_pinned_and_nothing_else() {
    for granule in [PageSize::Size4K, PageSize::Size2M] {
        let mut memory = GuestMemory::new(vm(1));
        // Three blocks of 2 MiB, and a part of a fourth.
        let given = frames(0x8000_0000, 3 * 512 + 7);
        memory
            .give_watched(Gpa::new(0x20_0000), given, granule)
            .unwrap();
        let pin = memory.pin(gpas(0x40_0000 + 0x3000, 4)).unwrap();
        for (page, pages) in [
            (0x40_3000, 1),
            (0x3f_f000, 6),
            (0x20_0000, 3 * 512),
            (0x40_6000, 512),
        ] {
            let error = memory.take_back_part(gpas(page, pages)).unwrap_err();
            assert!(matches!(error, GuestMemoryError::Pinned { .. }), "{error}");
        }
        let beside = memory.take_back_part(gpas(0x40_2000, 1));
        match granule {
            PageSize::Size4K => assert_eq!(beside.unwrap().range().start().as_u64(), 0x8020_2000),
            // Pins are watched by 2 MiB: refused, rather than taken by mistake, and the error says that it may be
            // a neighbour.
            _ => {
                let error = beside.unwrap_err();
                let (range, watched) = (gpas(0x40_2000, 1), gpas(0x40_0000, 512));
                let expected = GuestMemoryError::Pinned {
                    range,
                    watched,
                    pages: 4,
                };
                assert_eq!(error, expected);
                assert!(error.to_string().contains("or its neighbours'"), "{error}");
            }
        }
        // What holds all that is pinned in its blocks is told that it is pinned itself.
        let whole = memory.take_back_part(gpas(0x40_0000, 512 + 7));
        let range = gpas(0x40_0000, 512 + 7);
        let (watched, pages) = (range, 4);
        let expected = GuestMemoryError::Pinned {
            range,
            watched,
            pages,
        };
        match granule {
            PageSize::Size4K => assert!(whole.is_err(), "a page of it is gone"),
            _ => assert_eq!(whole.unwrap_err(), expected),
        }
        let tail = memory.take_back_part(gpas(0x80_0000, 7)).unwrap();
        assert_eq!(tail.range(), frames(0x8060_0000, 7).range());
        let front = memory.take_back_part(gpas(0x20_0000, 512)).unwrap();
        assert_eq!(front.range(), frames(0x8000_0000, 512).range());
        // The pin is found in what is left of its slot.
        memory.unpin(pin).unwrap();
        let mut left = 0;
        let slots: Vec<_> = memory.slots().map(|slot| slot.range).collect();
        for slot in slots {
            left += memory.take_back(slot.start()).unwrap().pages().get();
        }
        let gone = 7 + 512 + u64::from(granule == PageSize::Size4K);
        assert_eq!(left, 3 * 512 + 7 - gone);
        // What was taken can be given again, and there only.
        memory.give(Gpa::new(0x20_0000), front).unwrap();
        let (_, error) = memory.give(Gpa::new(0x30_0000), tail).unwrap_err();
        assert!(matches!(error, GuestMemoryError::Overlap { .. }));
    }
}

#[test]
fn bc17_a_loan_holds_both_sides_until_it_ends() {
    let (mut lender, mut borrower) = (GuestMemory::new(vm(1)), GuestMemory::new(vm(2)));
    lender.give(Gpa::new(0), frames(0x10_0000, 8)).unwrap();
    assert!(matches!(
        lender.lend(gpas(0, 1), vm(1)),
        Err(GuestMemoryError::NotForThisGuest { .. })
    ));
    let loan = lender.lend(gpas(0x2000, 2), vm(2)).unwrap();
    assert_eq!((loan.from(), loan.to()), (vm(1), vm(2)));
    let (loan, error) = GuestMemory::new(vm(3))
        .accept(Gpa::new(0), loan)
        .unwrap_err();
    assert!(matches!(error, GuestMemoryError::NotForThisGuest { .. }));
    borrower.accept(Gpa::new(0x9000), loan).unwrap();
    let pin = borrower.pin(gpas(0x9000, 2)).unwrap();
    assert_eq!(
        (pin.owner(), pin.range().start().as_u64()),
        (vm(2), 0x10_2000)
    );
    // Not by the lender, not by the borrower, not lent on.
    assert!(matches!(
        lender.take_back(Gpa::new(0)),
        Err(GuestMemoryError::Pinned { pages: 2, .. })
    ));
    assert!(matches!(
        borrower.hand_back(Gpa::new(0x9000)),
        Err(GuestMemoryError::Pinned { .. })
    ));
    borrower.unpin(pin).unwrap();
    assert!(matches!(
        borrower.take_back(Gpa::new(0x9000)),
        Err(GuestMemoryError::Lent { .. })
    ));
    assert!(matches!(
        borrower.lend(gpas(0x9000, 1), vm(1)),
        Err(GuestMemoryError::Lent { .. })
    ));
    assert!(matches!(
        lender.take_back(Gpa::new(0)),
        Err(GuestMemoryError::Pinned { .. })
    ));
    let loan = borrower.hand_back(Gpa::new(0x9000)).unwrap();
    let (loan, error) = borrower.end_loan(loan).unwrap_err();
    assert!(matches!(error, GuestMemoryError::Foreign { .. }));
    lender.end_loan(loan).unwrap();
    let _ = lender.take_back(Gpa::new(0)).unwrap();
}

/// Two memories of one guest: a pin of one cannot be given back to the other, so neither loses count of what
/// devices reach.
#[test]
fn bc17_a_pin_goes_back_to_the_memory_that_it_is_of() {
    let (mut one, mut two) = (GuestMemory::new(vm(2)), GuestMemory::new(vm(2)));
    one.give(Gpa::new(0), frames(0x20_0000, 2)).unwrap();
    two.give(Gpa::new(0), frames(0x30_0000, 2)).unwrap();
    let run = one.pin(gpas(0, 1)).unwrap();
    let (run, error) = two.unpin(run).unwrap_err();
    assert!(matches!(error, GuestMemoryError::Foreign { .. }));
    one.unpin(run).unwrap();
    // What is lent twice over is accepted once, by whichever memory.
    let mut lender = GuestMemory::new(vm(1));
    lender.give(Gpa::new(0), frames(0x10_0000, 8)).unwrap();
    let (first, second) = (
        lender.lend(gpas(0, 4), vm(2)),
        lender.lend(gpas(0x3000, 2), vm(2)),
    );
    one.accept(Gpa::new(0x9000), first.unwrap()).unwrap();
    let (second, error) = two.accept(Gpa::new(0x9000), second.unwrap()).unwrap_err();
    assert!(
        matches!(error, GuestMemoryError::GivenTwice { .. }),
        "{error}"
    );
    let pin = one.pin(gpas(0xc000, 1)).unwrap();
    let (pin, error) = two.unpin(pin).unwrap_err();
    assert!(matches!(error, GuestMemoryError::Foreign { .. }));
    one.unpin(pin).unwrap();
    // Another guest may have it too, and this one's other memory once the first gave it back.
    let mut other = GuestMemory::new(vm(3));
    let third = lender.lend(gpas(0x3000, 1), vm(3)).unwrap();
    other.accept(Gpa::new(0), third).unwrap();
    lender
        .end_loan(one.hand_back(Gpa::new(0x9000)).unwrap())
        .unwrap();
    two.accept(Gpa::new(0x9000), second).unwrap();
}

#[test]
fn registers_are_a_kind_of_their_own() {
    let mut memory = GuestMemory::new(vm(1));
    memory.give(Gpa::new(0), frames(0x10_0000, 4)).unwrap();
    memory
        .give_registers(Gpa::new(0xf000_0000), registers(0xfe00_0000, 4))
        .unwrap();
    assert!(matches!(
        memory.pin(gpas(0xf000_0000, 1)),
        Err(GuestMemoryError::Registers { .. })
    ));
    assert!(matches!(
        memory.pin_registers(gpas(0, 1)),
        Err(GuestMemoryError::NotRegisters { .. })
    ));
    assert!(matches!(
        memory.take_back(Gpa::new(0xf000_0000)),
        Err(GuestMemoryError::Registers { .. })
    ));
    assert!(matches!(
        memory.lend(gpas(0xf000_0000, 1), vm(2)),
        Err(GuestMemoryError::Registers { .. })
    ));
    let pin = memory.pin_registers(gpas(0xf000_1000, 2)).unwrap();
    assert!(matches!(
        memory.take_back_registers(Gpa::new(0xf000_0000)),
        Err(GuestMemoryError::Pinned { pages: 2, .. })
    ));
    memory.unpin(pin).unwrap();
    let run = memory.take_back_registers(Gpa::new(0xf000_0000)).unwrap();
    assert_eq!(run.range().start(), PhysAddr::new(0xfe00_0000));
    assert!(matches!(
        memory.take_back_registers(Gpa::new(0)),
        Err(GuestMemoryError::NotRegisters { .. })
    ));
}

#[test]
fn the_same_frames_are_not_accepted_twice() {
    let (mut lender, mut borrower) = (GuestMemory::new(vm(1)), GuestMemory::new(vm(2)));
    lender.give(Gpa::new(0), frames(0x10_0000, 8)).unwrap();
    let (one, two) = (
        lender.lend(gpas(0, 4), vm(2)),
        lender.lend(gpas(0x3000, 2), vm(2)),
    );
    borrower.accept(Gpa::new(0), one.unwrap()).unwrap();
    let (two, error) = borrower.accept(Gpa::new(0x8000), two.unwrap()).unwrap_err();
    assert!(matches!(error, GuestMemoryError::GivenTwice { .. }));
    lender.end_loan(two).unwrap();
    assert_eq!(lender.pinned_pages(), 4);
}
