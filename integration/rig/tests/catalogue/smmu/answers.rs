//! Devices that wait for software: requests that stand still in units that always stall, and requests for pages.

use std::time::Duration;

use hv_core::platform::Clock;
use hv_core::{Access, Iova, PciAddress};
use hv_iommu::{Domain, FaultClass, FaultLogs, FaultNotice, TrustedDevice, UnitIndex};
use hv_rig::nest::Nest;
use hv_rig::{GuestStage, Identity, Machine, Outcome, Refusing, Trouble, Vendor};

use super::stand::{Stand, iovas, on_machines, pci, small};

const DEVICE: PciAddress = pci(0, 2, 0);
/// Another one.
const OTHER: PciAddress = pci(0, 1, 0);

/// Every unit is changed like that, and devices send only when they are told to.
fn all(machine: &mut Machine, change: impl Fn(&mut Identity)) {
    machine.temper.background = false;
    for unit in &mut machine.units {
        change(unit.smmu().unwrap());
    }
}

fn always_stalls(machine: &mut Machine) {
    all(machine, |identity| {
        identity.stall_model = 2;
        identity.events = 4;
    });
}

/// How many faults are told of, and whether somebody was cut off.
fn faults(stand: &Stand) -> (usize, bool) {
    let (mut count, mut cut_off) = (0, false);
    stand.iommu.take_faults(|notice| match notice {
        FaultNotice::CutOff(_) => cut_off = true,
        _ => count += 1,
    });
    (count, cut_off)
}

fn writes(stand: &Stand, at: u64) -> Outcome {
    stand.rig.access(DEVICE, Iova::new(at), Access::Write)
}

#[test]
fn bc19_what_stands_still_is_ended_when_its_fault_is_taken() {
    on_machines(40, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit().index();
        let mapped = one.map(iovas(0x10_0000, 1));
        for _ in 0..20 {
            assert_eq!(writes(stand, 0x20_0000), Outcome::Lost, "it stands still");
            assert_eq!(stand.rig.stalled(unit), 1);
            assert_eq!(writes(stand, 0x10_0000), Outcome::Lost, "behind it");
            assert_eq!(faults(stand), (1, false));
            stand.rig.idle(20_000);
            assert_eq!(stand.rig.stalled(unit), 0);
            assert!(one.writes(0x10_0000));
        }
        // Flushes do not wait for what stands still.
        assert_eq!(writes(stand, 0x20_0000), Outcome::Lost);
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

#[test]
fn bc05_xsa_306_what_stands_still_at_a_detach_is_not_tried_by_the_next_owner() {
    on_machines(40, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit().index();
        assert_eq!(writes(stand, 0x20_0000), Outcome::Lost);
        assert_eq!(stand.rig.stalled(unit), 1);
        let group = one.end();
        assert_eq!(stand.rig.stalled(unit), 0, "before anybody looks at faults");
        let two = stand.kernel(group);
        let mapped = two.map(iovas(0x20_0000, 1));
        assert!(two.writes(0x20_0000));
        // The event is told late, and its answer ends nothing else.
        faults(stand);
        assert!(two.writes(0x20_0000));
        two.unmap_and_free(mapped);
        drop(two.end());
    });
}

#[test]
fn bc19_a_storm_of_stalls_costs_the_budget_and_blocks_nobody_for_good() {
    on_machines(10, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit().index();
        let mut told = 0;
        for _ in 0..3000 {
            writes(stand, 0x20_0000);
            let (count, cut_off) = faults(stand);
            told += count;
            if cut_off {
                break;
            }
        }
        assert!((900..1100).contains(&told), "{told}");
        stand.rig.idle(20_000);
        assert_eq!(stand.rig.stalled(unit), 0);
        assert!(!stand.rig.may_send(DEVICE));
        drop(one.end());
    });
}

/// A device that goes on after it was cut off stands still no more, and fills nothing: its entry aborts.
#[test]
fn bc19_what_was_cut_off_stands_still_no_more_at_either_stage() {
    for second_stage in [true, false] {
        let with_seed = |seed| {
            let mut machine = Machine::calm_of(Vendor::Smmu);
            always_stalls(&mut machine);
            all(&mut machine, |identity| {
                identity.second_stage = second_stage;
            });
            (machine.seed, machine.temper.rogues) = (seed, true);
            Stand::new(machine)
        };
        let ignores_its_bit = |stand: &Stand| {
            let sent = writes(stand, 0);
            faults(stand);
            !matches!(sent, Outcome::Lost)
        };
        let mut stand = (0..64).map(with_seed).find(ignores_its_bit).unwrap();
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit().index();
        let rounds = (0..3000).take_while(|_| {
            writes(&stand, 0x20_0000);
            !faults(&stand).1
        });
        assert!(rounds.count() < 3000);
        stand.rig.idle(20_000);
        let sent = writes(&stand, 0x20_0000);
        assert_eq!(stand.rig.stalled(unit), 0, "{second_stage} {sent:?}");
        assert!(!matches!(sent, Outcome::Reached { .. }), "{sent:?}");
        drop(one.end());
    }
}

/// What a wedged unit does not take is owed, and told after its reset.
#[test]
fn bc19_answers_that_a_wedged_unit_does_not_take_are_given_after_its_reset() {
    on_machines(20, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let mapped = one.map(iovas(0x10_0000, 1));
        writes(stand, 0x20_0000);
        stand.rig.fail_queue(unit.index());
        let pending = one.unmap(mapped).flush().err().unwrap().pending;
        stand.rig.wedged(unit.index(), true);
        for round in 0..3 {
            // What is owed keeps the rest back, which no interrupt tells of.
            let left = stand.iommu.take_faults(|_| ());
            assert_eq!(left, FaultLogs::Withheld, "round {round}");
            assert_eq!(stand.rig.stalled(unit.index()), 1);
        }
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        assert_eq!(stand.iommu.take_faults(|_| ()), FaultLogs::Empty);
        stand.rig.idle(20_000);
        assert_eq!(stand.rig.stalled(unit.index()), 0);
        let (free, frames) = pending.flush().unwrap();
        one.returned(free.span(), &frames);
        stand.give_back(frames);
        free.release().unwrap();
        drop(one.end());
    });
}

/// Time passes by looks at the clock.
fn wait_until_off(stand: &Stand, unit: UnitIndex) {
    while stand.rig.translates(unit.index()) {
        stand.rig.now();
    }
}

/// A reset of such a unit turns translation off and on again, behind the gate. One that takes its time is brought back by
/// the next reset, however far it has come.
#[test]
fn bc19_a_unit_that_was_slow_to_turn_off_is_brought_back_by_the_next_reset() {
    on_machines(20, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let mapped = one.map(iovas(0x10_0000, 1));
        stand.rig.fail_queue(unit.index());
        let pending = one.unmap(mapped).flush().err().unwrap().pending;
        stand.rig.wedged(unit.index(), true);
        stand.rig.suffer(unit.index(), Trouble::SwitchesLate);
        let late = stand.iommu.reset_unit(unit).unwrap_err();
        assert!(late.to_string().contains("CR0.SMMUEN"), "{late}");
        wait_until_off(stand, unit);
        // Off, and the gate is closed: nothing passes.
        let sent = writes(stand, 0x10_0000);
        assert!(!matches!(sent, Outcome::Reached { .. }), "{sent:?}");
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        assert!(stand.rig.translates(unit.index()));
        let (free, frames) = pending.flush().unwrap();
        one.returned(free.span(), &frames);
        stand.give_back(frames);
        free.release().unwrap();
        drop(one.end());
    });
}

/// Also one that was shut down meanwhile stays off, for whoever has it next.
#[test]
fn bc12_a_unit_that_was_slow_to_turn_off_and_shut_down_is_not_turned_on_again() {
    on_machines(10, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let mapped = one.map(iovas(0x10_0000, 1));
        stand.rig.fail_queue(unit.index());
        let pending = one.unmap(mapped).flush().err().unwrap().pending;
        stand.rig.wedged(unit.index(), true);
        stand.rig.suffer(unit.index(), Trouble::SwitchesLate);
        stand.iommu.reset_unit(unit).unwrap_err();
        wait_until_off(stand, unit);
        stand.iommu.shut_down().unwrap();
        let again = stand.iommu.reset_unit(unit).unwrap_err();
        assert!(again.to_string().contains("shut down"), "{again}");
        stand.rig.idle(20_000);
        assert!(!stand.rig.translates(unit.index()));
        for unit in 0..stand.rig.machine().units.len() {
            stand.rig.wedged(unit, true);
        }
        std::mem::forget((one, pending));
    });
}

/// A request that stands still, and whose event could not be written, is known to nobody: its unit counts as failed, and its
/// stream goes on when it is bound anew.
#[test]
fn bc19_what_stands_still_and_is_not_told_of_fails_the_unit() {
    super::stand::fault_of_the_environment();
    on_machines(20, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let trouble = Trouble::RecordAborts { index_moves: true };
        stand.rig.suffer(unit.index(), trouble);
        writes(stand, 0x20_0000);
        assert_eq!(stand.rig.stalled(unit.index()), 1);
        let mut failed = 0;
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Failed(which) => failed += usize::from(which == unit),
            FaultNotice::Lost(_) => {}
            other => panic!("{other:?}"),
        });
        assert_eq!(failed, 1);
        stand.rig.wedged(unit.index(), true);
        assert!(!stand.rig.may_send(DEVICE));
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        assert_eq!(
            stand.rig.stalled(unit.index()),
            0,
            "it is nobody's to answer"
        );
        let two = stand.kernel(one.end());
        let mapped = two.map(iovas(0x20_0000, 1));
        assert!(two.writes(0x20_0000));
        two.unmap_and_free(mapped);
        drop(two.end());
    });
}

/// Devices may send requests for pages.
fn with_pages(machine: &mut Machine) {
    all(machine, |identity| {
        (identity.ats, identity.pri) = (true, true)
    });
}

#[test]
fn bc19_requests_for_pages_are_denied_told_and_counted() {
    on_machines(40, with_pages, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        for (group, last) in [(7, false), (7, true), (0x1ff, true)] {
            stand
                .rig
                .ask_for_page(DEVICE, Iova::new(0x5000), group, last);
        }
        let mut told = Vec::new();
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Fault(report) => told.push(report),
            other => panic!("{other:?}"),
        });
        assert_eq!(told.len(), 3);
        for report in &told {
            assert_eq!(report.fault.class, FaultClass::PageRequest);
            assert_eq!(report.fault.requester, DEVICE);
            assert_eq!(report.fault.address, Iova::new(0x5000));
            assert!(report.bound_to.is_some());
        }
        stand.rig.idle(20_000);
        assert_eq!(stand.rig.page_answers(DEVICE), [(7, 0), (0x1ff, 0)]);
        drop(one.end());
    });
}

/// What a storm of requests for pages brings of notices: lost, cut off, others; and the number of groups that were sent.
fn storm(stand: &Stand, rounds: u16) -> (u32, u32, u32, usize) {
    let (mut lost, mut cut_off, mut others, mut sent) = (0, 0, 0, 0);
    for round in 0..rounds {
        // More than the queue holds.
        for number in 0..12 {
            let group = (round * 12 + number) % 512;
            stand.rig.ask_for_page(DEVICE, Iova::new(0), group, true);
            sent += 1;
        }
        let logs = stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Lost(_) => lost += 1,
            FaultNotice::CutOff(_) => cut_off += 1,
            FaultNotice::Fault(_) | FaultNotice::Stray(..) | FaultNotice::Failed(_) => others += 1,
            FaultNotice::BadLog(unit, bad) => panic!("{unit}: {bad}"),
        });
        assert_eq!(logs, FaultLogs::Empty);
    }
    (lost, cut_off, others, sent)
}

#[test]
fn bc19_a_storm_of_requests_for_pages_costs_the_budget_and_overflows_are_acknowledged() {
    on_machines(10, with_pages, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let (lost, cut_off, _, sent) = storm(stand, 400);
        assert!(lost > 1 && cut_off == 1, "{lost} lost, {cut_off} cut off");
        // It is cut off and goes on: nothing has a share in that any more but the unit, which answers by itself.
        assert_eq!(storm(stand, 100), (0, 0, 0, 1200));
        stand.rig.idle(20_000);
        let answers = stand.rig.page_answers(DEVICE);
        assert_eq!(answers.len(), sent + 1200, "each group got an answer");
        let denied = answers.iter().filter(|(_, code)| *code == 0).count();
        assert!(denied >= 1200, "{denied} are denied");
        drop(one.end());
    });
}

/// A function that nobody has asks for a page: it is told that it may not.
#[test]
fn bc19_requests_for_pages_of_nobody_are_denied_too() {
    on_machines(20, with_pages, |stand| {
        stand.rig.ask_for_page(DEVICE, Iova::new(0x1000), 3, true);
        let mut told = 0;
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Fault(report) => told += usize::from(report.bound_to.is_none()),
            other => panic!("{other:?}"),
        });
        stand.rig.idle(20_000);
        assert_eq!((told, stand.rig.page_answers(DEVICE)), (1, vec![(3, 0)]));
    });
}

/// Where faults stand still, no device keeps translations: the two exclude each other in an entry.
#[test]
fn ats_is_refused_by_name_where_faults_always_stall() {
    let both = |machine: &mut Machine| {
        always_stalls(machine);
        all(machine, |identity| identity.ats = true);
        machine.functions.iter_mut().for_each(|f| f.ats = true);
    };
    on_machines(5, both, |stand| {
        let claimed = stand.take(DEVICE).claim_for_hypervisor();
        let trusted = TrustedDevice::vouch_for(&claimed, "a test");
        let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let tenant = stand.tenant();
        let mut group = stand.attach(claimed, &domain, tenant);
        let found = group.enable_ats(DEVICE, &trusted).unwrap_err().to_string();
        assert!(found.contains("always stall"), "{found}");
        let members = group.members().to_vec();
        stand.rig.detaching(&members, tenant);
        drop(group.detach().unwrap());
        stand.rig.detached(&members);
        domain.destroy().unwrap().for_each(drop);
    });
}

/// An answer that the unit refuses is one that nobody waits for: the unit is wedged, for the request would stand still for ever.
#[test]
fn bc19_an_answer_that_the_unit_refuses_is_not_lost_in_silence() {
    on_machines(20, always_stalls, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        stand.rig.refuse(unit.index(), Refusing::Answers);
        writes(stand, 0x20_0000);
        assert_eq!(stand.rig.stalled(unit.index()), 1);
        let mut failed = 0;
        // Whoever looks for faults finds that the unit stands, as nobody waits for it.
        for _ in 0..64 {
            stand.iommu.take_faults(|notice| {
                failed += usize::from(notice == FaultNotice::Failed(unit));
            });
            stand.rig.idle(200);
        }
        assert_eq!(failed, 1);
        stand.rig.wedged(unit.index(), true);
        assert!(!stand.rig.may_send(DEVICE));
        stand.rig.refuse(unit.index(), Refusing::Nothing);
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        stand.rig.idle(20_000);
        assert_eq!(stand.rig.stalled(unit.index()), 0);
        drop(one.end());
    });
}

/// The same of an answer to a request for a page, found by who waits for something else, which is none of its own business: a
/// guest whose own invalidations a unit may refuse without harm, a driver that flushes or is attached. Nobody goes on behind a
/// unit that is wedged.
#[test]
fn bc19_an_answer_that_the_unit_refuses_cuts_off_whoever_finds_it() {
    super::stand::fault_of_the_environment();
    let nesting = |machine: &mut Machine| {
        with_pages(machine);
        machine.set_nesting();
        // One unit for all.
        machine.units.truncate(1);
        let unit = &mut machine.units[0];
        unit.scopes = None;
        let segment = unit.segment;
        machine.functions.retain(|f| f.address.segment() == segment);
    };
    for finds in [Finds::Invalidation, Finds::Flush, Finds::Attach] {
        on_machines(10, nesting, |stand| {
            let group = stand.take(DEVICE);
            let one = stand.kernel(group);
            let group = stand.take(OTHER);
            let nest = Nest::new(&stand.rig, group, 0).unwrap();
            nest.map(None, 0, 5, 20);
            let third = stand.take(pci(1, 0, 0));
            let mapped = one.map(iovas(0x10_0000, 1));
            let unit = one.group.as_ref().unwrap().unit();
            stand.rig.refuse(unit.index(), Refusing::Answers);
            stand.rig.ask_for_page(DEVICE, Iova::new(0x5000), 7, true);
            // It reads the answer only when somebody waits for something.
            stand.rig.hang(unit.index(), Duration::from_millis(10));
            assert_eq!(faults(stand), (1, false));
            let forget = GuestStage::forget_page(1, Iova::new(0x5000));
            let mut pending = None;
            match finds {
                Finds::Invalidation => drop(nest.command(&[forget]).unwrap_err()),
                Finds::Flush => pending = one.unmap(mapped).flush().err(),
                Finds::Attach => {
                    let claimed = third.claim_for_hypervisor();
                    let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
                    assert!(claimed.attach(&domain).is_err());
                }
            }
            assert_eq!(pending.is_some(), finds == Finds::Flush);
            let wedged: Vec<UnitIndex> = stand.iommu.wedged_units().collect();
            assert_eq!(wedged, [unit], "{finds:?}");
            stand.rig.wedged(unit.index(), true);
            for device in [DEVICE, OTHER] {
                assert!(!stand.rig.may_send(device), "{finds:?}: {device}");
            }
            stand.rig.refuse(unit.index(), Refusing::Nothing);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
            nest.command(&[forget]).unwrap();
            std::mem::forget(pending);
            drop((nest.end().unwrap(), one.end()));
        });
    }
}

/// Who waits, and finds what stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finds {
    Invalidation,
    Flush,
    Attach,
}

/// The queue of requests for pages does not go off, and the device goes on asking: that is waited for once.
#[test]
fn bc19_a_queue_of_page_requests_that_stays_on_is_waited_for_once() {
    super::stand::fault_of_the_environment();
    let with_room = |machine: &mut Machine| {
        with_pages(machine);
        all(machine, |identity| identity.commands = 8);
    };
    on_machines(10, with_room, |stand| {
        let mut took = Vec::new();
        let unit = stand.iommu.unit_of(DEVICE).unwrap();
        // Nobody has it, so it is let nothing. The unit takes no change of its control register.
        stand.rig.hang(unit.index(), Duration::from_secs(1000));
        for round in 0..6 {
            for group in 0..4 {
                let group = 4 * round + group;
                stand
                    .rig
                    .ask_for_page(DEVICE, Iova::new(0x1000), group, true);
            }
            let before = stand.rig.nanos();
            stand.iommu.take_faults(|_| ());
            took.push(Duration::from_nanos(stand.rig.nanos() - before));
        }
        let (first, others) = took.split_first().unwrap();
        let second = Duration::from_secs(1);
        assert!(*first > second && *first < 2 * second, "{took:?}");
        assert!(others.iter().all(|took| *took < second / 10), "{took:?}");
        stand.rig.wake(unit.index());
        stand.rig.idle(20_000);
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        let told = stand.rig.page_answers(DEVICE);
        assert_eq!(told.len(), 24, "each group got an answer");
    });
}
