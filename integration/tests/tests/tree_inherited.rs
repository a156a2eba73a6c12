//! What nodes of a device tree have from others: the cells of their interrupts, and whether they are coherent.

#![cfg(not(hv_loom))]

use hv_iommu::Coherency;
use hv_smmu::device_tree::{Defect, parse};
use hv_smmu::firmware::{Firmware, FirmwareFinding, InterruptId, Interrupts};
use hv_tests::tree_build::{CONTROLLER, Tree};

fn read(tree: Tree) -> Firmware {
    parse(&tree.finish()).unwrap()
}

/// A unit without interrupts, left open.
fn unit(tree: Tree) -> Tree {
    tree.begin("iommu@fc900000")
        .text("compatible", "arm,smmu-v3")
        .cells("reg", &[0, 0xfc90_0000, 0, 0x20_0000])
        .text("interrupt-names", "eventq\0gerror\0priq\0cmdq-sync")
        .cells("#iommu-cells", &[1])
        .cells("phandle", &[0x8004])
}

fn wires(firmware: &Firmware) -> [Option<u32>; 4] {
    let Interrupts {
        event,
        global_error,
        page_request,
        sync,
    } = firmware.units[0].interrupts;
    [event, global_error, page_request, sync].map(|wire| wire.map(|InterruptId(wire)| wire))
}

/// Four cells each, as the controller of an RK3588 has them: the fourth is a set of CPUs, for interrupts of one's own.
const FOUR: [u32; 16] = [0, 369, 1, 0, 0, 371, 1, 0, 0, 374, 1, 0, 0, 367, 1, 0];
const ALL: [Option<u32>; 4] = [Some(401), Some(403), Some(406), Some(399)];

#[test]
fn interrupts_have_as_many_cells_as_their_controller_says() {
    let tree = unit(Tree::new().controller(4).end()).cells("interrupts", &FOUR);
    let firmware = read(tree.end());
    assert_eq!(firmware.findings, []);
    assert_eq!(wires(&firmware), ALL);
    // Three of the same: a fourth of them would be another kind of interrupt.
    let three = [0, 369, 1, 0, 371, 1, 0, 374, 1, 0, 367, 1];
    let tree = unit(Tree::new().controller(3).end()).cells("interrupts", &three);
    assert_eq!(wires(&read(tree.end())), ALL);
}

#[test]
fn the_controller_is_the_one_that_the_nearest_node_names() {
    // Of its own, of a bus above it, and through a node that only hands on.
    let other = |tree: Tree, cells: u32| {
        tree.begin("other")
            .cells("#interrupt-cells", &[cells])
            .cells("phandle", &[0x9001])
            .end()
    };
    let own = unit(other(Tree::new().controller(3).end(), 4)).cells("interrupt-parent", &[0x9001]);
    assert_eq!(wires(&read(own.cells("interrupts", &FOUR).end())), ALL);
    let bus = other(Tree::new().controller(3).end(), 4)
        .begin("bus")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .property("ranges", &[])
        .cells("interrupt-parent", &[0x9002]);
    let handed = unit(bus)
        .cells("interrupts", &FOUR)
        .end()
        .end()
        .begin("between")
        .cells("phandle", &[0x9002])
        .cells("interrupt-parent", &[0x9001]);
    assert_eq!(wires(&read(handed.end())), ALL);
}

#[test]
fn extended_interrupts_each_name_their_controller_and_win() {
    let tree = Tree::new()
        .controller(4)
        .end()
        .begin("other")
        .cells("#interrupt-cells", &[3])
        .cells("phandle", &[0x9001])
        .end();
    let extended = [
        CONTROLLER, 0, 369, 1, 0, 0x9001, 0, 371, 1, CONTROLLER, 0, 374, 1, 0, 0x9001, 0, 367, 1,
    ];
    let tree = unit(tree)
        .cells("interrupts", &[0, 1, 1, 0])
        .cells("interrupts-extended", &extended);
    let firmware = read(tree.end());
    assert_eq!(firmware.findings, []);
    assert_eq!(wires(&firmware), ALL);
}

/// They are looked for too, so that a unit without them works: what is not understood counts as none, and is said.
#[test]
fn interrupts_that_nobody_can_read_are_noted_and_count_as_none() {
    let noted = |tree: Tree| {
        let firmware = read(tree.end());
        let [FirmwareFinding::Tree(finding)] = firmware.findings[..] else {
            panic!("{:?}", firmware.findings);
        };
        assert_eq!(finding.what, Defect::Interrupts);
        assert!(finding.is_harmless());
        assert_eq!(wires(&firmware), [None; 4]);
        finding.found
    };
    let of = |cells: u32| unit(Tree::new().controller(cells).end());
    for cells in [0, 1, 2, 5, u32::MAX] {
        assert_eq!(noted(of(cells).cells("interrupts", &FOUR)), cells.into());
    }
    // Cut off.
    noted(of(4).cells("interrupts", &FOUR[..15]));
    // Of nobody, and of two that name each other.
    noted(
        of(3)
            .cells("interrupt-parent", &[0x1234])
            .cells("interrupts", &FOUR),
    );
    noted(of(3).cells("interrupts-extended", &[0x1234, 0, 1, 1]));
    let circle = of(3)
        .cells("interrupt-parent", &[0x9001])
        .cells("interrupts", &FOUR)
        .end()
        .begin("one")
        .cells("phandle", &[0x9001])
        .cells("interrupt-parent", &[0x9002])
        .end()
        .begin("other")
        .cells("phandle", &[0x9002])
        .cells("interrupt-parent", &[0x9001]);
    noted(circle);
}

/// Of the unit's own reads, and of what hosts and devices send: the nearest node that has a word for it counts, and without
/// one they are not.
#[test]
fn coherency_is_that_of_the_nearest_node_that_tells() {
    let bus = |tree: Tree, word: Option<&str>| {
        let tree = tree
            .begin("bus")
            .cells("#address-cells", &[2])
            .cells("#size-cells", &[2])
            .property("ranges", &[]);
        match word {
            Some(word) => tree.property(word, &[]),
            None => tree,
        }
    };
    let told = |above: Option<&str>, own: Option<&str>| {
        let has = |tree: Tree| match own {
            Some(word) => tree.property(word, &[]),
            None => tree,
        };
        let tree = has(unit(bus(Tree::new(), above))).end();
        let tree = has(tree.host(0x40_1000_0000).cells("iommus", &[0x8004, 0])).end();
        let device = tree.begin("dma@0").cells("iommus", &[0x8004, 7]);
        let firmware = read(has(device).end().end());
        let [unit] = &firmware.units[..] else {
            panic!("{firmware:?}");
        };
        let limits = [firmware.hosts[0].limits, firmware.devices[0].limits];
        let those = limits.map(|limits| match limits.coherency {
            Coherency::Coherent => true,
            Coherency::NotCoherent { said } => {
                assert!(said.contains("dma-coherent"));
                false
            }
        });
        assert_eq!(those, [unit.coherent; 2]);
        unit.coherent
    };
    let (is, is_not) = (Some("dma-coherent"), Some("dma-noncoherent"));
    assert!(told(None, is) && told(is, None) && told(is_not, is) && told(is, is));
    assert!(!told(None, None) && !told(is, is_not) && !told(is_not, None));
}
