//! The map over small machines: who covers whom, and what is refused.

use std::vec::Vec;

use hv_core::{PciAddress, Segment};
use hv_iommu::{FunctionKind, PciFunction, PhantomBits, UnitIndex, VirtualFunctions};

use super::*;
use crate::dmar::ScopeKind;
use crate::testing::{Machine, at};
use crate::tests::{drhd as unit, scope, table};

enum Is {
    Endpoint(PciAddress),
    Bridge(PciAddress, u8, u8),
}
use Is::{Bridge, Endpoint};

fn machine(functions: &[Is]) -> Machine {
    let machine = Machine::new(&[]);
    for function in functions {
        match *function {
            Endpoint(at) => machine.add_endpoint(at),
            Bridge(at, secondary, subordinate) => machine.add_bridge(at, secondary, subordinate),
        }
    }
    machine
}

fn functions(addresses: &[PciAddress]) -> Vec<PciFunction> {
    addresses
        .iter()
        .map(|&address| PciFunction::new(address, FunctionKind::Endpoint))
        .collect()
}

fn index(number: usize) -> UnitIndex {
    UnitIndex::new(number).unwrap()
}

#[test]
fn explicit_scopes_beat_the_unit_for_the_rest() {
    let machine = machine(&[Endpoint(at(0, 2, 0))]);
    let dmar = table(vec![
        unit(0, 0, false, vec![scope(ScopeKind::Endpoint, 0, &[(2, 0)])]),
        unit(1, 0, true, vec![scope(ScopeKind::Ioapic, 0xff, &[(0, 0)])]),
    ]);
    let all = functions(&[at(0, 0, 0), at(0, 2, 0), at(0, 2, 1)]);
    let map = Coverage::new(&machine, &dmar, &all).unwrap();
    assert_eq!(map.problems(), []);
    assert_eq!(map.unit_of(at(0, 2, 0)), Some(index(0)));
    assert_eq!(map.unit_of(at(0, 2, 1)), Some(index(1)));
    assert_eq!(map.unit_of(at(0x40, 0, 0)), Some(index(1)));
    // Another segment has no unit at all.
    let foreign = PciAddress::from_requester(Segment(1), 0x10);
    assert_eq!(map.unit_of(foreign), None);
}

#[test]
fn paths_go_through_bridges_and_bridge_scopes_cover_what_is_behind() {
    let machine = machine(&[
        Bridge(at(0, 0x1c, 0), 5, 9),
        Bridge(at(5, 0, 0), 6, 8),
        Endpoint(at(6, 1, 0)),
    ]);
    let dmar = table(vec![
        // The endpoint behind two bridges.
        unit(
            0,
            0,
            false,
            vec![scope(ScopeKind::Endpoint, 0, &[(0x1c, 0), (0, 0), (1, 0)])],
        ),
        unit(1, 0, true, vec![]),
    ]);
    let map = Coverage::new(&machine, &dmar, &[]).unwrap();
    assert_eq!(map.unit_of(at(6, 1, 0)), Some(index(0)));
    assert_eq!(map.unit_of(at(6, 1, 1)), Some(index(1)));

    let dmar = table(vec![
        unit(0, 0, false, vec![scope(ScopeKind::Bridge, 0, &[(0x1c, 0)])]),
        unit(1, 0, true, vec![]),
    ]);
    let map = Coverage::new(&machine, &dmar, &[]).unwrap();
    assert_eq!(map.unit_of(at(0, 0x1c, 0)), Some(index(0)), "the bridge");
    for bus in 5..=9 {
        assert_eq!(map.unit_of(at(bus, 3, 2)), Some(index(0)), "bus {bus}");
    }
    assert_eq!(map.unit_of(at(4, 0, 0)), Some(index(1)));
    assert_eq!(map.unit_of(at(10, 0, 0)), Some(index(1)));
}

#[test]
fn every_function_is_covered_or_the_platform_is_refused() {
    let machine = machine(&[Endpoint(at(0, 1, 0))]);
    let dmar = table(vec![unit(
        0,
        0,
        false,
        vec![scope(ScopeKind::Endpoint, 0, &[(1, 0)])],
    )]);
    let all = functions(&[at(0, 1, 0), at(0, 3, 0)]);
    let map = Coverage::new(&machine, &dmar, &all).unwrap();
    let lost = CoverageProblem::Uncovered {
        function: at(0, 3, 0),
    };
    assert_eq!(map.problems(), [lost]);
    assert_eq!(
        map.check(CoveragePolicy::Strict),
        Err(CoverageError::Refused(lost))
    );
    assert_eq!(map.check(CoveragePolicy::Lenient), Ok(()));
    assert_eq!(map.unit_of(at(0, 3, 0)), None);
    assert!(std::format!("{lost}").contains("0000:00:03.0"));
}

#[test]
fn a_requester_that_two_units_claim_belongs_to_neither() {
    let machine = machine(&[Bridge(at(0, 0x1c, 0), 5, 5), Endpoint(at(5, 0, 0))]);
    let direct = scope(ScopeKind::Endpoint, 0, &[(0x1c, 0), (0, 0)]);
    for claim in [
        scope(ScopeKind::Bridge, 0, &[(0x1c, 0)]),
        scope(ScopeKind::Endpoint, 5, &[(0, 0)]),
    ] {
        let dmar = table(vec![
            unit(0, 0, false, vec![direct.clone()]),
            unit(1, 0, false, vec![claim]),
            unit(2, 0, true, vec![]),
        ]);
        let all = functions(&[at(5, 0, 0)]);
        let map = Coverage::new(&machine, &dmar, &all).unwrap();
        assert_eq!(map.unit_of(at(5, 0, 0)), None);
        assert_eq!(
            map.problems(),
            [CoverageProblem::Conflict {
                function: at(5, 0, 0),
                first: index(0),
                second: index(1)
            }]
        );
    }
    // The same unit may name a function twice.
    let twice = vec![direct.clone(), direct];
    let map = Coverage::new(&machine, &table(vec![unit(0, 0, false, twice)]), &[]).unwrap();
    assert_eq!(map.unit_of(at(5, 0, 0)), Some(index(0)));
}

#[test]
fn a_scope_that_leads_nowhere_is_named_and_casts_doubt_on_the_rest() {
    let machine = machine(&[
        Endpoint(at(0, 4, 0)),
        Bridge(at(1, 0, 0), 1, 1),
        Bridge(at(1, 2, 0), 0, 0),
        Bridge(at(1, 3, 0), 7, 6),
    ]);
    let cases = [
        (
            scope(ScopeKind::Endpoint, 1, &[(0x20, 0)]),
            Unresolved::NotAFunction {
                device: 0x20,
                function: 0,
            },
        ),
        (
            scope(ScopeKind::Endpoint, 1, &[(1, 0), (0, 0)]),
            Unresolved::Absent { at: at(1, 1, 0) },
        ),
        (
            scope(ScopeKind::Endpoint, 0, &[(4, 0), (0, 0)]),
            Unresolved::NotABridge {
                at: at(0, 4, 0),
                header: 0,
            },
        ),
        (
            scope(ScopeKind::Bridge, 1, &[(0, 0)]),
            Unresolved::BadBuses {
                at: at(1, 0, 0),
                secondary: 1,
                subordinate: 1,
            },
        ),
        (
            scope(ScopeKind::Endpoint, 1, &[(2, 0), (0, 0)]),
            Unresolved::BadBuses {
                at: at(1, 2, 0),
                secondary: 0,
                subordinate: 0,
            },
        ),
        (
            scope(ScopeKind::Bridge, 1, &[(3, 0)]),
            Unresolved::BadBuses {
                at: at(1, 3, 0),
                secondary: 7,
                subordinate: 6,
            },
        ),
        (scope(ScopeKind::Endpoint, 1, &[]), Unresolved::Empty),
    ];
    for (bad, why) in cases {
        let from = bad.start_bus;
        let dmar = table(vec![unit(0, 0, false, vec![bad]), unit(1, 0, true, vec![])]);
        let map = Coverage::new(&machine, &dmar, &[]).unwrap();
        let problem = CoverageProblem::Unresolved {
            unit: index(0),
            place: dmar.units[0].place.scope(64),
            why,
        };
        assert_eq!(map.problems(), [problem]);
        assert!(map.check(CoveragePolicy::Strict).is_err());
        // What the scope may have meant must not fall to the unit for the rest.
        assert_eq!(map.unit_of(at(from, 0, 0)), None);
        assert_eq!(map.unit_of(at(from + 1, 0, 0)), None);
        if from > 0 {
            assert_eq!(map.unit_of(at(from - 1, 0, 0)), Some(index(1)));
        }
    }
}

#[test]
fn a_bridge_without_buses_and_a_scope_for_nothing_are_no_problem() {
    let machine = machine(&[Bridge(at(0, 3, 0), 0, 0)]);
    let scopes = vec![
        scope(ScopeKind::Bridge, 0, &[(3, 0)]),
        scope(ScopeKind::Bridge, 0, &[(9, 0)]),
        scope(ScopeKind::Endpoint, 0, &[(2, 0)]),
    ];
    let map = Coverage::new(&machine, &table(vec![unit(0, 0, false, scopes)]), &[]).unwrap();
    assert_eq!(map.problems(), []);
    assert_eq!(map.unit_of(at(0, 3, 0)), Some(index(0)));
    assert_eq!(map.unit_of(at(1, 0, 0)), None);
}

#[test]
fn bc13_virtual_and_phantom_functions_are_behind_the_unit_of_their_function() {
    let physical = at(0, 2, 0);
    let machine = machine(&[Endpoint(physical), Endpoint(at(0, 2, 2))]);
    let named = vec![scope(ScopeKind::Endpoint, 0, &[(2, 0)])];
    let dmar = table(vec![unit(0, 0, false, named), unit(1, 0, true, vec![])]);
    let functions = [
        PciFunction {
            phantoms: PhantomBits::from_device_capabilities(2 << 3),
            virtual_functions: VirtualFunctions::from_registers(1, 2, 0x10, 0x100),
            ..PciFunction::new(physical, FunctionKind::Endpoint)
        },
        PciFunction::new(at(0, 2, 2), FunctionKind::Endpoint),
    ];
    let map = Coverage::new(&machine, &dmar, &functions).unwrap();
    for id in [physical, at(0, 2, 4), at(0, 2, 6), at(0, 4, 0), at(1, 4, 0)] {
        assert_eq!(map.unit_of(id), Some(index(0)), "{id}");
        assert!(map.is_named(id), "{id}");
    }
    // What is a function of its own is no phantom; what is neither is not theirs.
    for id in [at(0, 2, 2), at(0, 2, 1), at(2, 4, 0)] {
        assert_eq!(map.unit_of(id), Some(index(1)), "{id}");
    }
}

#[test]
fn segments_are_apart() {
    let machine = machine(&[]);
    let dmar = table(vec![
        unit(0, 0, true, vec![]),
        unit(1, 3, false, vec![scope(ScopeKind::Endpoint, 0, &[(2, 0)])]),
    ]);
    let map = Coverage::new(&machine, &dmar, &[]).unwrap();
    let there = PciAddress::new(Segment(3), 0, 2, 0).unwrap();
    assert_eq!(map.unit_of(there), Some(index(1)));
    assert_eq!(map.unit_of(at(0, 2, 0)), Some(index(0)));
    assert_eq!(
        map.unit_of(PciAddress::new(Segment(3), 0, 3, 0).unwrap()),
        None
    );
}

#[test]
fn more_units_than_numbers_are_refused() {
    let units: Vec<_> = (0..65)
        .map(|number| unit(number, 0, false, vec![]))
        .collect();
    assert!(matches!(
        Coverage::new(&machine(&[]), &table(units), &[]),
        Err(CoverageError::TooManyUnits { found: 65 })
    ));
}
