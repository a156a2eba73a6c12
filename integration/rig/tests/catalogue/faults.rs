//! Faults come out once each, in order, as they happened; what was lost is said to be.

use std::sync::mpsc;
use std::thread;

use hv_core::{Access, Iova};
use hv_iommu::{FaultBudget, FaultNotice, FlushSpan, UnitIndex};
use hv_rig::{Driver, Machine, Outcome};

use super::stand::{Backend, Stand, on_machines, pci};

/// What the subsystem reports: page and direction of each fault, and how often some were lost.
fn taken(stand: &Stand, unit: UnitIndex) -> (Vec<(u64, Access)>, usize) {
    let (mut faults, mut lost) = (Vec::new(), 0);
    stand.iommu.take_faults(|notice| match notice {
        FaultNotice::Fault(report) => {
            assert_eq!((report.unit, report.fault.requester), (unit, pci(0, 2, 0)));
            faults.push((report.fault.address.as_u64(), report.fault.access));
        }
        FaultNotice::Lost(from) => {
            assert_eq!(from, unit);
            lost += 1;
        }
        other => panic!("{other:?}"),
    });
    (faults, lost)
}

/// Shows: bc19.
#[test]
fn faults_come_out_once_each_and_losses_are_told() {
    let quiet = |machine: &mut Machine| {
        machine.temper.background = false;
        for unit in &mut machine.units {
            unit.keep_few_faults();
        }
    };
    on_machines(60, quiet, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let records = stand.rig.machine().units[unit.index()].fault_records();
        assert_eq!(taken(stand, unit), (vec![], 0));
        // Again and again, so that the ring of records goes round; never, or always, one too many.
        for round in 0..6 {
            let count = if round % 2 == 0 { records } else { records + 1 };
            let mut expected = Vec::new();
            for index in 0..count {
                let page = 0x100 + (round * 100 + index) as u64;
                let access = if index % 2 == 0 {
                    Access::Read
                } else {
                    Access::Write
                };
                stand
                    .rig
                    .access(pci(0, 2, 0), Iova::new(page * 4096 + 8), access);
                expected.push((page * 4096, access));
            }
            expected.truncate(records);
            let lost = usize::from(count > records);
            assert_eq!(taken(stand, unit), (expected, lost), "round {round}");
            assert_eq!(taken(stand, unit), (vec![], 0), "round {round}");
        }
        drop(one.end());
    });
}

/// A device that a guest turned loose sends a million requests that fault. It is cut off after as many as its budget
/// allows, the log is no longer filled by it although it ignores its bus master bit, and its neighbour works.
///
/// Shows: bc19.
#[test]
fn bc19_a_storm_of_a_million_faults_costs_the_budget_and_harms_nobody_else() {
    let (loose, well) = (pci(0, 1, 0), pci(0, 2, 0));
    let with_seed = |seed| {
        let mut machine = super::suited(Machine::calm_of(Backend::VENDOR));
        machine.units[0].keep_few_faults();
        (machine.seed, machine.temper.rogues) = (seed, true);
        Stand::new(machine)
    };
    let ignores_its_bit = |stand: &Stand| {
        let sent = stand.rig.access(loose, Iova::new(0), Access::Read);
        stand.iommu.take_faults(|_| ());
        !matches!(sent, Outcome::Lost)
    };
    let mut stand = (0..64).map(with_seed).find(ignores_its_bit).unwrap();
    let group = stand.take(loose);
    let loose_one = stand.kernel(group);
    let group = stand.take(well);
    let well_one = stand.kernel(group);
    let budget = FaultBudget::default().faults as usize;
    let (mut told, mut cut, mut lost) = (0, 0, 0);
    // A million requests, and a look at the log after each eight: it holds four. So some are lost, but none any more
    // once the unit has been asked to record no more of them, and has had time to do so.
    for round in 0..125_000u64 {
        for index in 0..8 {
            let at = Iova::new((0x100 + (round * 8 + index) % 1000) * 4096);
            let sent = stand.rig.access(loose, at, Access::Read);
            assert!(!matches!(sent, Outcome::Reached { .. }), "{sent:?}");
        }
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Fault(report) => {
                assert_eq!(report.fault.requester, loose);
                told += 1;
            }
            FaultNotice::Lost(_) => lost += cut,
            FaultNotice::CutOff(who) => {
                assert_eq!((who.requester, who.domain), (loose, loose_one.domain.uid()));
                cut += 1;
            }
            other => panic!("{other:?}"),
        });
    }
    assert_eq!((told, cut), (budget + 1, 1));
    assert!(lost <= 1, "{lost} losses after the device was cut off");
    // A fault of the neighbour is neither lost nor late.
    stand.rig.access(well, Iova::new(0x77_7000), Access::Write);
    let mut found = Vec::new();
    stand.iommu.take_faults(|notice| found.push(notice));
    let [FaultNotice::Fault(report)] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(report.fault.requester, well);
    drop(loose_one.end());
    drop(well_one.end());
}

/// A look at the logs is held up at any of its steps. Meanwhile the unit fails, and somebody who waits for a flush finds
/// that out and resets it. What the look read before the reset is no word about the unit that it goes on with.
#[test]
fn wedged_what_a_look_saw_before_a_reset_wedges_nothing_after_it() {
    let quiet = |machine: &mut Machine| machine.temper.background = false;
    on_machines(10, quiet, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let mut steps = 0;
        let mut looked = true;
        while looked {
            let (iommu, rig) = (&stand.iommu, &stand.rig);
            let (hold, held) = mpsc::channel();
            let (go_on, gone_on) = mpsc::channel::<()>();
            let hold_up = move || {
                hold.send(()).unwrap();
                gone_on.recv().unwrap();
            };
            looked = thread::scope(|scope| {
                let look = scope.spawn(move || {
                    let mut told = Vec::new();
                    rig.between(steps, hold_up, || {
                        iommu.take_faults(|notice| told.push(notice));
                    });
                    told
                });
                let looked = held.recv().is_ok();
                if looked {
                    rig.fail_queue(unit.index());
                    assert!(one.domain.flush(FlushSpan::Domain).is_err());
                    rig.wedged(unit.index(), true);
                    iommu.reset_unit(unit).unwrap();
                    rig.wedged(unit.index(), false);
                    go_on.send(()).unwrap();
                }
                assert_eq!(look.join().unwrap(), [], "at step {steps}");
                looked
            });
            assert_eq!(iommu.wedged_units().count(), 0, "at step {steps}");
            assert!(one.domain.flush(FlushSpan::Domain).is_ok());
            steps += 1;
        }
        assert!(steps > 1, "{steps}");
        drop(one.end());
    });
}
