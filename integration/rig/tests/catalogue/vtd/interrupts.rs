//! The fault event of VT-d units beside what all units have: one message for all, and the rules of its registers.

use hv_core::PhysAddr;
use hv_iommu::{
    InterruptId, InterruptMessage, InterruptRoute, InterruptSource, MessageData, RouteError,
    UnitIndex,
};
use hv_rig::{Machine, Signal};

use super::stand::{Stand, on_machines};
use super::telling::{FAULTS, Said, fault, look, message, quiet, route, with_one};

fn eim(machine: &mut Machine, eim: bool) {
    quiet(machine, true);
    for unit in &mut machine.units {
        let known = unit.vtd().unwrap();
        // What goes with wide ids.
        (known.ecap.ir, known.cap.pi) = (true, false);
        known.ecap.eim = eim;
    }
}

fn refused(
    stand: &Stand,
    unit: UnitIndex,
    source: InterruptSource,
    to: InterruptRoute,
) -> RouteError {
    let routed = stand
        .iommu
        .route_interrupt(unit, source, to, |notice| panic!("{notice:?}"));
    routed.unwrap_err()
}

fn to(address: u64, data: u32) -> InterruptRoute {
    InterruptRoute::Message(InterruptMessage {
        address: PhysAddr::new(address),
        data: MessageData(data),
    })
}

#[test]
fn a_route_that_the_unit_does_not_have_is_refused_and_leaves_it_off() {
    on_machines(
        20,
        |machine| eim(machine, false),
        |stand| {
            let (one, unit) = with_one(stand);
            let frames = stand.frames(1);
            let memory = frames.range().start().as_u64();
            assert_eq!(
                stand.iommu.wired_interrupt(unit, FAULTS),
                None::<InterruptId>
            );
            let no_doorbell = [
                0,
                memory,
                0xfedf_fffc,
                0xfef0_0000,
                0xfee0_0002,
                1 << 40 | 0xfee0_0000,
            ];
            let doorbells = no_doorbell.map(|address| {
                let error = RouteError::NotADoorbell {
                    unit,
                    address: PhysAddr::new(address),
                };
                (to(address, 7), error)
            });
            let data = MessageData(0x1_0007);
            let others = [
                (
                    InterruptRoute::Wired,
                    RouteError::NoWire {
                        unit,
                        interrupt_source: FAULTS,
                        messages: true,
                    },
                ),
                (
                    to(0xfee0_0000, data.0),
                    RouteError::DataTooWide { unit, data },
                ),
            ];
            for (to, error) in doorbells.into_iter().chain(others) {
                // It is on, and goes off with the refusal.
                assert_eq!(route(stand, unit, FAULTS, message(1)), []);
                assert_eq!(refused(stand, unit, FAULTS, to), error);
                fault(stand, 0x100);
                assert_eq!(stand.rig.take_interrupts(), [], "{to:?}");
                assert_eq!(look(stand), [Said::Page(0x100)]);
            }
            assert_eq!(route(stand, unit, FAULTS, message(1)), []);
            for interrupt_source in [InterruptSource::Errors, InterruptSource::PageRequests] {
                let error = RouteError::NoSource {
                    unit,
                    interrupt_source,
                };
                let found = refused(stand, unit, interrupt_source, message(2));
                assert_eq!(found, error);
            }
            // Which leaves the one that there is.
            fault(stand, 0x100);
            let came = stand.rig.take_interrupts();
            assert_eq!(came[0].signal, Signal::Message(1));
            assert_eq!(look(stand), [Said::Page(0x100)]);
            stand.give_back(frames);
            drop(one.end());
        },
    );
}

/// The CPUs of a large machine have ids of more than eight bits.
#[test]
fn units_that_know_wide_apic_ids_are_told_all_of_one() {
    on_machines(
        10,
        |machine| eim(machine, true),
        |stand| {
            let (one, unit) = with_one(stand);
            let wide = to(0x1234_5600_fee7_8000, 0x30);
            assert_eq!(route(stand, unit, FAULTS, wide), []);
            fault(stand, 0x100);
            let came = stand.rig.take_interrupts();
            assert_eq!(came[0].signal, Signal::Message(0x30));
            assert_eq!(look(stand), [Said::Page(0x100)]);
            // What is no part of an id.
            let astray = to(0x1_fee7_8000, 0x30);
            let error = refused(stand, unit, FAULTS, astray);
            assert!(matches!(error, RouteError::NotADoorbell { .. }));
            drop(one.end());
        },
    );
}

/// An error of the queue keeps the next fault from being told of, until a reset; a look says so.
#[test]
fn a_look_says_when_no_interrupt_tells_of_what_comes() {
    on_machines(
        10,
        |machine| quiet(machine, true),
        |stand| {
            let (one, unit) = with_one(stand);
            assert_eq!(route(stand, unit, FAULTS, message(1)), []);
            stand.rig.fail_queue(unit.index());
            assert_eq!(look(stand), [Said::Failed]);
            stand.rig.wedged(unit.index(), true);
            let left = stand.iommu.take_faults(|notice| panic!("{notice:?}"));
            assert_eq!(left, hv_iommu::FaultLogs::Withheld);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
            let left = stand.iommu.take_faults(|notice| panic!("{notice:?}"));
            assert_eq!(left, hv_iommu::FaultLogs::Empty);
            drop(one.end());
        },
    );
}
