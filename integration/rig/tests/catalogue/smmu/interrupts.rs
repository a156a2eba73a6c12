//! Interrupts of SMMUs beside what all units have: wires, an interrupt of their own for errors, and errors in telling.

use hv_core::{Iova, PhysAddr};
use hv_iommu::{
    FaultLogs, InterruptMessage, InterruptRoute, InterruptSource, MessageData, RouteError,
    UnitIndex,
};
use hv_rig::{Cause, DOORBELL, Interrupt, Machine, Signal, Trouble};

use super::stand::{on_machines, pci};
use super::telling::{ERRORS, FAULTS, Said, fault, look, message, quiet, route, said, with_one};

/// Shows: bc19.
#[test]
fn bc19_a_wire_tells_of_a_fault_by_one_edge_too() {
    on_machines(
        20,
        |machine| quiet(machine, false),
        |stand| {
            let (one, unit) = with_one(stand);
            let edge = Interrupt {
                unit: unit.index(),
                cause: Cause::Faults,
                signal: Signal::Wire,
            };
            fault(stand, 0x100);
            assert_eq!(
                route(stand, unit, FAULTS, InterruptRoute::Wired),
                [Said::Page(0x100)]
            );
            assert_eq!(stand.rig.take_interrupts(), [], "of before");
            fault(stand, 0x101);
            fault(stand, 0x102);
            assert_eq!(stand.rig.take_interrupts(), [edge], "one edge for both");
            assert_eq!(look(stand), [Said::Page(0x101), Said::Page(0x102)]);
            fault(stand, 0x103);
            assert_eq!(stand.rig.take_interrupts(), [edge], "the log was empty");
            assert_eq!(look(stand), [Said::Page(0x103)]);
            drop(one.end());
        },
    );
}

/// Which is bad luck for who relies on interrupts alone: the bound of one look is not the end of the log.
#[test]
fn a_look_that_leaves_something_says_so() {
    let long = |machine: &mut Machine| {
        quiet(machine, false);
        for unit in &mut machine.units {
            unit.smmu().unwrap().events = 9;
        }
    };
    on_machines(4, long, |stand| {
        let (one, _) = with_one(stand);
        for page in 0..300 {
            fault(stand, 0x100 + page);
        }
        let mut told = 0;
        let first = stand.iommu.take_faults(|_| told += 1);
        assert_eq!((first, told), (FaultLogs::MayHoldMore, 256));
        let second = stand.iommu.take_faults(|_| told += 1);
        assert_eq!((second, told), (FaultLogs::Empty, 300));
        drop(one.end());
    });
}

#[test]
fn a_route_that_the_unit_does_not_have_is_refused_and_leaves_it_off() {
    on_machines(
        10,
        |machine| quiet(machine, false),
        |stand| {
            let (one, unit) = with_one(stand);
            let refused = |to| {
                let mut wired = Vec::new();
                let result = stand
                    .iommu
                    .route_interrupt(unit, FAULTS, to, |notice| wired.push(said(notice)));
                assert_eq!(wired, []);
                result.unwrap_err()
            };
            let wire = stand.iommu.wired_interrupt(unit, FAULTS);
            assert!(wire.is_some());
            assert_ne!(wire, stand.iommu.wired_interrupt(unit, ERRORS));
            // It is on, and goes off with the refusal.
            assert_eq!(route(stand, unit, FAULTS, InterruptRoute::Wired), []);
            let error = refused(message(1));
            assert_eq!(
                error,
                RouteError::NoMessages {
                    unit,
                    interrupt_source: FAULTS,
                    wire
                }
            );
            assert!(
                error.to_string().contains("found that it does not"),
                "{error}"
            );
            fault(stand, 0x100);
            assert_eq!(stand.rig.take_interrupts(), []);
            assert_eq!(look(stand), [Said::Page(0x100)]);
            let pages = InterruptSource::PageRequests;
            let error = stand
                .iommu
                .route_interrupt(unit, pages, InterruptRoute::Wired, |_| ())
                .unwrap_err();
            assert!(matches!(
                error,
                RouteError::NoWire {
                    messages: false,
                    ..
                }
            ));
            drop(one.end());
        },
    );
}

/// Nothing translates what the unit itself writes.
#[test]
fn a_message_goes_to_the_interrupt_controller_or_nowhere() {
    on_machines(
        10,
        |machine| quiet(machine, true),
        |stand| {
            let (one, unit) = with_one(stand);
            let frames = stand.frames(1);
            let memory = frames.range().start().as_u64();
            for address in [
                0,
                memory,
                DOORBELL + 0x1000,
                DOORBELL + 2,
                DOORBELL | 1 << 52,
            ] {
                let address = PhysAddr::new(address);
                let data = MessageData(7);
                let to = InterruptRoute::Message(InterruptMessage { address, data });
                let error = stand.iommu.route_interrupt(unit, FAULTS, to, |_| ());
                assert_eq!(error, Err(RouteError::NotADoorbell { unit, address }));
            }
            fault(stand, 0x100);
            assert_eq!(stand.rig.take_interrupts(), []);
            assert_eq!(look(stand), [Said::Page(0x100)]);
            stand.give_back(frames);
            drop(one.end());
        },
    );
}

#[test]
fn an_error_of_a_message_is_acknowledged_once_and_loses_no_fault() {
    on_machines(
        20,
        |machine| quiet(machine, true),
        |stand| {
            let (one, unit) = with_one(stand);
            assert_eq!(route(stand, unit, FAULTS, message(1)), []);
            assert_eq!(route(stand, unit, ERRORS, message(2)), []);
            for round in 0..3 {
                stand.rig.suffer(unit.index(), Trouble::MessageAborts);
                fault(stand, 0x100 + round);
                // The unit tells of the message that was lost by another one: once, as it becomes active once.
                let came = stand.rig.take_interrupts();
                let causes: Vec<Cause> = came.iter().map(|came| came.cause).collect();
                assert_eq!(causes, [Cause::Errors], "round {round}");
                assert_eq!(look(stand), [Said::Page(0x100 + round)]);
            }
            drop(one.end());
        },
    );
}

/// What stands in the queue when a record could not be written: those before it, and an entry that is none.
///
/// Shows: bc19.
#[test]
fn bc19_a_record_that_could_not_be_written_is_lost_and_no_old_one_is_told_for_it() {
    let few = |machine: &mut Machine| {
        quiet(machine, false);
        for unit in &mut machine.units {
            unit.smmu().unwrap().events = 2;
            unit.set_coherent(true);
        }
    };
    on_machines(40, few, |stand| {
        let (one, unit) = with_one(stand);
        assert_eq!(route(stand, unit, ERRORS, InterruptRoute::Wired), []);
        // The ring goes round, so that there are old records everywhere.
        for page in 0..6 {
            fault(stand, 0x200 + page);
            assert_eq!(look(stand), [Said::Page(0x200 + page)]);
        }
        for round in 0..6 {
            for index_moves in [true, false] {
                fault(stand, 0x100);
                fault(stand, 0x101);
                stand
                    .rig
                    .suffer(unit.index(), Trouble::RecordAborts { index_moves });
                fault(stand, 0x102);
                // Nothing is written until that was seen.
                fault(stand, 0x103);
                let told = look(stand);
                let (real, rest) = told.split_at(2);
                assert_eq!(
                    real,
                    [Said::Page(0x100), Said::Page(0x101)],
                    "round {round}"
                );
                let lost = if index_moves { 2 } else { 1 };
                assert_eq!(rest.len(), lost);
                assert!(rest.iter().all(|said| *said == Said::Lost), "{rest:?}");
                let came = stand.rig.take_interrupts();
                let causes: Vec<Cause> = came.iter().map(|came| came.cause).collect();
                assert_eq!(causes, [Cause::Errors]);
            }
        }
        drop(one.end());
    });
}

/// The same where the unit does not snoop, so that nothing tells old records from new ones: what stands in the queue is lost
/// as well.
///
/// Shows: bc19.
#[test]
fn bc19_where_records_cannot_be_emptied_one_that_was_not_written_takes_the_others_along() {
    let few = |machine: &mut Machine| {
        quiet(machine, false);
        for unit in &mut machine.units {
            unit.smmu().unwrap().events = 2;
            unit.set_coherent(false);
        }
    };
    on_machines(20, few, |stand| {
        let (one, unit) = with_one(stand);
        assert_eq!(route(stand, unit, ERRORS, InterruptRoute::Wired), []);
        for round in 0..6 {
            for index_moves in [true, false] {
                fault(stand, 0x100);
                stand
                    .rig
                    .suffer(unit.index(), Trouble::RecordAborts { index_moves });
                fault(stand, 0x102);
                assert_eq!(look(stand), [Said::Lost], "round {round}");
                fault(stand, 0x200 + round);
                assert_eq!(look(stand), [Said::Page(0x200 + round)], "the next is told");
            }
        }
        drop(one.end());
    });
}

/// The unit finds that it cannot write one at any moment of a look: no record of a lap ago is told as somebody's.
///
/// Shows: bc19.
#[test]
fn bc19_a_record_that_could_not_be_written_during_a_look_is_no_old_one() {
    let few = |machine: &mut Machine| {
        quiet(machine, false);
        for unit in &mut machine.units {
            unit.smmu().unwrap().events = 2;
            unit.set_coherent(false);
        }
    };
    on_machines(4, few, |stand| {
        let (one, unit) = with_one(stand);
        let index = unit.index();
        for steps in 0.. {
            // Old records everywhere.
            for page in 0..5 {
                fault(stand, 0x200 + page);
                assert_eq!(look(stand), [Said::Page(0x200 + page)]);
            }
            fault(stand, 0x100);
            let rig = stand.rig.clone();
            let aborts = move || {
                rig.suffer(index, Trouble::RecordAborts { index_moves: true });
                let at = Iova::new(0x101 << 12);
                rig.access(pci(0, 2, 0), at, hv_core::Access::Write);
            };
            let mut told = Vec::new();
            let came = stand
                .rig
                .between(steps, aborts, || told.extend(look(stand)));
            told.extend(look(stand));
            let may_be = |said: &Said| matches!(said, Said::Lost | Said::Page(0x100));
            assert!(told.iter().all(may_be), "after {steps} steps: {told:?}");
            if !came {
                assert!(steps > 4, "{steps} steps");
                break;
            }
        }
        drop(one.end());
    });
}

#[test]
fn wedged_a_unit_that_says_it_has_failed_is_cut_off_at_the_look_that_follows() {
    on_machines(
        20,
        |machine| quiet(machine, false),
        |stand| {
            let (one, unit) = with_one(stand);
            assert_eq!(route(stand, unit, ERRORS, InterruptRoute::Wired), []);
            stand.rig.suffer(unit.index(), Trouble::Fails);
            let came = stand.rig.take_interrupts();
            assert_eq!(came.len(), 1);
            assert_eq!(look(stand), [Said::Failed]);
            stand.rig.wedged(unit.index(), true);
            assert_eq!(look(stand), [], "told once");
            let wedged: Vec<UnitIndex> = stand.iommu.wedged_units().collect();
            assert_eq!(wedged, [unit]);
            assert!(!stand.rig.may_send(pci(0, 2, 0)));
            assert!(stand.iommu.reset_unit(unit).is_err(), "for good");
            std::mem::forget(one);
        },
    );
}

/// A storm that fills the log as fast as it is emptied does not hide what is wrong with the unit, nor who waits.
///
/// Shows: bc19.
#[test]
fn bc19_a_storm_of_events_hides_neither_an_error_nor_a_request_for_a_page() {
    let stormy = |machine: &mut Machine| {
        quiet(machine, false);
        for unit in &mut machine.units {
            let unit = unit.smmu().unwrap();
            (unit.events, unit.ats, unit.pri) = (9, true, true);
        }
    };
    on_machines(10, stormy, |stand| {
        let (one, unit) = with_one(stand);
        for page in 0..400 {
            fault(stand, 0x100 + page);
        }
        stand
            .rig
            .ask_for_page(pci(0, 2, 0), Iova::new(0x5000), 7, true);
        let mut told = Vec::new();
        let left = stand.iommu.take_faults(|notice| told.push(said(notice)));
        assert_eq!((left, told.len()), (FaultLogs::MayHoldMore, 256));
        stand.rig.idle(20_000);
        assert_eq!(stand.rig.page_answers(pci(0, 2, 0)), [(7, 0)]);
        stand.rig.fail_queue(unit.index());
        // Each look takes 256, of which some are left.
        (0..300).for_each(|page| fault(stand, 0x1000 + page));
        let mut told = Vec::new();
        let left = stand.iommu.take_faults(|notice| told.push(said(notice)));
        assert_eq!(left, FaultLogs::MayHoldMore);
        assert!(told.contains(&Said::Failed), "{} told", told.len());
        stand.rig.wedged(unit.index(), true);
        let again = look(stand).contains(&Said::Failed);
        assert!(!again, "told once");
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        assert_eq!(look(stand), []);
        drop(one.end());
    });
}
