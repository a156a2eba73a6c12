//! Where the fault event goes: register by register, and only where a write is an interrupt.

use super::*;
use crate::testing::Behaviour;
use hv_iommu::{
    Backend, FaultEvent, InterruptMessage, InterruptRoute, InterruptSource, MessageData,
    RouteError, RoutedInterrupts, UnitError,
};

const MASKED: u32 = 1 << 31;
const FAULTS: InterruptSource = InterruptSource::Faults;
const ECAP_EIM: u64 = 1 << 4;

fn message(address: u64, data: u32) -> InterruptRoute {
    InterruptRoute::Message(InterruptMessage {
        address: PhysAddr::new(address),
        data: MessageData(data),
    })
}

/// Writes to 32-bit registers, in order.
fn writes(machine: &Machine) -> Vec<(u32, u32)> {
    let log = machine.take_log();
    let writes = log.iter().filter_map(|event| match *event {
        Event::Write32 { offset, value, .. } => Some((offset, value)),
        _ => None,
    });
    writes.collect()
}

#[test]
fn bc12_a_message_is_masked_said_and_let_through_in_this_order() {
    let (machine, vtd) = running(CAP, ECAP | ECAP_EIM);
    assert_eq!(machine.units[0].fault_interrupt(), MASKED, "bring-up masks");
    for (address, low, high) in [
        (0xfee0_7000, 0xfee0_7000, 0),
        (0x1234_5600_fee7_8000, 0xfee7_8000, 0x1234_5600),
        (0xfeef_ffec, 0xfeef_ffec, 0),
    ] {
        let routed = vtd.route_interrupt(FIRST, FAULTS, message(address, 0x31));
        assert_eq!(routed, Ok(()));
        let expected = [
            (0x38, MASKED),
            (0x3c, 0x31),
            (0x40, low),
            (0x44, high),
            (0x38, 0),
        ];
        assert_eq!(writes(&machine), expected);
    }
    assert_eq!(
        vtd.route_interrupt(FIRST, FAULTS, InterruptRoute::Off),
        Ok(())
    );
    assert_eq!(writes(&machine), [(0x38, MASKED)]);
}

#[test]
fn a_message_that_is_no_interrupt_is_refused_and_leaves_it_masked() {
    let (machine, vtd) = running(CAP, ECAP & !ECAP_EIM);
    for address in [
        0,
        0x7000,
        0xfedf_f000,
        0xfee0_0001,
        0xfee0_0010,
        0xfef0_0000,
        0x100_fee0_0000,
        0x1_fee0_0000,
    ] {
        let address = PhysAddr::new(address);
        let error = RouteError::NotADoorbell {
            unit: FIRST,
            address,
        };
        let route = message(address.as_u64(), 0x31);
        assert_eq!(vtd.route_interrupt(FIRST, FAULTS, route), Err(error));
        assert_eq!(writes(&machine), [(0x38, MASKED)], "{address}");
    }
    let wide = vtd.route_interrupt(FIRST, FAULTS, message(0xfee0_0000, 0x1_0000));
    assert!(matches!(wide, Err(RouteError::DataTooWide { .. })));
    let error = vtd.route_interrupt(FIRST, FAULTS, InterruptRoute::Wired);
    assert!(matches!(
        error,
        Err(RouteError::NoWire { messages: true, .. })
    ));
    machine.take_log();
    let errors = vtd.route_interrupt(FIRST, InterruptSource::Errors, InterruptRoute::Off);
    assert!(matches!(errors, Err(RouteError::NoSource { .. })));
    assert_eq!(writes(&machine), [], "it is another's");
}

#[test]
fn a_unit_that_does_not_take_its_mask_is_an_error() {
    let (machine, vtd) = running(CAP, ECAP);
    machine.units[0].behave(Behaviour {
        mask_stays: true,
        ..Behaviour::default()
    });
    let found = vtd.route_interrupt(FIRST, FAULTS, message(0xfee0_0000, 0x31));
    let expected = UnitError::Hardware {
        unit: FIRST,
        what: "a mask of the fault event that is not what was written (FECTL.IM)",
        expected: 0,
        found: MASKED.into(),
    };
    assert_eq!(found, Err(RouteError::Unit(expected)));
}

#[test]
fn wedged_a_queue_that_stopped_is_told_once_however_many_faults_there_are() {
    let (machine, vtd) = running(CAP | 3 << 40, ECAP);
    let unit = &machine.units[0];
    (0..3).for_each(|record| unit.put_fault(record, 0x1000, 5 << 32));
    unit.set_fault_status(unit.fault_status() | 1 << 4);
    assert_eq!(vtd.take_fault(FIRST), Some(FaultEvent::Failed));
    assert!(vtd.is_wedged(FIRST));
    for _ in 0..3 {
        let fault = vtd.take_fault(FIRST);
        assert!(matches!(fault, Some(FaultEvent::Fault(_))), "{fault:?}");
    }
    assert_eq!(vtd.take_fault(FIRST), Some(FaultEvent::Withheld));
    vtd.reset(FIRST).unwrap();
    assert_eq!(vtd.take_fault(FIRST), None);
    assert!(!vtd.is_wedged(FIRST));
}
