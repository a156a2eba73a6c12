//! Units whose indices lie: a log that says it holds more than it has room for tells of nothing that it holds.

use hv_core::{Iova, PciAddress};
use hv_iommu::{FaultNotice, InterruptRoute};
use hv_rig::{Log, Machine, Trouble};

use super::stand::{Stand, on_machines, pci};
use super::telling::{FAULTS, Said, fault, look, quiet, route, with_one};

const DEVICE: PciAddress = pci(0, 2, 0);

/// How often the index is read as what it is not: it goes there for good, or comes back sooner or later.
const READS: [u32; 5] = [0, 1, 2, 3, 7];

fn few(machine: &mut Machine, coherent: bool) {
    quiet(machine, false);
    for unit in &mut machine.units {
        unit.smmu().unwrap().events = 2;
        unit.set_coherent(coherent);
    }
}

/// Whatever the ring holds, from laps ago or unread, none of it is told as somebody's fault, and so none is charged to a
/// device's budget; what comes later is told as ever.
///
/// Shows: bc19.
#[test]
fn bc19_an_index_beyond_its_log_tells_of_no_fault() {
    for coherent in [false, true] {
        on_machines(
            20,
            |machine| few(machine, coherent),
            |stand| {
                let (one, unit) = with_one(stand);
                assert_eq!(route(stand, unit, FAULTS, InterruptRoute::Wired), []);
                for (round, reads) in (0..).zip(READS) {
                    for unread in 0..3 {
                        // Old records everywhere.
                        for page in 0..6 {
                            fault(stand, 0x200 + page);
                            assert_eq!(look(stand), [Said::Page(0x200 + page)]);
                        }
                        (0..unread).for_each(|page| fault(stand, 0x300 + page));
                        let log = Log::Faults;
                        stand
                            .rig
                            .suffer(unit.index(), Trouble::IndexAstray { log, reads });
                        let told = look(stand);
                        assert_eq!(told.first(), Some(&Said::BadLog), "{reads}: {told:?}");
                        let mut rest = told.into_iter().skip(1);
                        assert!(rest.all(|said| said == Said::Lost), "told once");
                        // As long as it lies, and once more.
                        for _ in 0..8 {
                            fault(stand, 0x400);
                            let told = look(stand);
                            let may_be =
                                |said: &Said| matches!(said, Said::Lost | Said::Page(0x400));
                            assert!(told.iter().all(may_be), "{reads}: {told:?}");
                        }
                        fault(stand, 0x500 + round);
                        assert_eq!(look(stand), [Said::Page(0x500 + round)], "{reads}");
                    }
                }
                drop(one.end());
            },
        );
    }
}

/// What was dropped unread stands in the log no more: an entry that the unit could not write later, though its index has moved past
/// it, is none of it.
///
/// Shows: bc19.
#[test]
fn bc19_what_was_dropped_behind_an_index_that_lied_is_told_by_no_later_index() {
    super::stand::fault_of_the_environment();
    on_machines(
        20,
        |machine| few(machine, true),
        |stand| {
            let (one, unit) = with_one(stand);
            for (round, reads) in (0..).zip(READS) {
                for unread in 1..5 {
                    (0..unread).for_each(|page| fault(stand, 0x300 + page));
                    let log = Log::Faults;
                    stand
                        .rig
                        .suffer(unit.index(), Trouble::IndexAstray { log, reads });
                    let told = look(stand);
                    assert_eq!(told.first(), Some(&Said::BadLog), "{reads}: {told:?}");
                    // What comes first behind that is dropped as well, and was written by the unit.
                    for _ in 0..8 {
                        fault(stand, 0x400);
                        look(stand);
                    }
                    fault(stand, 0x500 + round);
                    assert_eq!(look(stand), [Said::Page(0x500 + round)], "{reads}");
                    // Each of the four entries once.
                    for _ in 0..4 {
                        let index_moves = true;
                        stand
                            .rig
                            .suffer(unit.index(), Trouble::RecordAborts { index_moves });
                        fault(stand, 0x600);
                        let told = look(stand);
                        assert!(told.iter().all(|said| *said == Said::Lost), "{told:?}");
                    }
                }
            }
            drop(one.end());
        },
    );
}

/// Where faults stand still until they are answered, those that were dropped are answered by nobody: the unit has failed.
#[test]
fn bc19_an_index_beyond_its_log_fails_a_unit_whose_faults_wait() {
    let stalls = |machine: &mut Machine| {
        few(machine, false);
        for unit in &mut machine.units {
            unit.smmu().unwrap().stall_model = 2;
        }
    };
    on_machines(10, stalls, |stand| {
        let (one, unit) = with_one(stand);
        fault(stand, 0x100);
        let (log, reads) = (Log::Faults, 0);
        stand
            .rig
            .suffer(unit.index(), Trouble::IndexAstray { log, reads });
        assert_eq!(look(stand), [Said::Failed]);
        stand.rig.wedged(unit.index(), true);
        assert!(!stand.rig.may_send(DEVICE));
        std::mem::forget(one);
    });
}

/// The same for requests for pages, none of which is answered twice.
///
/// Shows: bc19.
#[test]
fn bc19_an_index_beyond_its_log_answers_no_request_for_a_page() {
    let asks = |machine: &mut Machine| {
        few(machine, true);
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.ats, identity.pri) = (true, true);
        }
    };
    let asked = |stand: &Stand, group| {
        stand.rig.ask_for_page(DEVICE, Iova::new(0), group, true);
        let (mut requests, mut lost, mut bad) = (0, 0, 0);
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Fault(_) => requests += 1,
            FaultNotice::Lost(_) => lost += 1,
            FaultNotice::BadLog(_, found) => {
                assert_eq!(
                    (found.log, found.room, found.found),
                    ("page request queue", 8, 9)
                );
                bad += 1;
            }
            other => panic!("{other:?}"),
        });
        stand.rig.idle(20_000);
        (requests, lost, bad)
    };
    on_machines(10, asks, |stand| {
        let (one, unit) = with_one(stand);
        for (round, reads) in (0..).zip(READS) {
            let first = 100 * round;
            for group in first..first + 10 {
                assert_eq!(asked(stand, group), (1, 0, 0));
            }
            let before = stand.rig.page_answers(DEVICE);
            let log = Log::Pages;
            let astray = Trouble::IndexAstray { log, reads };
            stand.rig.suffer(unit.index(), astray);
            let (requests, _, bad) = asked(stand, first + 10);
            assert_eq!((requests, bad), (0, 1), "{reads}");
            for group in first + 11..first + 20 {
                let (_, _, bad) = asked(stand, group);
                assert_eq!(bad, 0, "told once");
            }
            assert_eq!(asked(stand, first + 20), (1, 0, 0), "{reads}");
            let after = stand.rig.page_answers(DEVICE);
            let new = after.iter().skip(before.len());
            let denied: Vec<u16> = new
                .filter(|(_, code)| *code == 0)
                .map(|(group, _)| *group)
                .collect();
            let mut once = denied.clone();
            once.dedup();
            assert_eq!(once, denied, "each is denied once");
            assert!(denied.iter().all(|group| *group > first + 9), "{denied:?}");
        }
        drop(one.end());
    });
}
