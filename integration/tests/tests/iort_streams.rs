//! Streams that an IORT gives to devices of the namespace and to reserved memory, mappings that are for nobody, and the
//! way of a message's services from the MADT to a doorbell.

use hv_core::{PciAddress, PhysAddr, Segment};
use hv_iommu::{
    BusRange, Coherency, FunctionKind, MessageSource, NotIsolated, PciFunction, UnitIndex,
};
use hv_smmu::firmware::{Firmware, RequesterLimits};
use hv_smmu::iort::{Defect, parse};
use hv_smmu::madt::ServicesPlace;
use hv_smmu::spec::granule::Granule;
use hv_smmu::{Coverage, CoveragePolicy, Regions, StreamId};
use hv_tests::iort_build::{ITS, Map, Smmu, Table, map, single};

fn unit(number: usize) -> UnitIndex {
    UnitIndex::new(number).unwrap()
}

fn described(table: Table) -> Firmware {
    let iort = parse(&table.finish()).unwrap();
    assert_eq!(iort.findings, []);
    iort.describe().unwrap()
}

/// Firmware that stored how many: the second mapping's first id is the last one too many of the first.
fn wrong(smmu: u32) -> [Map; 2] {
    [map(0, 4, 0x100, smmu), map(4, 4, 0x200, smmu)]
}

/// Shows: bc13.
#[test]
fn bc13_a_stream_too_many_of_one_mapping_of_a_device_gives_way_to_the_next() {
    let table = Table::new().its(&[0]);
    let smmu = table.next();
    let table = table.smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, ITS)]);
    let firmware = described(table.component(0, "\\_SB.DEV0", &wrong(smmu)));
    let [device] = &firmware.devices[..] else {
        panic!("{:?}", firmware.devices);
    };
    let has = |number| device.has_stream(unit(0), StreamId::new(number));
    assert!(has(0x100) && has(0x103) && has(0x200));
    assert!(!has(0x104), "the next mapping has that id");
    // Nobody else has the last of all: it may be one of the device's.
    assert!(has(0x204) && !has(0x205));
}

#[test]
fn bc06_a_region_is_for_one_stream_too_many_only_where_no_other_mapping_has_it() {
    let table = Table::new().its(&[0]);
    let smmu = table.next();
    let table = table.smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, ITS)]);
    let firmware = described(table.reserved(0, &[(0x8800_0000, 0x1000)], &wrong(smmu)));
    let regions = Regions::new(&firmware).unwrap();
    let pinned = |number| regions.is_pinned(unit(0), StreamId::new(number));
    assert!(pinned(0x100) && pinned(0x103) && pinned(0x200) && pinned(0x203));
    assert!(!pinned(0x104));
    // What may be the device's last stream keeps its region.
    assert!(pinned(0x204) && !pinned(0x205));
}

/// Interrupts by wires make it useless, not wrong: the node's other mappings are kept, and a strict policy goes on.
#[test]
fn a_mapping_for_messages_that_the_unit_does_not_write_is_noted_alone() {
    let maps = [map(0, 0xffff, 0, ITS), single(0x2_0000, ITS)];
    let table = |smmu| Table::new().its(&[0]).smmu(smmu, &maps).finish();
    let wired = Smmu {
        interrupts: [1, 2, 3, 4],
        device_id_mapping: 1,
        ..Smmu::at(0x905_0000)
    };
    let iort = parse(&table(wired)).unwrap();
    let [finding] = iort.findings[..] else {
        panic!("{:?}", iort.findings);
    };
    assert_eq!(finding.what, Defect::UnusedMapping);
    assert!(finding.is_harmless() && !finding.to_string().is_empty());
    assert_eq!(iort.units[0].own_messages, None);
    assert_eq!(iort.units[0].mappings.len(), 1);
    // At another place it is still not understood.
    let elsewhere = Smmu {
        device_id_mapping: 0,
        ..wired
    };
    let iort = parse(&table(elsewhere)).unwrap();
    assert_eq!(iort.findings[0].what, Defect::MappingForm);
    assert!(!iort.findings[0].is_harmless() && iort.units[0].mappings.is_empty());
}

#[test]
fn services_that_the_madt_places_have_doorbells() {
    let table = Table::new().its(&[3]);
    let smmu = table.next();
    let table = table
        .smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, ITS)])
        .root(0, 0, &[map(0, 0xffff, 0, smmu)]);
    let mut firmware = described(table);
    let device = PciAddress::from_requester(Segment(0), 0x10);
    let functions = [PciFunction::new(device, FunctionKind::Endpoint)];
    let doorbell = |firmware: &Firmware| {
        let coverage = Coverage::new(firmware.clone(), &functions).unwrap();
        coverage.check(CoveragePolicy::Strict).unwrap();
        coverage.doorbell(device, Granule::Size4K)
    };
    assert_eq!(doorbell(&firmware), None);
    let place = |number, base| ServicesPlace {
        number,
        base: PhysAddr::new(base),
    };
    assert_eq!(firmware.place_services(&[place(4, 0x70_0000)]), 0);
    assert_eq!(doorbell(&firmware), None);
    let places = [place(4, 0x70_0000), place(3, 0x808_0000)];
    assert_eq!(firmware.place_services(&places), 1);
    let region = doorbell(&firmware).unwrap();
    assert_eq!(region.range.start().as_u64(), 0x809_0000);
}

/// A host bridge with one stream for all: the port above a device has the lower id, and is bound to nothing.
#[test]
fn bc19_faults_of_a_shared_stream_are_those_of_who_can_be_bound() {
    let table = Table::new().its(&[0]);
    let smmu = table.next();
    let table = table.smmu(Smmu::at(0x905_0000), &[]);
    let firmware = described(table.root(0, 0, &[single(7, smmu)]));
    let behind = BusRange {
        secondary: 1,
        subordinate: 1,
    };
    let at = |id| PciAddress::from_requester(Segment(0), id);
    let port = PciFunction::new(at(0x08), FunctionKind::RootPort(behind));
    let device = PciFunction::new(at(0x100), FunctionKind::Endpoint);
    let alone = |function| PciFunction {
        multi_function: false,
        ..function
    };
    let coverage = Coverage::new(firmware, &[port, device].map(alone)).unwrap();
    let place = (unit(0), StreamId::new(7));
    assert_eq!(coverage.unit_of(at(0x100)), Some(place));
    let (unit, stream) = place;
    assert_eq!(coverage.requester_of(unit, stream), Some(at(0x100)));
}

/// Two host bridges whose devices write to the services of two nodes, and the units' own messages.
fn two_services(first: &[u32], second: &[u32], own: bool) -> Coverage {
    let table = Table::new().its(first);
    let other = table.next();
    let table = table.its(second);
    let smmu = table.next();
    let unit = Smmu {
        interrupts: [0; 4],
        device_id_mapping: 0,
        ..Smmu::at(0x905_0000)
    };
    let maps = [
        single(if own { 0x10 } else { 0x999 }, other),
        map(0, 0xffff, 0, ITS),
    ];
    let table = table.smmu(unit, &maps);
    let plain = table.next();
    let table = table
        .smmu(Smmu::at(0x907_0000), &[map(0, 0xffff, 0, other)])
        .root(0, 0, &[map(0, 0xffff, 0, smmu)])
        .root(1, 0, &[map(0, 0xffff, 0, plain)]);
    let functions = [0, 1].map(|segment| {
        let at = PciAddress::from_requester(Segment(segment), 0x10);
        PciFunction::new(at, FunctionKind::Endpoint)
    });
    Coverage::new(described(table), &functions).unwrap()
}

/// Who a device writes messages as is one of an ITS's writers. Which node of the table names that ITS tells nobody apart.
#[test]
fn bc10_two_nodes_of_one_its_do_not_hide_that_two_devices_are_one_writer() {
    let at = |segment| PciAddress::from_requester(Segment(segment), 0x10);
    let senders = |first: &[u32], second: &[u32]| {
        let coverage = two_services(first, second, false);
        [0, 1].map(|segment| coverage.message_source(at(segment)).unwrap())
    };
    let is_one = |first: &[u32], second: &[u32]| {
        let [one, other] = senders(first, second);
        one == other
    };
    assert!(is_one(&[3], &[3]));
    assert!(is_one(&[3, 4], &[4]) && is_one(&[4], &[3, 4]) && is_one(&[3, 4], &[5, 4]));
    assert!(!is_one(&[3], &[4]) && !is_one(&[3, 4], &[5, 6]));
    // The unit's own messages are a writer's as well.
    let of = |second: &[u32], own| two_services(&[3], second, own).message_source(at(0));
    assert!(of(&[3], false).is_ok() && of(&[4], true).is_ok());
    let shared = of(&[3], true);
    assert!(
        matches!(shared, Err(NotIsolated::SharedOutside { .. })),
        "{shared:?}"
    );
}

/// A root complex is mapped to an ITS at once and through the SMMU: which of its two ids a device has there, nobody knows.
#[test]
fn bc10_a_device_that_is_told_twice_may_be_either_sender() {
    let table = Table::new().its(&[3]);
    let smmu = table.next();
    let maps = [map(0, 0xffff, 0, smmu), map(0x10, 0, 0x20, ITS)];
    let table = table
        .smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, ITS)])
        .root(0, 0, &maps);
    let at = |id| PciAddress::from_requester(Segment(0), id);
    let functions = [0x10, 0x20, 0x30].map(|id| PciFunction::new(at(id), FunctionKind::Endpoint));
    let iort = parse(&table.finish()).unwrap();
    let found: Vec<_> = iort.findings.iter().map(|finding| finding.what).collect();
    assert_eq!(found, [Defect::MappingOverlap]);
    let coverage = Coverage::new(iort.describe().unwrap(), &functions).unwrap();
    let source = |id| MessageSource { controller: 0, id };
    let requester = at(0x10);
    let untold = NotIsolated::NotTold { requester };
    assert_eq!(coverage.message_source(requester), Err(untold));
    assert_eq!(coverage.message_source(at(0x20)), Ok(source(0x20)));
    let may_be = |of| coverage.may_be_source(requester, of);
    assert!(may_be(source(0x10)) && may_be(source(0x20)));
    assert!(!may_be(source(0x30)));
    let elsewhere = MessageSource {
        controller: 1,
        id: 0x20,
    };
    assert!(!may_be(elsewhere));
    assert!(!coverage.may_be_source(at(0x30), source(0x20)));
}

/// The CCA of root complexes and named components; a path that is coherent (CPM) does not make their devices so.
#[test]
fn devices_are_coherent_where_the_table_says_so() {
    let table = Table::new().its(&[0]);
    let smmu = table.next();
    let mut table = table.smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, ITS)]);
    for (segment, (cca, flags)) in (0..).zip([(1_u32, 3), (0, 3), (0, 0), (2, 3)]) {
        let mut body = cca.to_le_bytes().to_vec();
        body.extend([0, 0, 0, flags, 0, 0, 0, 0]);
        body.extend(u32::to_le_bytes(segment));
        body.extend([48, 0, 0, 0]);
        let mut device = vec![0; 4];
        device.extend(cca.to_le_bytes());
        device.extend([0, 0, 0, flags, 40]);
        device.extend(b"\\_SB.DEV\0");
        table = table
            .node(2, 4, &body, &[map(0, 0xff, segment << 8, smmu)])
            .node(1, 4, &device, &[single(0x8000 + segment, smmu)]);
    }
    let firmware = described(table);
    let is_coherent = |limits: &RequesterLimits| limits.coherency == Coherency::Coherent;
    let hosts: Vec<_> = firmware
        .hosts
        .iter()
        .map(|host| is_coherent(&host.limits))
        .collect();
    let devices = firmware.devices.iter();
    let devices: Vec<_> = devices.map(|device| is_coherent(&device.limits)).collect();
    assert_eq!(
        (&hosts[..], &devices[..]),
        (&[true, false, false, false][..], &hosts[..])
    );
}
