//! Bring-up: nothing before its time, and nothing that is missing goes unnoticed.

use super::*;
use crate::dmar::{Defect, Expected, Finding, Rmrr};
use crate::testing::Behaviour;
use crate::{CoverageError, CoverageProblem, UnitRefusal};
use hv_core::{Iova, IovaRange};
use hv_iommu::{Backend, ReservedKind, ReservedRegion, StaysOn, UnitError, VirtualFunctions};

/// What a step of bring-up looks like from outside, per unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Queue,
    WriteBuffer,
    Root,
    FlushContext,
    FlushIotlb,
    Translate,
    ProtectedOff,
}

pub(super) fn steps(log: &[Event]) -> Vec<(usize, Step)> {
    let mut steps = Vec::new();
    for event in log {
        let step = match *event {
            Event::Write32 {
                unit,
                offset,
                value,
            } => match (offset, value) {
                // Levels come along, so look from the newest command on.
                (0x18, value) if value & 1 << 30 != 0 => (unit, Step::Root),
                (0x18, value) if value & 1 << 27 != 0 => (unit, Step::WriteBuffer),
                (0x18, value) if value & 1 << 31 != 0 => (unit, Step::Translate),
                (0x18, value) if value & 1 << 26 != 0 => (unit, Step::Queue),
                (0x64, _) => (unit, Step::ProtectedOff),
                _ => continue,
            },
            Event::Executed { unit, low, .. } => match low & 0xff {
                0x11 => (unit, Step::FlushContext),
                low if low & 0x3f == 0x12 => (unit, Step::FlushIotlb),
                _ => continue,
            },
            _ => continue,
        };
        steps.push(step);
    }
    steps
}

/// Shows: bc12.
#[test]
fn enabling_comes_after_flushing_on_all_units() {
    let machine = Machine::new(&[(CAP, ECAP), (CAP, ECAP | ECAP_C)]);
    for unit in &machine.units {
        unit.behave(Behaviour {
            command_delay: 3,
            ..Behaviour::default()
        });
    }
    let vtd = bring_up(&machine).unwrap();
    // The fake refuses two fields in one write, and a command before the last was reported.
    assert_eq!(
        steps(&machine.take_log()),
        [
            (0, Step::Queue),
            (1, Step::Queue),
            (0, Step::Root),
            (1, Step::Root),
            (0, Step::FlushContext),
            (0, Step::FlushIotlb),
            (1, Step::FlushContext),
            (1, Step::FlushIotlb),
            (0, Step::Translate),
            (1, Step::Translate),
        ]
    );
    assert!(machine.units.iter().all(|unit| unit.translates()));
    assert_eq!(vtd.unit_count(), 2);
    assert_eq!(machine.units[0].fault_interrupt(), 1 << 31);
}

/// Shows: bc12.
#[test]
fn capability_bits_are_honoured() {
    let cases = [
        (
            CAP | CAP_ESRTPS,
            vec![Step::Queue, Step::Root, Step::Translate],
        ),
        (
            CAP | CAP_RWBF,
            vec![
                Step::Queue,
                Step::WriteBuffer,
                Step::Root,
                Step::FlushContext,
                Step::FlushIotlb,
                Step::Translate,
            ],
        ),
        (
            CAP | CAP_ESRTPS | CAP_PLMR,
            vec![Step::Queue, Step::Root, Step::Translate, Step::ProtectedOff],
        ),
    ];
    for (cap, expected) in cases {
        let machine = Machine::new(&[(cap, ECAP)]);
        machine.units[0].set_protected_memory(1 << 31 | 1);
        bring_up(&machine).unwrap();
        let steps: Vec<_> = steps(&machine.take_log())
            .into_iter()
            .map(|(_, step)| step)
            .collect();
        assert_eq!(steps, expected, "CAP {cap:#x}");
        let stays = cap & CAP_PLMR == 0;
        assert_eq!(machine.units[0].protected_memory() != 0, stays);
    }
}

#[test]
fn the_root_table_reaches_memory_before_the_unit_takes_it() {
    for (ecap, written_back) in [(ECAP, true), (ECAP | ECAP_C, false)] {
        let machine = Machine::new(&[(CAP, ecap)]);
        bring_up(&machine).unwrap();
        let log = machine.take_log();
        let root = machine.units[0].root();
        let taken = Event::Write64 {
            unit: 0,
            offset: 0x20,
            value: root,
        };
        let taken = log.iter().position(|&event| event == taken).unwrap();
        let back = Event::WriteBack {
            at: root,
            bytes: 4096,
        };
        let back = log.iter().position(|&event| event == back);
        assert_eq!(back.is_some(), written_back);
        assert!(back.is_none_or(|back| back < taken));
        let fence = log.iter().position(|&event| event == Event::Fence).unwrap();
        assert!(fence < taken);
        assert_eq!(root & 0xfff, 0, "legacy mode");
    }
}

#[test]
fn a_unit_that_does_not_answer_a_command_is_named() {
    let commands = [
        (1 << 26, "queue"),
        (1 << 30, "root"),
        (1 << 27, "write buffer"),
        (1 << 31, "translation"),
    ];
    for (stuck_command, word) in commands {
        let machine = Machine::new(&[(CAP, ECAP), (CAP | CAP_RWBF, ECAP)]);
        machine.units[1].behave(Behaviour {
            stuck_command,
            ..Behaviour::default()
        });
        match bring_up(&machine) {
            Err(BringUpError::Unit(UnitError::Timeout { unit, what, waited })) => {
                assert_eq!(unit.index(), 1);
                assert!(what.contains(word), "{what}");
                assert!(waited.as_secs() >= 1);
            }
            other => panic!("{:?}", other.err()),
        }
        // A step that failed on one unit starts none of the next on any.
        assert!(stuck_command == 1 << 31 || !machine.units[0].translates());
    }
}

#[test]
fn a_first_flush_that_does_not_complete_stops_before_translation() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    machine.units[0].behave(Behaviour {
        hold_waits: true,
        ..Behaviour::default()
    });
    assert!(matches!(
        bring_up(&machine),
        Err(BringUpError::Unit(UnitError::Timeout { .. }))
    ));
    assert!(!machine.units[0].translates());
}

#[test]
fn units_that_this_version_cannot_drive_are_refused() {
    let cases = [
        (u64::MAX, u64::MAX, UnitRefusal::Absent),
        (CAP, ECAP & !2, UnitRefusal::NoQueue { ecap: ECAP & !2 }),
        (CAP & !0x1f00, ECAP, UnitRefusal::NoLevels { sagaw: 0 }),
        // The reserved bits of SAGAW promise nothing.
        (
            CAP & !0x1f00 | 0x1100,
            ECAP,
            UnitRefusal::NoLevels { sagaw: 0x11 },
        ),
        (CAP | 7, ECAP, UnitRefusal::DomainIds { nd: 7 }),
        (
            CAP & !(0x3ff << 24),
            ECAP,
            UnitRefusal::FaultRecords {
                expected: 0xb8,
                found: 0,
            },
        ),
    ];
    for (cap, ecap, why) in cases {
        let machine = Machine::new(&[(cap, ecap)]);
        let expected = BringUpError::Refused {
            unit: FIRST,
            base: PhysAddr::new(base(0)),
            why,
        };
        assert_eq!(discover(&machine).err(), Some(expected));
        assert_eq!(machine.take_log(), [], "refused without a touch");
    }
    let machine = Machine::new(&[]);
    let dmar = table(vec![drhd(0, 0, true, Vec::new())]);
    let found = Vtd::discover(machine, &dmar, &[], CoveragePolicy::Strict);
    assert!(matches!(found.err(), Some(BringUpError::Registers { .. })));
}

#[test]
fn what_firmware_left_on_is_refused_by_name() {
    for (status, word) in [
        (1 << 31, "translation"),
        (1 << 26, "queue"),
        (1 << 25, "interrupt remapping"),
    ] {
        let machine = Machine::new(&[(CAP, ECAP)]);
        machine.units[0].set_status(status);
        let error = discover(&machine).err().unwrap();
        assert!(std::format!("{error}").contains(word), "{error}");
        // Left on between discovery and bring-up.
        machine.units[0].set_status(0);
        let discovery = discover(&machine).unwrap();
        machine.units[0].set_status(status);
        assert_eq!(discovery.bring_up().err(), Some(error));
    }
}

#[test]
fn registers_past_the_first_page_are_mapped() {
    // Fault records at 0x1ff0 and 256 of them: two pages and more.
    let cap = CAP & !(0x3ff << 24) | 0x1ff << 24 | 0xff << 40;
    let machine = Machine::new(&[(cap, ECAP)]);
    let vtd = bring_up(&machine).unwrap();
    let pages = vtd.units().next().unwrap().registers.pages().get();
    assert_eq!(pages, (0x1ff0u64 + 256 * 16).div_ceil(4096));
    machine.units[0].put_fault(255, 0x5000, 0x5_0000_0008);
    assert!(vtd.take_fault(FIRST).is_some());
}

#[test]
fn old_faults_are_forgotten() {
    let machine = Machine::new(&[(CAP | 3 << 40, ECAP)]);
    let discovery = discover(&machine).unwrap();
    machine.units[0].put_fault(2, 0x1000, 0x5_0000_0008);
    machine.units[0].set_fault_status(machine.units[0].fault_status() | 0x7d);
    let vtd = discovery.bring_up().unwrap();
    assert_eq!(vtd.take_fault(FIRST), None);
    assert_eq!(machine.units[0].fault_status() & 0x7f, 0);
}

#[test]
fn frames_that_are_missing_or_out_of_reach_are_reported() {
    for frames in 0..3 {
        let machine = Machine::new(&[(CAP, ECAP)]);
        machine.limit_frames(frames);
        assert!(matches!(
            bring_up(&machine).err(),
            Some(BringUpError::Unit(UnitError::OutOfFrames(_)))
        ));
        assert!(!machine.units[0].translates());
    }
    let machine = Machine::new(&[(CAP, ECAP)]);
    machine.frames_from(1 << 39);
    let error = bring_up(&machine).err().unwrap();
    let expected = UnitError::Hardware {
        unit: FIRST,
        what: "a frame above the host address width",
        expected: (1 << 39) - 1,
        found: 1 << 39,
    };
    assert_eq!(error, BringUpError::Unit(expected));
}

#[test]
fn bus_mastering_is_off_everywhere_before_anything_and_stays_off() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let (host, lpc, bridge, device) = (at(0, 0, 0), at(0, 0x1f, 0), at(0, 1, 0), at(1, 0, 0));
    machine.add_endpoint(host);
    machine.fix_bus_master(host, 0x0600);
    machine.add_endpoint(lpc);
    machine.fix_bus_master(lpc, 0x0601);
    machine.add_bridge(bridge, 1, 1);
    machine.add_endpoint(device);
    let gone = at(0, 9, 0);
    let functions = [
        endpoint(host),
        endpoint(lpc),
        port(bridge, 1, 1),
        endpoint(device),
        endpoint(gone),
    ];
    let dmar = own_segments(&machine);
    let discovery =
        Vtd::discover(machine.clone(), &dmar, &functions, CoveragePolicy::Strict).unwrap();
    assert!(machine.masters(device), "discovery touches nothing");
    discovery.bring_up().unwrap();
    assert!(!machine.masters(device));
    assert!(!machine.masters(bridge));
    let log = machine.take_log();
    let first = |wanted: fn(&Event) -> bool| log.iter().position(wanted).unwrap();
    let last = |wanted: fn(&Event) -> bool| log.iter().rposition(wanted).unwrap();
    let config = |event: &Event| matches!(event, Event::Config { .. });
    let register = |event: &Event| matches!(event, Event::Write32 { .. } | Event::Write64 { .. });
    assert!(first(config) < first(register));
    assert!(last(config) < first(register));
    let before = log[..first(register)].iter().filter(|event| config(event));
    assert_eq!(before.count(), 4, "all that are there");

    // An endpoint whose bit does not go off is refused.
    let machine = Machine::new(&[(CAP, ECAP)]);
    machine.add_endpoint(device);
    machine.fix_bus_master(device, 0x0108);
    let dmar = own_segments(&machine);
    let functions = [endpoint(device)];
    let error = Vtd::discover(machine.clone(), &dmar, &functions, CoveragePolicy::Strict)
        .unwrap()
        .bring_up()
        .err();
    let expected = BringUpError::BusMaster(StaysOn::BusMastering {
        function: device,
        command: 7,
    });
    assert_eq!(error, Some(expected));
    let started = |event: &Event| matches!(event, Event::Write32 { .. } | Event::Write64 { .. });
    assert!(!machine.take_log().iter().any(started));
}

#[test]
fn bc06_reserved_regions_of_devices_that_are_there_refuse_the_machine_or_are_known() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let device = at(0, 0x14, 0);
    let mut dmar = own_segments(&machine);
    let region = PhysRange::new(PhysAddr::new(0x3e2e_0000), PageCount::new(32).unwrap()).unwrap();
    dmar.regions.push(Rmrr {
        place: Place::record(RecordKind::Rmrr, 120),
        segment: Segment(0),
        region,
        scopes: vec![scope(ScopeKind::Endpoint, 0, &[(0x14, 0)])],
    });
    let strict = CoveragePolicy::Strict;
    assert!(Vtd::discover(machine.clone(), &dmar, &[], strict).is_ok());
    machine.add_endpoint(device);
    assert_eq!(
        Vtd::discover(machine.clone(), &dmar, &[], strict).err(),
        Some(BringUpError::ReservedRegion { region, device })
    );
    // A lenient policy knows the region and for whom it is: for the device and all that it is.
    let functions = [PciFunction {
        virtual_functions: VirtualFunctions::from_registers(1, 1, 8, 1),
        ..endpoint(device)
    }];
    let lenient = CoveragePolicy::Lenient;
    let vtd = Vtd::discover(machine.clone(), &dmar, &functions, lenient);
    let vtd = vtd.unwrap().bring_up().unwrap();
    assert!(!machine.masters(device), "it stands still");
    let start = Iova::new(region.start().as_u64());
    let expected = ReservedRegion {
        range: IovaRange::new(start, region.pages()).unwrap(),
        kind: ReservedKind::Pinned,
    };
    for requester in [device, at(0, 0x15, 0)] {
        let found: Vec<_> = vtd.reserved_for(requester).collect();
        assert_eq!(found, [expected], "{requester}");
    }
    assert_eq!(vtd.reserved_for(at(0, 0x14, 1)).count(), 0);
}

/// A region over memory of the hypervisor: no domain of a strict machine, and none of a lenient one.
#[test]
fn bc06_regions_are_compared_with_the_memory_map() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let device = at(0, 0x14, 0);
    machine.add_endpoint(device);
    // Firmware is done with USB controllers, which makes no difference.
    machine.set_class(device, 0x0c03);
    let pages = |start, count| {
        PhysRange::new(PhysAddr::new(start), PageCount::new(count).unwrap()).unwrap()
    };
    let region = pages(0x3e2e_0000, 32);
    let strict = CoveragePolicy::Strict;
    let mut dmar = own_segments(&machine);
    dmar.regions.push(Rmrr {
        place: Place::record(RecordKind::Rmrr, 120),
        segment: Segment(0),
        region,
        scopes: vec![scope(ScopeKind::Endpoint, 0, &[(0x14, 0)])],
    });
    // Just below and just above it.
    machine.add_ram(pages(0x3e2d_f000, 1));
    machine.add_ram(pages(0x3e30_0000, 1));
    assert!(Vtd::discover(machine.clone(), &dmar, &[endpoint(device)], strict).is_ok());
    // Its last page.
    machine.add_ram(pages(0x3e2f_f000, 1));
    machine.take_log();
    assert_eq!(
        Vtd::discover(machine.clone(), &dmar, &[endpoint(device)], strict).err(),
        Some(BringUpError::RegionNotFirmwares { region, device })
    );
    let lenient = CoveragePolicy::Lenient;
    let vtd = Vtd::discover(machine, &dmar, &[endpoint(device)], lenient);
    let vtd = vtd.unwrap().bring_up().unwrap();
    // Known, so that whoever makes a domain for the device is refused.
    assert_eq!(vtd.reserved_for(device).count(), 1);
}

#[test]
fn bc06_regions_that_firmware_is_done_with_refuse_no_machine() {
    let region = PhysRange::new(PhysAddr::new(0x3e2e_0000), PageCount::ONE).unwrap();
    let strict = CoveragePolicy::Strict;
    let (device, bridge) = (at(0, 0x14, 0), at(0, 0x1c, 0));
    let rows = [
        // USB, a display, another display; storage, a serial bus that is not USB, a processor.
        (0x0c03, Some(ReservedKind::Relaxable)),
        (0x0300, Some(ReservedKind::Relaxable)),
        (0x0380, Some(ReservedKind::Relaxable)),
        (0x0106, None),
        (0x0c05, None),
        (0x0b40, None),
    ];
    for (class, kind) in rows {
        let machine = Machine::new(&[(CAP, ECAP)]);
        machine.add_endpoint(device);
        machine.set_class(device, class);
        let mut dmar = own_segments(&machine);
        dmar.regions.push(Rmrr {
            place: Place::record(RecordKind::Rmrr, 120),
            segment: Segment(0),
            region,
            scopes: vec![scope(ScopeKind::Endpoint, 0, &[(0x14, 0)])],
        });
        let found = Vtd::discover(machine.clone(), &dmar, &[endpoint(device)], strict);
        let Some(kind) = kind else {
            let refused = BringUpError::ReservedRegion { region, device };
            assert_eq!(found.err(), Some(refused), "{class:#x}");
            continue;
        };
        let vtd = found.unwrap().bring_up().unwrap();
        let kinds: Vec<_> = vtd.reserved_for(device).map(|region| region.kind).collect();
        assert_eq!(kinds, [kind], "{class:#x}");
    }
    // What is behind a bridge may be anything, and all of it is meant.
    let machine = Machine::new(&[(CAP, ECAP)]);
    machine.add_bridge(bridge, 2, 3);
    machine.set_class(bridge, 0x0c03);
    let mut dmar = own_segments(&machine);
    dmar.regions.push(Rmrr {
        place: Place::record(RecordKind::Rmrr, 120),
        segment: Segment(0),
        region,
        scopes: vec![scope(ScopeKind::Bridge, 0, &[(0x1c, 0)])],
    });
    let lenient = CoveragePolicy::Lenient;
    let vtd = Vtd::discover(machine, &dmar, &[port(bridge, 2, 3)], lenient);
    let vtd = vtd.unwrap().bring_up().unwrap();
    for (bus, count) in [(1, 0), (2, 1), (3, 1), (4, 0)] {
        assert_eq!(vtd.reserved_for(at(bus, 0, 0)).count(), count, "bus {bus}");
    }
}

/// Shows: bc13.
#[test]
fn a_table_that_may_hide_a_unit_refuses_the_machine_unless_the_policy_is_lenient() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let device = at(0, 1, 0);
    machine.add_endpoint(device);
    let functions = [endpoint(device)];
    let finding = |what| Finding {
        place: Place::record(RecordKind::Atsr, 64),
        what,
        expected: Expected::Exactly(1),
        found: 2,
    };
    let named = drhd(0, 0, false, vec![scope(ScopeKind::Endpoint, 0, &[(1, 0)])]);
    let rest = drhd(0, 0, true, vec![]);
    // (unit, findings, whether strict bring-up believes the table)
    let cases = [
        (&named, vec![], true),
        (&named, vec![Defect::UnknownRecord], true),
        (&named, vec![Defect::Checksum], true),
        (&rest, vec![], true),
        (&rest, vec![Defect::Checksum], false),
        (&named, vec![Defect::Checksum, Defect::UnknownRecord], false),
        (&named, vec![Defect::ScopeLength], false),
        (&named, vec![Defect::RecordLength], false),
    ];
    for (unit, findings, believed) in cases {
        let mut dmar = table(vec![unit.clone()]);
        dmar.warnings = findings.iter().map(|what| finding(*what)).collect();
        let discover = |policy| Vtd::discover(machine.clone(), &dmar, &functions, policy);
        let strict = discover(CoveragePolicy::Strict).err();
        let doubtful = matches!(strict, Some(BringUpError::Doubtful { .. }));
        assert_eq!(doubtful, !believed, "{findings:?}: {strict:?}");
        assert!(discover(CoveragePolicy::Lenient).is_ok());
    }
}

#[test]
fn a_unit_that_does_not_drain_refuses_the_machine_unless_the_policy_is_lenient() {
    for missing in [1 << 54, 1 << 55] {
        let machine = Machine::new(&[(CAP & !missing, ECAP)]);
        let dmar = own_segments(&machine);
        let strict = Vtd::discover(machine.clone(), &dmar, &[], CoveragePolicy::Strict);
        assert!(matches!(strict.err(), Some(BringUpError::NoDrain { .. })));
        assert!(Vtd::discover(machine.clone(), &dmar, &[], CoveragePolicy::Lenient).is_ok());
    }
}

/// Shows: bc13.
#[test]
fn an_uncovered_function_refuses_the_machine_unless_the_policy_is_lenient() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let (named, bridge) = (at(0, 1, 0), at(0, 2, 0));
    machine.add_endpoint(named);
    machine.add_bridge(bridge, 1, 1);
    let dmar = table(vec![drhd(
        0,
        0,
        false,
        vec![scope(ScopeKind::Endpoint, 0, &[(1, 0)])],
    )]);
    let functions = [endpoint(named), port(bridge, 1, 1)];
    let strict = Vtd::discover(machine.clone(), &dmar, &functions, CoveragePolicy::Strict);
    let lost = CoverageProblem::Uncovered { function: bridge };
    assert_eq!(
        strict.err(),
        Some(BringUpError::Coverage(CoverageError::Refused(lost)))
    );
    let lenient = Vtd::discover(machine.clone(), &dmar, &functions, CoveragePolicy::Lenient);
    let vtd = lenient.unwrap().bring_up().unwrap();
    assert_eq!(vtd.unit_of(named), Some(FIRST));
    assert_eq!(vtd.unit_of(bridge), None);
    assert!(
        !machine.masters(bridge),
        "never gets its bus mastering back"
    );
}

#[test]
fn what_is_shown_names_registers_and_features() {
    let machine = Machine::new(&[(CAP, ECAP)]);
    let discovery = discover(&machine).unwrap();
    let info = discovery.units().next().unwrap();
    let features: Vec<_> = info.features().collect();
    assert_eq!(
        features,
        [
            "page-selective",
            "drain-write",
            "drain-read",
            "queue",
            "interrupt-remapping",
            "pass-through"
        ]
    );
    let shown = std::format!("{info}");
    assert!(
        shown.contains("0xfed90000") && shown.contains("3/4-level"),
        "{shown}"
    );
}
