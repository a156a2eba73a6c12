//! Interrupts of units, whoever built them: edges, of what comes after they were turned on, and of failures too.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hv_core::{Access, Iova};
use hv_iommu::{
    FaultLogs, FaultNotice, InterruptMessage, InterruptRoute, InterruptSource, MessageData,
    RouteError, UnitError, UnitIndex,
};
use hv_rig::{Cause, Driver, Interrupt, Machine, Signal, Vendor};

use super::stand::{Backend, Kernel, Stand, fault_of_the_environment, on_machines, pci};

pub(super) const FAULTS: InterruptSource = InterruptSource::Faults;
/// What tells of errors of the unit itself.
pub(super) const ERRORS: InterruptSource = match Backend::VENDOR {
    Vendor::Vtd => FAULTS,
    Vendor::Smmu => InterruptSource::Errors,
};

/// Units that send messages, or not, and take some faults before they lose any.
pub(super) fn quiet(machine: &mut Machine, messages: bool) {
    machine.temper.background = false;
    for unit in &mut machine.units {
        if let Some(known) = unit.vtd()
            && known.cap.nfr < 4
        {
            // Records and invalidation registers apart.
            (known.cap.nfr, known.cap.fro, known.ecap.iro) = (4, 0x200, 0x500);
        }
        if let Some(known) = unit.smmu() {
            known.msi = messages;
        }
    }
}

/// A message of this number.
pub(super) fn message(data: u32) -> InterruptRoute {
    InterruptRoute::Message(InterruptMessage {
        address: Backend::VENDOR.takes_messages_at(),
        data: MessageData(data),
    })
}

/// The interrupt that tells of faults, by a message of this number.
fn edge(unit: UnitIndex, data: u32) -> Interrupt {
    Interrupt {
        unit: unit.index(),
        cause: Cause::Faults,
        signal: Signal::Message(data),
    }
}

/// One device that is attached, and its unit.
pub(super) fn with_one(stand: &mut Stand) -> (Kernel, UnitIndex) {
    let group = stand.take(pci(0, 2, 0));
    let one = stand.kernel(group);
    let unit = one.group.as_ref().unwrap().unit();
    assert_eq!(look(stand), []);
    assert_eq!(stand.rig.take_interrupts(), []);
    (one, unit)
}

/// A fault of the device.
pub(super) fn fault(stand: &Stand, page: u64) {
    stand
        .rig
        .access(pci(0, 2, 0), Iova::new(page << 12), Access::Write);
}

/// Everything that is in the logs, but for what a fault says beside its page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Page(u64),
    Lost,
    BadLog,
    Failed,
}

pub(super) fn said(notice: FaultNotice) -> Said {
    match notice {
        FaultNotice::Fault(report) => Said::Page(report.fault.address.as_u64() >> 12),
        FaultNotice::Lost(_) => Said::Lost,
        FaultNotice::BadLog(..) => Said::BadLog,
        FaultNotice::Failed(_) => Said::Failed,
        other => panic!("{other:?}"),
    }
}

pub(super) fn look(stand: &Stand) -> Vec<Said> {
    let mut all = Vec::new();
    while stand.iommu.take_faults(|notice| all.push(said(notice))) == FaultLogs::MayHoldMore {}
    all
}

pub(super) fn route(
    stand: &Stand,
    unit: UnitIndex,
    source: InterruptSource,
    to: InterruptRoute,
) -> Vec<Said> {
    let mut all = Vec::new();
    let left = stand
        .iommu
        .route_interrupt(unit, source, to, |notice| all.push(said(notice)));
    assert_eq!(left, Ok(FaultLogs::Empty));
    all
}

fn messages(machine: &mut Machine) {
    quiet(machine, true);
}

/// Shows: bc19.
#[test]
fn bc19_a_fault_is_told_by_one_edge_and_one_of_before_by_the_look_behind_the_route() {
    on_machines(40, messages, |stand| {
        let (one, unit) = with_one(stand);
        fault(stand, 0x100);
        assert_eq!(stand.rig.take_interrupts(), [], "they are off");
        assert_eq!(
            route(stand, unit, FAULTS, message(0x55)),
            [Said::Page(0x100)]
        );
        // A VT-d unit keeps what came up while its interrupt was masked.
        let kept = match Backend::VENDOR {
            Vendor::Vtd => vec![edge(unit, 0x55)],
            Vendor::Smmu => vec![],
        };
        assert_eq!(stand.rig.take_interrupts(), kept, "of before");
        fault(stand, 0x101);
        fault(stand, 0x102);
        let edges = [edge(unit, 0x55)];
        assert_eq!(stand.rig.take_interrupts(), edges, "one edge for both");
        assert_eq!(look(stand), [Said::Page(0x101), Said::Page(0x102)]);
        fault(stand, 0x103);
        assert_eq!(stand.rig.take_interrupts(), edges, "the log was empty");
        assert_eq!(look(stand), [Said::Page(0x103)]);
        // Elsewhere, with nothing in the log.
        assert_eq!(route(stand, unit, FAULTS, message(0x66)), []);
        fault(stand, 0x104);
        assert_eq!(stand.rig.take_interrupts(), [edge(unit, 0x66)]);
        assert_eq!(look(stand), [Said::Page(0x104)]);
        assert_eq!(route(stand, unit, FAULTS, InterruptRoute::Off), []);
        fault(stand, 0x105);
        assert_eq!(stand.rig.take_interrupts(), [], "off again");
        assert_eq!(
            look(stand),
            [Said::Page(0x105)],
            "and looking works as ever"
        );
        drop(one.end());
    });
}

/// What is left in the log, and what was lost, keeps the next fault from being told of; who looks to the end misses none.
///
/// Shows: bc19.
#[test]
fn bc19_who_was_told_of_lost_faults_is_told_of_the_next() {
    let few = |machine: &mut Machine| {
        messages(machine);
        machine
            .units
            .iter_mut()
            .for_each(hv_rig::UnitModel::keep_few_faults);
    };
    on_machines(40, few, |stand| {
        let (one, unit) = with_one(stand);
        let records = stand.rig.machine().units[unit.index()].fault_records() as u64;
        assert_eq!(route(stand, unit, FAULTS, message(1)), []);
        for round in 0..4 {
            let first = 0x1000 * (round + 1);
            let mut expected: VecDeque<Said> = (0..records)
                .map(|number| Said::Page(first + number))
                .collect();
            (0..records + 3).for_each(|number| fault(stand, first + number));
            assert_eq!(stand.rig.take_interrupts(), [edge(unit, 1)], "once");
            expected.push_back(Said::Lost);
            assert_eq!(VecDeque::from(look(stand)), expected, "round {round}");
            fault(stand, 0x100);
            assert_eq!(stand.rig.take_interrupts(), [edge(unit, 1)]);
            assert_eq!(look(stand), [Said::Page(0x100)]);
        }
        drop(one.end());
    });
}

/// A queue that stopped while nobody waited for anything; a reset brings it back, and leaves interrupts where they were.
#[test]
fn wedged_a_queue_that_stopped_is_found_by_the_look_that_its_error_asks_for() {
    on_machines(20, messages, |stand| {
        let (one, unit) = with_one(stand);
        for source in [FAULTS, ERRORS] {
            assert_eq!(route(stand, unit, source, message(3)), []);
        }
        for round in 0..3 {
            stand.rig.fail_queue(unit.index());
            assert_eq!(stand.rig.take_interrupts().len(), 1, "round {round}");
            assert_eq!(look(stand), [Said::Failed]);
            stand.rig.wedged(unit.index(), true);
            assert_eq!(look(stand), []);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
            assert_eq!(look(stand), [], "and the error is gone");
            assert_eq!(stand.rig.take_interrupts(), []);
            let device = one.device();
            one.group
                .as_ref()
                .unwrap()
                .enable_bus_mastering(device)
                .unwrap();
            fault(stand, 0x100);
            assert_eq!(stand.rig.take_interrupts(), [edge(unit, 3)]);
            assert_eq!(look(stand), [Said::Page(0x100)]);
        }
        drop(one.end());
    });
}

/// Another CPU says where interrupts go, at any moment of a reset. Where it is told that the unit is busy, they go where they
/// went; else where it says.
#[test]
fn a_route_during_a_reset_is_taken_or_changes_nothing() {
    fault_of_the_environment();
    let slow = |machine: &mut Machine| {
        messages(machine);
        for unit in &mut machine.units {
            if let Some(identity) = unit.smmu() {
                // Its resets turn translation off for a moment.
                identity.stall_model = 2;
            }
        }
    };
    let busy = Cell::new(0);
    on_machines(4, slow, |stand| {
        let (one, unit) = with_one(stand);
        assert_eq!(route(stand, unit, FAULTS, message(1)), []);
        let mut goes_to = 1;
        // Ever further apart.
        for step in std::iter::successors(Some(0), |step| Some(step + 1 + step / 16)) {
            stand.rig.fail_queue(unit.index());
            stand.iommu.take_faults(|_| ());
            stand.rig.wedged(unit.index(), true);
            stand.rig.take_interrupts();
            let (iommu, next) = (stand.iommu.clone(), 3 - goes_to);
            let routed = Arc::new(Mutex::new(None));
            let theirs = routed.clone();
            let routes = move || {
                let (done, is_done) = channel();
                let cpu = std::thread::spawn(move || {
                    let routed = iommu.route_interrupt(unit, FAULTS, message(next), |_| ());
                    let _ = done.send(());
                    routed
                });
                // Where this CPU has a lock just now that the other one waits for, it is done later.
                let _ = is_done.recv_timeout(Duration::from_millis(10));
                *theirs.lock().unwrap() = Some(cpu);
            };
            let came = stand
                .rig
                .between(step, routes, || stand.iommu.reset_unit(unit).unwrap());
            let routed = routed.lock().unwrap().take();
            match routed.map(|cpu| cpu.join().unwrap()) {
                Some(Ok(_)) => goes_to = next,
                Some(Err(RouteError::Unit(UnitError::Busy { .. }))) => busy.set(busy.get() + 1),
                Some(Err(other)) => panic!("after {step} steps: {other}"),
                None => assert!(!came),
            }
            stand.rig.wedged(unit.index(), false);
            let (group, device) = (one.group.as_ref().unwrap(), one.device());
            group.enable_bus_mastering(device).unwrap();
            look(stand);
            stand.rig.take_interrupts();
            fault(stand, 0x100);
            let came_by = stand.rig.take_interrupts();
            assert_eq!(came_by, [edge(unit, goes_to)], "after {step} steps");
            look(stand);
            if !came {
                assert!(step > 20, "{step} steps");
                break;
            }
        }
        drop(one.end());
    });
    assert_eq!(busy.get() > 20, Backend::VENDOR == Vendor::Smmu, "{busy:?}");
}

/// A unit that was shut down is somebody else's: where its interrupts go is not touched.
#[test]
fn a_route_of_a_unit_that_was_shut_down_touches_nothing() {
    fault_of_the_environment();
    on_machines(10, messages, |stand| {
        let (one, unit) = with_one(stand);
        assert_eq!(route(stand, unit, FAULTS, message(1)), []);
        drop(one.end());
        stand.iommu.shut_down().unwrap();
        let before = stand.rig.counts().register_writes;
        for to in [InterruptRoute::Off, message(2)] {
            let refused = stand.iommu.route_interrupt(unit, FAULTS, to, |_| ());
            let is_off = matches!(refused, Err(RouteError::Unit(UnitError::Hardware { .. })));
            assert!(is_off, "{refused:?}");
        }
        assert_eq!(stand.rig.counts().register_writes, before);
        for unit in 0..stand.rig.machine().units.len() {
            stand.rig.wedged(unit, true);
        }
    });
}
