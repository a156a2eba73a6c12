//! IORT tables of shapes that the samples lack: decoded as built, refused by name, and what they say of requesters.

#![cfg(not(hv_loom))]

use hv_core::{PciAddress, PhysAddr, Segment};
use hv_iommu::{FunctionKind, MessageSource, NotIsolated, PciFunction, ReservedKind, UnitIndex};
use hv_smmu::firmware::{LeafNotes, MessageWriter, Route, ServicesIndex};
use hv_smmu::iort::{Defect, Finding, Iort, IortError, NodeKind, parse};
use hv_smmu::spec::granule::Granule;
use hv_smmu::spec::quirks::Quirk;
use hv_smmu::{
    Coverage, CoverageError, CoveragePolicy, CoverageProblem, DeviceId, IdWindow, Regions, StreamId,
};
use hv_tests::iort_build::{ITS, Map, Smmu, Table, built_tables, map, samples, single};

fn built(name: &str) -> Iort {
    let (_, bytes) = built_tables()
        .into_iter()
        .find(|(built, _)| *built == name)
        .unwrap();
    let iort = parse(&bytes).unwrap();
    assert_eq!(iort.header.length as usize, bytes.len());
    iort
}

/// Mappings of a host bridge, given where the unit's node stands.
type Maps = fn(u32) -> Vec<Map>;

fn at(segment: u16, requester: u16) -> PciAddress {
    PciAddress::from_requester(Segment(segment), requester)
}

fn functions(ids: &[(u16, u16)]) -> Vec<PciFunction> {
    let function = |&(segment, id): &(u16, u16)| {
        let function = PciFunction::new(at(segment, id), FunctionKind::Endpoint);
        // Each is a device of its own.
        PciFunction {
            multi_function: false,
            ..function
        }
    };
    ids.iter().map(function).collect()
}

fn coverage(iort: &Iort, ids: &[(u16, u16)]) -> Coverage {
    Coverage::new(iort.describe().unwrap(), &functions(ids)).unwrap()
}

fn unit(number: usize) -> UnitIndex {
    UnitIndex::new(number).unwrap()
}

fn stream(number: u32) -> StreamId {
    StreamId::new(number)
}

#[test]
fn unaligned_nodes_of_every_kind_are_taken() {
    let iort = built("unaligned nodes of every kind");
    // The names are there so that this means something.
    let places: Vec<_> = iort
        .units
        .iter()
        .map(|unit| unit.node.place.offset % 4)
        .collect();
    assert!(places.iter().all(|&place| place != 0), "{places:?}");
    let harmless = |finding: &Finding| finding.what == Defect::OldSmmu;
    assert!(iort.findings.iter().all(harmless), "{:?}", iort.findings);
    assert_eq!(iort.findings.len(), 1);
    let [first, second] = &iort.units[..] else {
        panic!("{iort}");
    };
    assert!(first.coherent() && !second.coherent());
    assert_eq!(first.registers.pages().get(), 32);
    assert_eq!((first.proximity, second.proximity), (None, Some(5)));
    assert_eq!(second.own_messages.unwrap().output_base, 0x2_0000);
    // It is for none of the unit's streams.
    assert_eq!(second.mappings.len(), 1);
    assert_eq!(iort.its_groups[0].ids, [0, 7]);
    assert_eq!(iort.components[2].name, b"\\_SB.DEVSX");
    assert_eq!(iort.components[2].mappings.len(), 2);
    assert_eq!(iort.counters[0].base, PhysAddr::new(0x2b40_2000));
    assert_eq!(iort.reserved[1].ranges.len(), 2);
    assert_eq!((iort.old_units.len(), iort.wire_bridges.len()), (1, 1));
    let shown = iort.to_string();
    for word in [
        "ITS group",
        "SMMUv3",
        "root complex",
        "RMR",
        "PMCG",
        "IWB",
        "\\_SB.DEVSX",
    ] {
        assert!(shown.contains(word), "{word} is missing in:\n{shown}");
    }
}

#[test]
fn ids_travel_from_requesters_through_units_to_services() {
    let iort = built("unaligned nodes of every kind");
    let coverage = coverage(&iort, &[(0, 0x10), (0, 0x100), (1, 0x10), (1, 0x18)]);
    assert_eq!(coverage.problems(), []);
    coverage.check(CoveragePolicy::Strict).unwrap();
    let first = coverage.requester(at(0, 0x10)).unwrap();
    assert_eq!((first.unit, first.stream), (unit(0), stream(0x1_0010)));
    let writer = |device| {
        let services = ServicesIndex(0);
        let device = DeviceId::new(device);
        Some(MessageWriter { services, device })
    };
    assert_eq!(first.messages, writer(0x1_0010));
    assert!(first.limits.translation_requests && !first.limits.page_requests);
    // PASIDs are not forwarded there.
    assert_eq!(
        (first.limits.pasid_bits, first.limits.address_bits),
        (0, 48)
    );
    let second = coverage.requester(at(1, 0x10)).unwrap();
    assert_eq!((second.unit, second.stream), (unit(1), stream(0x10)));
    assert_eq!(second.messages, writer(0x1_0010));
    assert_eq!(coverage.unit_of(at(2, 0x10)), None);
    // One that comes later is known by its events, too; no function can be the last.
    let named = [0x18, 0x19, 1 << 30].map(|id| coverage.requester_of(unit(1), stream(id)));
    assert_eq!(named, [Some(at(1, 0x18)), Some(at(1, 0x19)), None]);
    let firmware = coverage.firmware();
    assert_eq!(firmware.units[1].own_messages, writer(0x2_0000));
    assert_eq!(firmware.units[0].leaf_notes, Some(LeafNotes::Nothing));
    assert_eq!(firmware.units[1].leaf_notes, Some(LeafNotes::Writes));
    assert_eq!(firmware.units[0].interrupts.event.unwrap().0, 106);
    assert_eq!(firmware.units[1].interrupts.event, None);
    assert!(firmware.devices[2].limits.may_stall);
    assert_eq!(firmware.devices[0].limits.pasid_bits, 20);
}

#[test]
fn services_without_a_base_have_no_doorbell_until_somebody_fills_it_in() {
    let iort = built("unaligned nodes of every kind");
    let mut firmware = iort.describe().unwrap();
    let functions = functions(&[(0, 0x10), (0, 0x11), (1, 0x10)]);
    let coverage = Coverage::new(firmware.clone(), &functions).unwrap();
    assert_eq!(coverage.doorbell(at(0, 0x10), Granule::Size4K), None);
    // Who they are is known all the same: two of them, behind two units, are one to the services.
    let source = |requester| coverage.message_source(requester);
    let id = 0x1_0010;
    let source_id = MessageSource { controller: 0, id };
    assert_eq!(source(at(0, 0x10)), Ok(source_id));
    assert_eq!(source(at(1, 0x10)), Ok(source_id));
    assert_ne!(source(at(0, 0x11)), Ok(source_id));
    // A unit that writes its own messages as that device is nobody's group.
    firmware.units[1].own_messages = Some(MessageWriter {
        services: ServicesIndex(0),
        device: DeviceId::new(id),
    });
    // From the MADT, by number.
    firmware.services[0].base = Some(PhysAddr::new(0x808_0000));
    let coverage = Coverage::new(firmware, &functions).unwrap();
    let requester = at(0, 0x10);
    let shared = NotIsolated::SharedOutside {
        requester,
        source_id,
    };
    assert_eq!(coverage.message_source(requester), Err(shared));
    let region = coverage.doorbell(requester, Granule::Size4K).unwrap();
    assert_eq!(region.range.start().as_u64(), 0x809_0000);
    assert_eq!(region.range.pages().get(), 1);
}

/// A device that is no PCI function goes through the unit too, and on to the services.
#[test]
fn a_stream_of_a_platform_device_is_a_sender_as_well() {
    let iort = built("unaligned nodes of every kind");
    let mut firmware = iort.describe().unwrap();
    // The second host's requesters have their ids at the services too, where those of the devices are already.
    firmware.units[1].messages.clear();
    firmware.hosts[1].messages = vec![Route {
        window: IdWindow::new(0, 0xffff, 0),
        to: ServicesIndex(0),
    }];
    let ids = [0x6fff, 0x7000, 0x7001, 0x7002];
    let coverage = Coverage::new(firmware, &functions(&ids.map(|id| (1, id)))).unwrap();
    for (id, alone) in ids.into_iter().zip([true, false, false, true]) {
        let requester = at(1, id);
        let source_id = MessageSource {
            controller: 0,
            id: id.into(),
        };
        let shared = NotIsolated::SharedOutside {
            requester,
            source_id,
        };
        let expected = if alone { Ok(source_id) } else { Err(shared) };
        assert_eq!(coverage.message_source(requester), expected);
    }
}

#[test]
fn bc06_reserved_memory_is_for_its_streams() {
    let iort = built("unaligned nodes of every kind");
    let firmware = iort.describe().unwrap();
    let regions = Regions::new(&firmware).unwrap();
    let of = |unit_number, number| {
        let found = regions.of(unit(unit_number), stream(number));
        found
            .map(|region| {
                (
                    region.range.start().as_u64(),
                    region.range.pages().get(),
                    region.kind,
                )
            })
            .collect::<Vec<_>>()
    };
    let pinned = (0x8800_0000, 0x200, ReservedKind::Pinned);
    assert_eq!(of(0, 0x1_0010), [pinned]);
    assert_eq!(of(0, 0x1_0011), [pinned]);
    assert_eq!(of(0, 0x1_0012), []);
    assert_eq!(of(1, 0x1_0010), []);
    let relaxable = |start| (start, 0x10, ReservedKind::Relaxable);
    assert_eq!(
        of(1, 0x20),
        [relaxable(0x9000_0000), relaxable(0x9800_0000)]
    );
    assert!(regions.is_pinned(unit(0), stream(0x1_0010)));
    assert!(!regions.is_pinned(unit(1), stream(0x20)));
}

#[test]
fn bc13_a_count_that_is_one_too_many_gives_way_to_the_next_mapping() {
    let iort = built("counts that are one too many");
    assert_eq!(iort.findings, []);
    let coverage = coverage(&iort, &[(0, 0xff), (0, 0x100), (0, 0x200)]);
    assert_eq!(coverage.problems(), []);
    assert_eq!(coverage.unit_of(at(0, 0xff)), Some((unit(0), stream(0xff))));
    assert_eq!(
        coverage.unit_of(at(0, 0x100)),
        Some((unit(1), stream(0x4000)))
    );
    assert_eq!(
        coverage.unit_of(at(0, 0x200)),
        Some((unit(1), stream(0x4100)))
    );
    assert_eq!(coverage.unit_of(at(0, 0x201)), None);
}

#[test]
fn emulators_tables_cover_as_they_say() {
    for sample in samples() {
        let iort = parse(&sample.bytes).unwrap();
        let name = sample.path.display().to_string();
        for root in &iort.root_complexes {
            for mapping in &root.mappings {
                let (first, last) = mapping.window().input().unwrap();
                let ids = [first, last].map(|id| (0, id as u16));
                let coverage = coverage(&iort, &ids);
                for (_, id) in ids {
                    let through = mapping.output.node == NodeKind::SmmuV3;
                    let expected = through.then(|| (unit(0), stream(id.into())));
                    assert_eq!(coverage.unit_of(at(0, id)), expected, "{name}: {id:#x}");
                }
                let refused = coverage.check(CoveragePolicy::Strict).is_err();
                assert_eq!(refused, mapping.output.node == NodeKind::ItsGroup, "{name}");
            }
        }
    }
}

/// The one finding that stops a table.
fn refused(table: Table) -> (NodeKind, Defect, u64) {
    match parse(&table.finish()) {
        Err(IortError::Malformed(finding)) => (finding.place.node, finding.what, finding.found),
        other => panic!("expected an error, found {other:?}"),
    }
}

/// The one finding of a table that is taken.
fn noted(table: Table) -> (Iort, Defect) {
    let iort = parse(&table.finish()).unwrap();
    let [finding] = &iort.findings[..] else {
        panic!("expected one finding, found {:?}", iort.findings);
    };
    let what = finding.what;
    (iort, what)
}

#[test]
fn what_could_lose_a_unit_is_an_error_that_names_it() {
    let with = |smmu| Table::new().its(&[0]).smmu(smmu, &[]);
    for base in [0, u64::MAX, 0x905_1000] {
        let found = refused(with(Smmu::at(base)));
        assert_eq!(found, (NodeKind::SmmuV3, Defect::RegisterBase, base));
    }
    for second in [0x905_0000, 0x906_0000, 0x904_0000] {
        let table = with(Smmu::at(0x905_0000)).smmu(Smmu::at(second), &[]);
        let found = refused(table);
        assert_eq!(found, (NodeKind::SmmuV3, Defect::DuplicateBase, second));
    }
    // A unit whose registers are one page leaves the next one to another.
    let one_page = Smmu {
        model: 2,
        ..Smmu::at(0x905_0000)
    };
    let iort = parse(&with(one_page).smmu(Smmu::at(0x906_0000), &[]).finish()).unwrap();
    let firmware = iort.describe().unwrap();
    assert!(firmware.units[0].quirks.has(Quirk::OnePage));
    assert!(!firmware.units[1].quirks.has(Quirk::OnePage));
    let short = Table::new().node(4, 1, &[0; 51], &[]);
    assert_eq!(refused(short).1, Defect::NodeLength);
    let mut bytes = with(Smmu::at(0x905_0000)).finish();
    bytes[..4].copy_from_slice(b"DMAR");
    assert!(
        matches!(parse(&bytes), Err(IortError::Malformed(what)) if what.what == Defect::Signature)
    );
}

#[test]
fn a_damaged_mapping_takes_its_nodes_requesters_from_everybody() {
    let table = |maps: Maps| {
        let table = Table::new().its(&[0]);
        let smmu = table.next();
        let table = table.smmu(Smmu::at(0x905_0000), &[]);
        table.root(0, 0, &maps(smmu))
    };
    let cases: [(Maps, Defect); 6] = [
        // Out of the table, between nodes, to itself.
        (
            |smmu| vec![map(0, 0xff, 0, smmu), map(0x100, 0xff, 0, 0xffff_0000)],
            Defect::Reference,
        ),
        (
            |smmu| vec![map(0, 0xff, 0, smmu), map(0x100, 0xff, 0, smmu + 4)],
            Defect::Reference,
        ),
        (
            |smmu| vec![map(0, 0xff, 0, smmu), map(0x100, 0xff, 0, smmu + 68)],
            Defect::ReferenceKind,
        ),
        (
            |smmu| vec![map(0, 0xff, 0, smmu), map(u32::MAX, 1, 0, smmu)],
            Defect::MappingRange,
        ),
        (
            |smmu| vec![map(0, 0xff, 0, smmu), map(0x100, 0xff, u32::MAX, smmu)],
            Defect::MappingRange,
        ),
        (
            |smmu| {
                let odd = Map {
                    flags: 2,
                    ..map(0x100, 0xff, 0, smmu)
                };
                vec![map(0, 0xff, 0, smmu), odd]
            },
            Defect::MappingForm,
        ),
    ];
    for (maps, expected) in cases {
        let (iort, what) = noted(table(maps));
        assert_eq!(what, expected);
        assert_eq!(iort.root_complexes[0].mappings, []);
        let coverage = coverage(&iort, &[(0, 0x10)]);
        assert_eq!(coverage.unit_of(at(0, 0x10)), None);
        let refused = coverage.check(CoveragePolicy::Strict).unwrap_err();
        let doubtful = CoverageProblem::Doubtful(iort.findings[0].into());
        assert_eq!(refused, CoverageError::Refused(doubtful));
        coverage.check(CoveragePolicy::Lenient).unwrap();
    }
}

#[test]
fn cycles_cannot_be_walked() {
    // Units that lead to each other and to themselves, services that lead back, a host bridge behind a unit.
    let start = Table::new().its(&[0]);
    let first = start.next();
    let second = first + 16 + 52 + 20;
    let root = second + 16 + 52 + 20;
    for (one, other) in [(second, first), (first, second), (root, root)] {
        let table = start
            .clone()
            .smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, one)])
            .smmu(Smmu::at(0x907_0000), &[map(0, 0xffff, 0, other)])
            .root(0, 0, &[map(0, 0xffff, 0, first)]);
        let iort = parse(&table.finish()).unwrap();
        let kinds: Vec<_> = iort.findings.iter().map(|finding| finding.what).collect();
        assert_eq!(kinds, [Defect::ReferenceKind; 2]);
        let coverage = coverage(&iort, &[(0, 8)]);
        // The requester is known, its messages are not.
        let requester = coverage.requester(at(0, 8)).unwrap();
        assert_eq!((requester.unit, requester.messages), (unit(0), None));
        assert!(coverage.check(CoveragePolicy::Strict).is_err());
    }
    let (_, what) = noted(Table::new().node(0, 0, &[0; 4], &[map(0, 0, 0, 48)]));
    assert_eq!(what, Defect::MappingForm);
}

#[test]
fn bc13_overlapping_mappings_leave_their_ids_to_nobody() {
    let table = Table::new().its(&[0]);
    let one = table.next();
    let table = table.smmu(Smmu::at(0x905_0000), &[]);
    let two = table.next();
    let table = table.smmu(Smmu::at(0x907_0000), &[]);
    let maps = [map(0, 0x1ff, 0, one), map(0x100, 0x1ff, 0, two)];
    let (iort, what) = noted(table.clone().root(0, 0, &maps));
    assert_eq!(what, Defect::MappingOverlap);
    let coverage1 = coverage(&iort, &[(0, 0xff), (0, 0x180), (0, 0x2fe)]);
    assert_eq!(
        coverage1.unit_of(at(0, 0xff)),
        Some((unit(0), stream(0xff)))
    );
    assert_eq!(coverage1.unit_of(at(0, 0x180)), None);
    assert_eq!(
        coverage1.unit_of(at(0, 0x2fe)),
        Some((unit(1), stream(0x1fe)))
    );
    let conflict = |problem: &CoverageProblem| matches!(problem, CoverageProblem::Conflict { requester, .. } if *requester == at(0, 0x180));
    assert!(coverage1.problems().iter().any(conflict));
    assert!(coverage1.check(CoveragePolicy::Strict).is_err());
    // Two host bridges of one segment that disagree, which no node shows by itself.
    let roots = table
        .root(0, 0, &[map(0, 0xff, 0, one)])
        .root(0, 0, &[map(0, 0xff, 0, two)]);
    let iort = parse(&roots.finish()).unwrap();
    assert_eq!(iort.findings, []);
    let coverage2 = coverage(&iort, &[(0, 8)]);
    assert_eq!(coverage2.unit_of(at(0, 8)), None);
    let problem = coverage2.problems()[0];
    assert!(
        problem.to_string().contains("stream 0x8 of unit 1"),
        "{problem}"
    );
}

#[test]
fn bc05_requesters_of_one_stream_are_claimed_together_or_not_at_all() {
    let table = |maps: Maps| {
        let table = Table::new().its(&[0]);
        let smmu = table.next();
        let table = table.smmu(Smmu::at(0x905_0000), &[]);
        parse(&table.root(0, 0, &maps(smmu)).finish()).unwrap()
    };
    let one = table(|smmu| vec![single(7, smmu)]);
    // Two devices that are apart in every other way.
    let apart = coverage(&one, &[(0, 8), (0, 16)]);
    assert_eq!(
        (apart.unit_of(at(0, 8)), apart.unit_of(at(0, 16))),
        (None, None)
    );
    let aliases: Vec<_> = apart.aliases_of(at(0, 8)).collect();
    assert_eq!(aliases, [at(0, 8), at(0, 16)]);
    let shared = CoverageProblem::SharedStream {
        requester: at(0, 8),
        other: at(0, 16),
        unit: unit(0),
        stream: stream(7),
    };
    assert_eq!(apart.problems(), [shared]);
    // Two functions of one device that are of one group anyway.
    let mut together = functions(&[(0, 8), (0, 9)]);
    for function in &mut together {
        function.multi_function = true;
    }
    let together = Coverage::new(one.describe().unwrap(), &together).unwrap();
    assert_eq!(together.problems(), []);
    assert_eq!(together.unit_of(at(0, 9)), Some((unit(0), stream(7))));
    assert_eq!(together.aliases_of(at(0, 9)).count(), 2);
    // An id that nobody listed is not told from those who are.
    assert_eq!(together.unit_of(at(0, 0x55)), None);
    // Alone, it may be asked for: whoever enumerates functions decides what there is.
    let alone = table(|smmu| vec![map(0, 0xff, 0, smmu)]);
    assert_eq!(
        coverage(&alone, &[]).unit_of(at(0, 0x55)),
        Some((unit(0), stream(0x55)))
    );
}

#[test]
fn a_stream_that_a_platform_device_has_too_is_nobodys() {
    let table = Table::new().its(&[0]);
    let smmu = table.next();
    let table = table
        .smmu(Smmu::at(0x905_0000), &[])
        .component(0, "\\_SB.SATA", &[single(0x10, smmu)])
        .root(0, 0, &[map(0, 0xff, 0, smmu)]);
    let iort = parse(&table.finish()).unwrap();
    let coverage = coverage(&iort, &[(0, 8), (0, 0x10)]);
    assert_eq!(coverage.unit_of(at(0, 8)), Some((unit(0), stream(8))));
    assert_eq!(coverage.unit_of(at(0, 0x10)), None);
    assert!(matches!(
        coverage.problems(),
        [CoverageProblem::SharedWithPlatform { requester, .. }] if *requester == at(0, 0x10)
    ));
}

#[test]
fn bc13_requesters_that_go_past_the_units_are_nobodys() {
    let iort = built("as QEMU's virt board");
    let coverage1 = coverage(&iort, &[(0, 8), (0, 0x100), (1, 8)]);
    assert_eq!(coverage1.unit_of(at(0, 8)), Some((unit(0), stream(8))));
    assert_eq!(
        (coverage1.unit_of(at(0, 0x100)), coverage1.unit_of(at(1, 8))),
        (None, None)
    );
    let problems = coverage1.problems();
    assert_eq!(problems.len(), 2);
    assert!(problems.contains(&CoverageProblem::Bypasses {
        requester: at(0, 0x100)
    }));
    assert!(problems.contains(&CoverageProblem::Uncovered {
        requester: at(1, 8)
    }));
    let table = Table::new().its(&[0]);
    let old = table.next();
    let table = table
        .old_smmu(0x2b60_0000)
        .root(0, 0, &[map(0, 0xff, 0, old)]);
    let (iort, what) = noted(table);
    assert_eq!(what, Defect::OldSmmu);
    let coverage2 = coverage(&iort, &[(0, 8)]);
    assert_eq!(
        coverage2.problems(),
        [CoverageProblem::Foreign {
            requester: at(0, 8)
        }]
    );
}

#[test]
fn the_mapping_of_a_units_own_messages_is_found_by_its_revision() {
    let own = |smmu: Smmu, maps: &[Map]| {
        let table = Table::new().its(&[0]).smmu(smmu, maps);
        let iort = parse(&table.finish()).unwrap();
        let unit = &iort.units[0];
        let own = unit.own_messages.map(|own| own.output_base);
        (own, unit.mappings.len(), iort.findings.len())
    };
    let maps = [map(0, 0xffff, 0, ITS), single(0x2_0000, ITS)];
    let with = |revision, flags, interrupts, device_id_mapping| Smmu {
        revision,
        flags,
        interrupts,
        device_id_mapping,
        ..Smmu::at(0x905_0000)
    };
    // Before revision 5: unless all interrupts are wires.
    assert_eq!(
        own(with(4, 1, [1, 0, 3, 4], 1), &maps),
        (Some(0x2_0000), 1, 0)
    );
    // With wires only, a single mapping is for nothing.
    assert_eq!(own(with(4, 1, [1, 2, 3, 4], 1), &maps), (None, 1, 1));
    assert_eq!(own(with(4, 1, [1, 2, 3, 4], 0), &maps[..1]), (None, 1, 0));
    // From revision 5 on a flag says so.
    assert_eq!(
        own(with(5, 0x10, [1, 2, 3, 4], 1), &maps),
        (Some(0x2_0000), 1, 0)
    );
    assert_eq!(own(with(5, 1, [0, 0, 0, 0], 0), &maps[..1]), (None, 1, 0));
    assert_eq!(own(with(5, 0x10, [0; 4], 2), &maps), (None, 0, 2));
}

#[test]
fn units_that_share_registers_are_refused_however_they_were_told() {
    let iort = built("as QEMU's virt board");
    let mut firmware = iort.describe().unwrap();
    firmware.units.push(firmware.units[0].clone());
    let coverage = Coverage::new(firmware, &functions(&[(0, 8)])).unwrap();
    assert!(matches!(
        coverage.problems(),
        [CoverageProblem::SharedRegisters { .. }]
    ));
    assert!(coverage.check(CoveragePolicy::Strict).is_err());
}

#[test]
fn odd_reserved_ranges_are_named_and_widened() {
    let table = |flags, ranges: &[(u64, u64)]| {
        let table = Table::new().its(&[0]);
        let smmu = table.next();
        let table = table.smmu(Smmu::at(0x905_0000), &[]);
        table.reserved(flags, ranges, &[single(1, smmu)])
    };
    let (iort, what) = noted(table(0, &[(0x8000_0800, 0x1000)]));
    assert_eq!(what, Defect::RegionAlignment);
    let range = iort.reserved[0].ranges[0];
    assert_eq!(
        (range.start().as_u64(), range.pages().get()),
        (0x8000_0000, 2)
    );
    for odd in [(0x8000_0000, 0), (u64::MAX - 0xfff, 0x2000)] {
        let (iort, what) = noted(table(0, &[odd, (0x9000_0000, 0x1000)]));
        assert_eq!(what, Defect::RegionRange);
        assert_eq!(iort.reserved[0].ranges.len(), 1);
    }
    let top = parse(&table(0, &[(u64::MAX - 0xfff, 0x1000)]).finish()).unwrap();
    assert_eq!(top.findings, []);
}
