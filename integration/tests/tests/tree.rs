//! Device trees: what they say of SMMUs and requesters, as built, damaged, and as an emulator has it.

#![cfg(not(hv_loom))]

use hv_core::{PciAddress, PhysAddr, Segment};
use hv_iommu::{FunctionKind, MessageSource, NotIsolated, PciFunction, ReservedKind, UnitIndex};
use hv_smmu::device_tree::{Defect, TreeError, parse};
use hv_smmu::firmware::{
    Firmware, FirmwareFinding, InterruptId, MessageWriter, RequestTarget, ServicesIndex,
};
use hv_smmu::spec::granule::Granule;
use hv_smmu::spec::quirks::Quirk;
use hv_smmu::{Coverage, CoveragePolicy, CoverageProblem, DeviceId, StreamId};
use hv_tests::tree_build::{Tree, virt};
use proptest::prelude::*;

fn at(segment: u16, requester: u16) -> PciAddress {
    PciAddress::from_requester(Segment(segment), requester)
}

fn coverage(firmware: &Firmware, ids: &[(u16, u16)]) -> Coverage {
    let function = |&(segment, id): &(u16, u16)| PciFunction {
        multi_function: false,
        ..PciFunction::new(at(segment, id), FunctionKind::Endpoint)
    };
    let functions: Vec<_> = ids.iter().map(function).collect();
    Coverage::new(firmware.clone(), &functions).unwrap()
}

fn place(unit: usize, stream: u32) -> Option<(UnitIndex, StreamId)> {
    Some((UnitIndex::new(unit).unwrap(), StreamId::new(stream)))
}

fn read(tree: Tree) -> Firmware {
    parse(&tree.finish()).unwrap()
}

/// The one finding of a tree that is taken.
fn noted(firmware: &Firmware) -> Defect {
    match firmware.findings[..] {
        [FirmwareFinding::Tree(finding)] => finding.what,
        ref other => panic!("expected one finding, found {other:?}"),
    }
}

fn refused(tree: Tree) -> Defect {
    match parse(&tree.finish()) {
        Err(TreeError::Malformed(finding)) => finding.what,
        other => panic!("expected an error, found {other:?}"),
    }
}

#[test]
fn an_emulators_tree_says_what_its_board_has() {
    let firmware = read(virt());
    assert_eq!(firmware.findings, []);
    let [unit] = &firmware.units[..] else {
        panic!("{firmware:?}");
    };
    assert_eq!(unit.registers.start(), PhysAddr::new(0x905_0000));
    assert_eq!(unit.registers.pages().get(), 32);
    assert!(unit.coherent);
    assert_eq!(unit.leaf_notes, None);
    let wires = unit.interrupts;
    let wires = [
        wires.event,
        wires.page_request,
        wires.sync,
        wires.global_error,
    ];
    assert_eq!(
        wires,
        [106, 107, 108, 109].map(|wire| Some(InterruptId(wire)))
    );
    assert_eq!(unit.quirks.iter().count(), 0);
    let coverage = coverage(&firmware, &[(0, 8), (0, 0xffff)]);
    coverage.check(CoveragePolicy::Strict).unwrap();
    assert_eq!(coverage.unit_of(at(0, 8)), place(0, 8));
    assert_eq!(coverage.unit_of(at(0, 0xffff)), place(0, 0xffff));
    assert_eq!(coverage.unit_of(at(1, 8)), None);
    let services = ServicesIndex(0);
    let device = DeviceId::new(8);
    let messages = coverage.requester(at(0, 8)).unwrap().messages;
    assert_eq!(messages, Some(MessageWriter { services, device }));
    assert_eq!(firmware.services[0].base, Some(PhysAddr::new(0x808_0000)));
}

#[test]
fn a_doorbell_is_the_page_of_the_services_that_take_a_devices_messages() {
    let coverage = coverage(&read(virt()), &[(0, 8)]);
    let pages = |granule| {
        let region = coverage.doorbell(at(0, 8), granule).unwrap();
        assert_eq!(region.kind, ReservedKind::Doorbell);
        (region.range.start().as_u64(), region.range.pages().get())
    };
    assert_eq!(pages(Granule::Size4K), (0x809_0000, 1));
    assert_eq!(pages(Granule::Size16K), (0x809_0000, 4));
    assert_eq!(pages(Granule::Size64K), (0x809_0000, 16));
    // Whom no unit covers.
    assert_eq!(coverage.doorbell(at(1, 8), Granule::Size4K), None);
}

/// The tree of the emulator's board, whose host bridge has `properties` about messages.
fn messages(properties: impl FnOnce(Tree) -> Tree) -> Tree {
    let tree = Tree::new().its(0x8003, 0x808_0000);
    let tree = tree
        .begin("v2m@8020000")
        .text("compatible", "arm,gic-v2m-frame")
        .cells("reg", &[0, 0x802_0000, 0, 0x1000])
        .cells("phandle", &[0x8002])
        .end()
        .smmu(0x8004, 0x905_0000)
        .end();
    let host = tree.host(0x40_1000_0000);
    properties(host.cells("iommu-map", &[0, 0x8004, 0, 0x1_0000])).end()
}

#[test]
fn services_tell_writers_apart_by_their_device_ids_where_firmware_says_who_they_are() {
    let source = |tree: Tree| coverage(&read(tree), &[(0, 8)]).message_source(at(0, 8));
    let requester = at(0, 8);
    let told = |id| Ok(MessageSource { controller: 0, id });
    let mapped = |tree: Tree| tree.cells("msi-map", &[0, 0x8003, 0x100, 0x1_0000]);
    assert_eq!(source(messages(mapped)), told(0x108));
    assert_eq!(
        source(messages(|tree| tree.cells("msi-parent", &[0x8003]))),
        told(8)
    );
    // Nobody says who it is; what takes its messages takes anybody's.
    let untold = NotIsolated::NotTold { requester };
    assert_eq!(source(messages(|tree| tree)), Err(untold));
    let anybodys = messages(|tree| tree.cells("msi-parent", &[0x8002]));
    let firmware = read(anybodys.clone());
    assert!(!firmware.services[0].tell_writers_apart);
    assert_eq!(
        source(anybodys),
        Err(NotIsolated::NotRemapped { requester })
    );
    let doorbell = coverage(&firmware, &[(0, 8)]).doorbell(requester, Granule::Size4K);
    assert_eq!(doorbell, None, "no ITS, so its page is not known");
    // A unit writes its own messages as the same device; a platform device does.
    let shared = NotIsolated::SharedOutside {
        requester,
        source_id: told(0x108).unwrap(),
    };
    let with = |parent: [u32; 2]| {
        messages(mapped)
            .smmu(0x8005, 0x907_0000)
            .cells("msi-parent", &parent)
            .end()
    };
    assert_eq!(source(with([0x8003, 0x108])), Err(shared));
    assert_eq!(source(with([0x8003, 0x109])), told(0x108));
    let with = |parent: [u32; 2]| {
        messages(mapped)
            .begin("sata@13000000")
            .cells("iommus", &[0x8004, 0x1_0001])
            .cells("msi-parent", &parent)
            .end()
    };
    assert_eq!(source(with([0x8003, 0x108])), Err(shared));
    assert_eq!(source(with([0x8003, 0x109])), told(0x108));
}

#[test]
fn several_units_and_hosts_keep_apart() {
    let tree = Tree::new()
        .begin("soc")
        .cells("#address-cells", &[1])
        .cells("#size-cells", &[1])
        .cells("ranges", &[0x1000_0000, 0x1, 0x0000_0000, 0x1000_0000])
        .begin("iommu@12000000")
        .text("compatible", "vendor,smmu\0arm,smmu-v3")
        .nop()
        .cells("reg", &[0x1200_0000, 0x2_0000])
        .cells("#iommu-cells", &[1])
        .cells("msi-parent", &[9, 0x77])
        .cells("phandle", &[1])
        .end()
        .begin("sata@13000000")
        .cells("iommus", &[1, 0x20, 1, 0x21, 2, 0x5])
        .property("dma-can-stall", &[])
        .cells("pasid-num-bits", &[16])
        .end()
        .end()
        .its(9, 0x808_0000)
        .smmu(2, 0x905_0000)
        .property("dma-coherent", &[])
        .property("cavium,cn9900-broken-page1-regspace", &[])
        .end()
        .smmu(3, 0x907_0000)
        .text("status", "disabled")
        .end()
        .begin("other")
        .cells("#iommu-cells", &[2])
        .cells("phandle", &[4])
        .end()
        .host(0x40_0000_0000)
        .cells("linux,pci-domain", &[5])
        .cells("iommu-map-mask", &[0xff00])
        .cells("iommu-map", &[0, 1, 0x100, 0x1000, 0x2000, 2, 0, 0x100])
        .cells("msi-parent", &[9])
        .property("ats-supported", &[])
        .end()
        .host(0x50_0000_0000)
        .cells("linux,pci-domain", &[6])
        .cells("iommu-map", &[0, 3, 0, 0x100, 0x100, 4, 0, 0, 0x100])
        .end();
    let firmware = read(tree);
    assert_eq!(firmware.findings, []);
    let bases: Vec<_> = firmware
        .units
        .iter()
        .map(|unit| unit.registers.start().as_u64())
        .collect();
    assert_eq!(bases, [0x1_0200_0000, 0x905_0000]);
    assert_eq!(firmware.units[0].registers.pages().get(), 32);
    assert_eq!(firmware.units[1].registers.pages().get(), 16);
    assert!(firmware.units[1].quirks.has(Quirk::OnePage));
    let coherent: Vec<_> = firmware.units.iter().map(|unit| unit.coherent).collect();
    assert_eq!(coherent, [false, true]);
    let own = firmware.units[0].own_messages.unwrap();
    assert_eq!(own.device, DeviceId::new(0x77));
    let device = &firmware.devices[0];
    assert_eq!(device.name, b"sata@13000000");
    assert!(device.limits.may_stall && device.limits.pasid_bits == 16);
    assert_eq!(device.streams.len(), 3);
    let (unit, stream) = place(1, 5).unwrap();
    assert!(device.has_stream(unit, stream));
    // The mask leaves the bus: all functions of one are one stream, which only one of them may be listed for here.
    let ids = [(5, 0x0208), (5, 0x2010), (6, 0x10), (6, 0x110), (5, 0x1100)];
    let coverage = coverage(&firmware, &ids);
    assert_eq!(coverage.unit_of(at(5, 0x0208)), place(0, 0x300));
    assert_eq!(coverage.unit_of(at(5, 0x2010)), place(1, 0));
    let foreign = |requester| CoverageProblem::Foreign { requester };
    let uncovered = |requester| CoverageProblem::Uncovered { requester };
    let expected = [
        uncovered(at(5, 0x1100)),
        foreign(at(6, 0x10)),
        foreign(at(6, 0x110)),
    ];
    assert_eq!(coverage.problems(), expected);
    let requester = coverage.requester(at(5, 0x0208)).unwrap();
    assert!(requester.limits.translation_requests);
    assert_eq!(requester.messages.unwrap().device, DeviceId::new(0x0208));
}

#[test]
fn bc05_a_mask_makes_devices_one_stream() {
    let tree = virt()
        .host(0x50_0000_0000)
        .cells("iommu-map-mask", &[0xff00])
        .cells("iommu-map", &[0, 0x8004, 0x1_0000, 0x1_0000])
        .end();
    let firmware = read(tree);
    // Two devices of one bus, and one of another.
    let coverage = coverage(&firmware, &[(1, 0x108), (1, 0x110), (1, 0x208)]);
    assert_eq!(coverage.unit_of(at(1, 0x208)), place(0, 0x1_0200));
    let shared = [0x108, 0x110].map(|id| coverage.unit_of(at(1, id)));
    assert_eq!(shared, [None, None]);
    assert!(matches!(
        coverage.problems(),
        [CoverageProblem::SharedStream { .. }]
    ));
    let aliases: Vec<_> = coverage.aliases_of(at(1, 0x110)).collect();
    assert_eq!(aliases, [at(1, 0x108), at(1, 0x110)]);
    // Two functions of one device are of one group, as they can be of one stream.
    let functions = [0x108, 0x109].map(|id| PciFunction::new(at(1, id), FunctionKind::Endpoint));
    let coverage = Coverage::new(firmware, &functions).unwrap();
    assert_eq!(coverage.problems(), []);
    assert_eq!(coverage.unit_of(at(1, 0x109)), place(0, 0x1_0100));
}

#[test]
fn a_host_with_one_stream_has_one() {
    let host = |streams: &[u32]| {
        let tree = Tree::new().smmu(1, 0x905_0000).end();
        read(tree.host(0x40_0000_0000).cells("iommus", streams).end())
    };
    let firmware = host(&[1, 7]);
    assert_eq!(
        coverage(&firmware, &[(0, 8)]).unit_of(at(0, 8)),
        place(0, 7)
    );
    // Firmware's word is one stream for each requester.
    let firmware = host(&[1, 7, 1, 8]);
    assert_eq!(noted(&firmware), Defect::IdMapOverlap);
    assert_eq!(coverage(&firmware, &[(0, 8)]).unit_of(at(0, 8)), None);
}

#[test]
fn what_could_lose_a_unit_is_an_error() {
    for base in [0, 0x905_1000] {
        assert_eq!(refused(Tree::new().smmu(1, base).end()), Defect::Registers);
    }
    let twice = Tree::new()
        .smmu(1, 0x905_0000)
        .end()
        .smmu(2, 0x906_0000)
        .end();
    assert_eq!(refused(twice), Defect::DuplicateRegisters);
    let none = Tree::new()
        .begin("smmu")
        .text("compatible", "arm,smmu-v3")
        .end();
    assert_eq!(refused(none), Defect::Registers);
    // Behind a bus that gives its addresses to nobody, or others than these.
    for ranges in [None, Some(&[0u32, 0, 0, 0x1000][..])] {
        let bus = Tree::new().begin("bus").cells("#address-cells", &[2]);
        let bus = bus.cells("#size-cells", &[2]);
        let bus = match ranges {
            Some(ranges) => bus.cells("ranges", ranges),
            None => bus,
        };
        assert_eq!(
            refused(bus.smmu(1, 0x905_0000).end().end()),
            Defect::Registers
        );
    }
}

#[test]
fn bc13_a_damaged_map_takes_the_hosts_requesters_from_everybody() {
    let host = |map: &[u32]| {
        let tree = Tree::new().smmu(1, 0x905_0000).end();
        read(tree.host(0x40_0000_0000).cells("iommu-map", map).end())
    };
    let maps: [&[u32]; 5] = [
        // Cut off; a node that is not there; past the ids; too many ids.
        &[0, 1, 0, 0x100, 0x100],
        &[0, 1, 0, 0x100, 0x100, 1, 0x100],
        &[0, 1, 0, 0x100, 0x100, 99, 0x100, 0x100],
        &[0, 1, 0, 0x100, u32::MAX, 1, 0x100, 2],
        &[0, 1, 0, 0x100, 0x100, 1, u32::MAX, 2],
    ];
    for map in maps {
        let firmware = host(map);
        assert_eq!(noted(&firmware), Defect::IdMap, "{map:?}");
        let coverage = coverage(&firmware, &[(0, 8)]);
        assert_eq!(coverage.unit_of(at(0, 8)), None);
        assert!(coverage.check(CoveragePolicy::Strict).is_err());
        coverage.check(CoveragePolicy::Lenient).unwrap();
    }
    let firmware = host(&[0, 1, 0, 0x100, 0x80, 1, 0, 0x100]);
    assert_eq!(noted(&firmware), Defect::IdMapOverlap);
    let coverage = coverage(&firmware, &[(0, 8), (0, 0x90)]);
    assert_eq!(coverage.unit_of(at(0, 8)), place(0, 8));
    assert_eq!(coverage.unit_of(at(0, 0x90)), None);
    // No ids are no mistake.
    assert_eq!(host(&[0, 1, 0, 0]).findings, []);
}

#[test]
fn segments_that_are_not_told_apart_are_nobodys() {
    let hosts = |first: Option<u32>, second: Option<u32>| {
        let mut tree = Tree::new().smmu(1, 0x905_0000).end();
        for (number, domain) in [first, second].into_iter().enumerate() {
            let base = 0x40_0000_0000 + ((number as u64) << 36);
            tree = tree.host(base).cells("iommu-map", &[0, 1, 0, 0x100]);
            if let Some(domain) = domain {
                tree = tree.cells("linux,pci-domain", &[domain]);
            }
            tree = tree.end();
        }
        read(tree)
    };
    let by_order = hosts(None, None);
    assert_eq!(by_order.findings, []);
    let segments: Vec<_> = by_order.hosts.iter().map(|host| host.segment.0).collect();
    assert_eq!(segments, [0, 1]);
    for (first, second) in [(Some(3), None), (Some(3), Some(3))] {
        let firmware = hosts(first, second);
        assert_eq!(noted(&firmware), Defect::Segment);
        assert_eq!(coverage(&firmware, &[(3, 8)]).unit_of(at(3, 8)), None);
    }
}

#[test]
fn odd_interrupts_and_cells_are_named() {
    let unit = |names: &str, cells: &[u32]| {
        let tree = Tree::new()
            .begin("smmu@9050000")
            .text("compatible", "arm,smmu-v3")
            .cells("reg", &[0, 0x905_0000, 0, 0x2_0000])
            .cells("#iommu-cells", &[1])
            .cells("interrupts", cells)
            .text("interrupt-names", names)
            .end();
        read(tree)
    };
    let combined = unit("combined", &[0, 9, 4]);
    assert_eq!(combined.units[0].interrupts.event, Some(InterruptId(41)));
    assert!(combined.units[0].quirks.has(Quirk::OneInterrupt));
    assert_eq!(
        unit("eventq", &[2, 5, 1]).units[0].interrupts.event,
        Some(InterruptId(4101))
    );
    for (names, cells) in [
        ("eventq", &[0, 9][..]),
        ("eventq", &[7, 9, 1]),
        ("eventq", &[0, u32::MAX, 1]),
        ("unheard-of", &[0, 9, 1]),
    ] {
        let odd = unit(names, cells);
        assert_eq!(noted(&odd), Defect::Interrupts);
        assert_eq!(odd.units[0].interrupts.event, None);
    }
    let cells = Tree::new()
        .begin("smmu@9050000")
        .text("compatible", "arm,smmu-v3")
        .cells("reg", &[0, 0x905_0000, 0, 0x2_0000])
        .cells("#iommu-cells", &[2])
        .end();
    assert_eq!(noted(&read(cells)), Defect::StreamCells);
    let bus = Tree::new().smmu(1, 0x905_0000).end().begin("pci");
    let bus = bus.text("device_type", "pci").cells("bus-range", &[5, 4]);
    let bus = read(bus.cells("iommu-map", &[0, 1, 0, 0x1_0000]).end());
    assert_eq!(noted(&bus), Defect::Buses);
    assert_eq!(coverage(&bus, &[(0, 0x400)]).unit_of(at(0, 0x400)), None);
    assert_eq!(
        bus.hosts[0].streams[0].to,
        RequestTarget::Unit(place(0, 0).unwrap().0)
    );
}

/// Asks everything that can be asked of what was read.
fn use_it(bytes: &[u8]) {
    let Ok(firmware) = parse(bytes) else {
        return;
    };
    for finding in &firmware.findings {
        assert!(finding.to_string().starts_with("device tree"));
    }
    let ids = [(0, 0), (0, 8), (0, 0xffff), (1, 8)];
    let coverage = coverage(&firmware, &ids);
    for (segment, id) in ids {
        let requester = at(segment, id);
        assert_eq!(
            coverage.unit_of(requester).is_some(),
            coverage.requester(requester).is_some()
        );
    }
}

#[test]
fn every_damaged_byte_is_survived_and_no_cut_is_taken() {
    let whole = virt().finish();
    parse(&whole).unwrap();
    for position in 0..whole.len() {
        for damage in [
            0,
            1,
            3,
            9,
            0x7f,
            0xff,
            whole[position] ^ 1,
            whole[position] ^ 0x80,
        ] {
            let mut bytes = whole.clone();
            bytes[position] = damage;
            use_it(&bytes);
        }
        assert!(parse(&whole[..position]).is_err(), "cut at {position:#x}");
    }
}

#[test]
fn trees_that_are_not_nested_are_refused() {
    let word = |word: u32| word.to_be_bytes().to_vec();
    let tree = |words: &[u32]| {
        let structure: Vec<u8> = words.iter().flat_map(|&it| word(it)).collect();
        let header = [
            0xd00d_feed,
            40 + structure.len() as u32 + 4,
            40,
            40 + structure.len() as u32,
        ];
        let header = header
            .into_iter()
            .chain([40, 17, 16, 0, 4, structure.len() as u32]);
        let mut bytes: Vec<u8> = header.flat_map(word).collect();
        bytes.extend(structure);
        bytes.extend([0; 4]);
        match parse(&bytes) {
            Err(TreeError::Malformed(finding)) => Err(finding.what),
            other => Ok(other.unwrap()),
        }
    };
    // Begin with an empty name, end, property without value, nothing, finish.
    assert_eq!(tree(&[1, 0, 2, 9]), Ok(Firmware::default()));
    assert_eq!(tree(&[1, 0, 4, 3, 0, 0, 2, 9]), Ok(Firmware::default()));
    let nesting = Err(Defect::Nesting);
    assert_eq!(tree(&[1, 0, 9]), nesting);
    assert_eq!(tree(&[2, 9]), nesting);
    assert_eq!(tree(&[9]), nesting);
    assert_eq!(tree(&[3, 0, 0, 1, 0, 2, 9]), nesting);
    assert_eq!(tree(&[1, 0, 2, 1, 0, 2, 9]), nesting);
    assert_eq!(tree(&[1, 0, 1, 0, 2, 3, 0, 0, 2, 9]), nesting);
    let token = Err(Defect::Token);
    assert_eq!(tree(&[1, 0, 2]), token);
    assert_eq!(tree(&[1, 0, 5, 2, 9]), token);
    assert_eq!(tree(&[1, 0, 3, 100, 0, 2, 9]), token);
    assert_eq!(tree(&[1, 0, 3, 0, 100, 2, 9]), token);
    assert_eq!(tree(&[1, 0x6161_6161]), token);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Anything at all, and several damaged bytes in a tree that was in order.
    #[test]
    fn no_bytes_bring_the_reader_down(
        body in prop::collection::vec(any::<u8>(), 0..200),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        use_it(&body);
        let mut bytes = virt().finish();
        for (place, byte) in damages {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        use_it(&bytes);
    }

    /// Properties with any numbers, which the reader looks for.
    #[test]
    fn no_numbers_bring_the_reader_down(
        values in prop::collection::vec((0usize..12, prop::collection::vec(0u32..6, 0..9)), 0..12),
        wild in any::<u32>(),
    ) {
        let names = [
            "#address-cells", "#size-cells", "ranges", "reg", "iommu-map", "iommu-map-mask", "msi-map",
            "iommus", "bus-range", "linux,pci-domain", "interrupts", "msi-parent",
        ];
        let mut tree = virt().smmu(1, 0x1000_0000).end().host(0x50_0000_0000);
        for (number, (name, cells)) in values.iter().enumerate() {
            let cells: Vec<_> = cells.iter().map(|&cell| if cell == 5 { wild } else { cell }).collect();
            if number % 4 == 3 {
                tree = tree.end().begin("node").text("compatible", "arm,smmu-v3");
            }
            tree = tree.cells(names[*name], &cells);
        }
        use_it(&tree.end().finish());
    }
}
