//! IORT nodes of the first revision, which machines of their time have: shorter than later ones, and whole.

#![cfg(not(hv_loom))]

use hv_core::{PciAddress, PhysAddr, Segment};
use hv_iommu::{FunctionKind, PciFunction, UnitIndex};
use hv_smmu::iort::{Defect, Iort, IortError, parse};
use hv_smmu::{Coverage, CoveragePolicy, StreamId};
use hv_tests::iort_build::{ITS, Map, Smmu, Table, map, single};

const BASE: u64 = 0x6410_0000;

/// A unit of that revision, with wires.
fn unit() -> Smmu {
    Smmu {
        revision: 0,
        ..Smmu::at(BASE)
    }
}

/// A machine with such a unit, whose mappings are these, and a host bridge behind it.
fn machine(smmu: Smmu, maps: &[Map]) -> Iort {
    let table = Table::new().its(&[0]);
    let node = table.next();
    let table = table
        .smmu(smmu, maps)
        .root(0, 1, &[map(0, 0xffff, 0x1_0000, node)]);
    parse(&table.finish()).unwrap()
}

/// Strict bring-up takes the machine, and its functions are behind the unit.
fn is_covered(iort: &Iort) {
    let device = PciAddress::from_requester(Segment(0), 0x10);
    let functions = [PciFunction::new(device, FunctionKind::Endpoint)];
    let coverage = Coverage::new(iort.describe().unwrap(), &functions).unwrap();
    coverage.check(CoveragePolicy::Strict).unwrap();
    let place = (UnitIndex::new(0).unwrap(), StreamId::new(0x1_0010));
    assert_eq!(coverage.unit_of(device), Some(place));
}

#[test]
fn bc13_a_unit_of_the_first_revision_covers_what_is_behind_it() {
    for maps in [&[][..], &[map(0, 0xffff, 0x2_0000, ITS)]] {
        let iort = machine(unit(), maps);
        assert_eq!(iort.findings, [], "{} mappings", maps.len());
        let [unit] = &iort.units[..] else {
            panic!("{iort}");
        };
        assert_eq!(unit.registers.start(), PhysAddr::new(BASE));
        assert_eq!(
            (unit.interrupts, unit.mappings.len()),
            ([106, 107, 109, 108], maps.len())
        );
        assert_eq!((unit.proximity, unit.own_messages), (None, None));
        is_covered(&iort);
    }
}

/// It has no field for a mapping of its own messages: none is for them, whatever its wires are.
#[test]
fn a_unit_of_the_first_revision_writes_no_messages() {
    let wireless = Smmu {
        interrupts: [0; 4],
        // The flags of later revisions mean nothing either.
        flags: 1 | 8,
        ..unit()
    };
    let iort = machine(wireless, &[map(0, 0xffff, 0x2_0000, ITS), single(7, ITS)]);
    assert_eq!(
        (iort.units[0].own_messages, iort.units[0].proximity),
        (None, None)
    );
    let [finding] = iort.findings[..] else {
        panic!("{:?}", iort.findings);
    };
    assert_eq!(finding.what, Defect::MappingForm);
    let iort = machine(wireless, &[map(0, 0xffff, 0x2_0000, ITS)]);
    assert_eq!(iort.findings, []);
    is_covered(&iort);
}

/// What belongs to later revisions is no part of it, and bytes that are no part are not passed over.
#[test]
fn a_unit_of_the_first_revision_that_is_longer_is_looked_at_to_its_end() {
    let body = |more: &[u8]| {
        let mut body = BASE.to_le_bytes().to_vec();
        body.extend([1, 0, 0, 0]);
        body.extend([0; 32]);
        body.extend(more);
        parse(&Table::new().its(&[0]).node(4, 0, &body, &[]).finish())
    };
    let iort = body(&[0; 8]).unwrap();
    assert_eq!((iort.findings.len(), iort.units.len()), (0, 1));
    let iort = body(&[0, 0, 0, 0, 1, 0, 0, 0]).unwrap();
    assert_eq!(iort.findings[0].what, Defect::UnaccountedBytes);
    // A later one without them is cut off.
    let table = Table::new().its(&[0]).node(4, 1, &[0; 44], &[]);
    let Err(IortError::Malformed(finding)) = parse(&table.finish()) else {
        panic!("taken");
    };
    assert_eq!(finding.what, Defect::NodeLength);
}

#[test]
fn counters_of_the_first_revision_have_one_page() {
    let table = Table::new().its(&[0]);
    let node = table.next();
    let table = table.smmu(unit(), &[map(0, 0xffff, 0x2_0000, ITS)]);
    let mut body = 0x6411_2000_u64.to_le_bytes().to_vec();
    body.extend(200_u32.to_le_bytes());
    body.extend(node.to_le_bytes());
    for maps in [&[][..], &[single(0x3_0000, ITS)]] {
        let table =
            table
                .clone()
                .node(5, 0, &body, maps)
                .root(0, 1, &[map(0, 0xffff, 0x1_0000, node)]);
        let iort = parse(&table.finish()).unwrap();
        assert_eq!(iort.findings, []);
        assert_eq!(iort.counters[0].interrupt, 200);
        is_covered(&iort);
    }
}
