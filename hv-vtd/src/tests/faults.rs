//! The fault log: every record once, in order, and lost faults are said to be lost.

use super::*;
use hv_core::{Access, Iova, PciAddress};
use hv_iommu::{Backend, FaultClass, FaultDetail, FaultEvent, RawFault};

fn fault(address: u64, requester: u16, access: Access, class: FaultClass, code: u16) -> FaultEvent {
    FaultEvent::Fault(RawFault {
        requester: PciAddress::from_requester(Segment(0), requester),
        pasid: None,
        address: Iova::new(address),
        access,
        class,
        stage: None,
        detail: FaultDetail::default(),
        code,
    })
}

/// The high word of a record; F is set by the unit.
fn high(reason: u64, t1: u64, requester: u16) -> u64 {
    t1 << 62 | reason << 32 | u64::from(requester)
}

#[test]
fn a_fault_says_who_where_and_how() {
    let (machine, vtd) = running(CAP, ECAP);
    assert_eq!(vtd.take_fault(FIRST), None);
    // QEMU leaves ones in the PASID field of requests without a PASID.
    machine.units[0].put_fault(0, 0x20_4000_9000, 0xff_ff00_0000_0000 | high(5, 0, 0x08));
    let unmapped = FaultClass::NotPermitted;
    assert_eq!(
        vtd.take_fault(FIRST),
        Some(fault(0x20_4000_9000, 0x08, Access::Write, unmapped, 5))
    );
    assert_eq!(vtd.take_fault(FIRST), None);
    machine.units[0].put_fault(0, 0xb000, high(6, 1, 0x3aff));
    assert_eq!(
        vtd.take_fault(FIRST),
        Some(fault(0xb000, 0x3aff, Access::Read, unmapped, 6))
    );
    machine.units[0].put_fault(0, 0, high(2, 0, 0x08));
    assert_eq!(
        vtd.take_fault(FIRST),
        Some(fault(0, 0x08, Access::Write, FaultClass::NotBound, 2))
    );
    // T2 and T1: an atomic operation writes.
    machine.units[0].put_fault(0, 0xc000, 1 << 28 | high(5, 1, 0x08));
    assert_eq!(
        vtd.take_fault(FIRST),
        Some(fault(0xc000, 0x08, Access::Write, unmapped, 5))
    );
}

#[test]
fn records_are_taken_in_order_around_the_end() {
    let (machine, vtd) = running(CAP | 3 << 40, ECAP);
    for (order, record) in [2, 3, 0, 1].into_iter().enumerate() {
        machine.units[0].put_fault(record, 0x1000 * (order as u64 + 1), high(5, 0, 0x10));
    }
    machine.units[0].set_fault_status(machine.units[0].fault_status() | 1);
    for order in 1..=4 {
        assert_eq!(
            vtd.take_fault(FIRST),
            Some(fault(
                0x1000 * order,
                0x10,
                Access::Write,
                FaultClass::NotPermitted,
                5
            ))
        );
    }
    assert_eq!(vtd.take_fault(FIRST), Some(FaultEvent::Overflow));
    assert_eq!(vtd.take_fault(FIRST), None);
    assert_eq!(machine.units[0].fault_status() & 0x7f, 0);
}

/// Shows: bc19.
#[test]
fn a_first_record_out_of_range_loses_no_fault() {
    let (machine, vtd) = running(CAP | 3 << 40, ECAP);
    machine.units[0].put_fault(1, 0x7000, high(5, 0, 0x10));
    machine.units[0].set_fault_status(0xfe02);
    assert!(matches!(
        vtd.take_fault(FIRST),
        Some(FaultEvent::Fault(RawFault { code: 5, .. }))
    ));
}

#[test]
fn a_unit_that_is_gone_has_no_faults() {
    let (machine, vtd) = running(CAP, ECAP);
    machine.units[0].set_fault_status(u32::MAX);
    assert_eq!(vtd.take_fault(FIRST), None);
}

#[test]
fn the_segment_is_that_of_the_unit() {
    let machine = Machine::new(&[(CAP, ECAP), (CAP, ECAP)]);
    let vtd = bring_up(&machine).unwrap();
    machine.units[1].put_fault(0, 0x1000, high(5, 0, 0x10));
    let second = UnitIndex::new(1).unwrap();
    match vtd.take_fault(second) {
        Some(FaultEvent::Fault(fault)) => assert_eq!(fault.requester.segment(), Segment(1)),
        other => panic!("{other:?}"),
    }
}

/// Shows: bc19.
#[test]
fn no_fault_record_brings_the_reader_down() {
    // Every reason code with every combination of the type bits.
    let (machine, vtd) = running(CAP, ECAP);
    for reason in 0..=0xff {
        for kind in 0..4 {
            let word = high(reason, kind & 1, 0x10) | kind >> 1 << 28;
            machine.units[0].put_fault(0, u64::MAX, word);
            match vtd.take_fault(FIRST) {
                Some(FaultEvent::Fault(fault)) => assert_eq!(u64::from(fault.code), reason),
                other => panic!("{other:?}"),
            }
        }
    }
}
