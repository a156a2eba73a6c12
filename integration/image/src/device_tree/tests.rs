//! Trees as QEMU's virt board has them, whole and damaged.

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use hv_core::Segment;

use super::*;

/// A property of 32-bit cells.
fn cells(name: &str, cells: &[u32]) -> DeviceTreeProperty {
    let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
    DeviceTreeProperty::new(name, bytes.as_slice()).unwrap()
}

fn text(name: &str, value: &str) -> DeviceTreeProperty {
    DeviceTreeProperty::new(name, value).unwrap()
}

fn node(name: &str, properties: Vec<DeviceTreeProperty>) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new(name).unwrap();
    for property in properties {
        node.add_property(property);
    }
    node
}

/// The board of `qemu-system-aarch64 -M virt,virtualization=on,gic-version=3` with two CPUs, as far as it matters.
fn virt() -> DeviceTree {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    root.add_property(cells("#address-cells", &[2]));
    root.add_property(cells("#size-cells", &[2]));
    root.add_child(node("chosen", vec![text("bootargs", "scenario=discover")]));
    root.add_child(node(
        "memory@40000000",
        vec![
            text("device_type", "memory"),
            cells("reg", &[0, 0x4000_0000, 0, 0x2000_0000]),
        ],
    ));
    let mut cpus = node(
        "cpus",
        vec![cells("#address-cells", &[1]), cells("#size-cells", &[0])],
    );
    for (name, affinity) in [("cpu@0", 0), ("cpu@101", 0x101)] {
        let cpu = vec![text("device_type", "cpu"), cells("reg", &[affinity])];
        cpus.add_child(node(name, cpu));
    }
    root.add_child(cpus);
    root.add_child(node(
        "psci",
        vec![text("compatible", "arm,psci-1.0"), text("method", "smc")],
    ));
    let mut intc = node(
        "intc@8000000",
        vec![
            text("compatible", "arm,gic-v3"),
            cells("#address-cells", &[2]),
            cells("#size-cells", &[2]),
            cells("#redistributor-regions", &[1]),
            cells(
                "reg",
                &[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0xf6_0000],
            ),
        ],
    );
    intc.add_child(node(
        "its@8080000",
        vec![
            text("compatible", "arm,gic-v3-its"),
            cells("reg", &[0, 0x808_0000, 0, 0x2_0000]),
        ],
    ));
    root.add_child(intc);
    root.add_child(node(
        "pl011@9000000",
        vec![
            text("compatible", "arm,pl011"),
            cells("reg", &[0, 0x900_0000, 0, 0x1000]),
        ],
    ));
    root.add_child(host());
    tree
}

fn host() -> DeviceTreeNode {
    node(
        "pcie@10000000",
        vec![
            text("compatible", "pci-host-ecam-generic"),
            cells("#address-cells", &[3]),
            cells("#size-cells", &[2]),
            cells("bus-range", &[0, 0xff]),
            cells("linux,pci-domain", &[0]),
            cells("reg", &[0x40, 0x1000_0000, 0, 0x1000_0000]),
            cells("ranges", &WINDOWS.concat()),
        ],
    )
}

/// I/O, memory below 4 GiB, memory above.
const WINDOWS: [[u32; 7]; 3] = [
    [0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000],
    [0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2eff_0000],
    [0x0300_0000, 0x80, 0, 0x80, 0, 0x80, 0],
];

/// The board, with one node changed.
fn changed(name: &str, change: impl FnOnce(&mut DeviceTreeNode)) -> Vec<u8> {
    let mut tree = virt();
    change(tree.root.child_mut(name).unwrap());
    tree.to_dtb()
}

fn refused(name: &str, change: impl FnOnce(&mut DeviceTreeNode)) -> DeviceTreeError {
    Board::parse(&changed(name, change)).unwrap_err()
}

#[test]
fn the_board_is_read_whole() {
    let blob = virt().to_dtb();
    let board = Board::parse(&blob).unwrap();
    assert_eq!(board.command_line, "scenario=discover");
    assert_eq!(
        board.ram[..],
        [Span::new(PhysAddr::new(0x4000_0000), 512 << 20)]
    );
    assert_eq!(board.cpus[..], [Mpidr::new(0), Mpidr::new(0x101)]);
    assert_eq!(board.firmware, Conduit::Smc);
    assert_eq!(board.uart, Some(PhysAddr::new(0x900_0000)));
    assert_eq!(board.gic.distributor.start(), PhysAddr::new(0x800_0000));
    assert_eq!(board.gic.redistributors.pages().bytes(), 0xf6_0000);
    let [doorbell] = board.doorbells[..] else {
        panic!("{:?}", board.doorbells);
    };
    assert_eq!(doorbell.start(), PhysAddr::new(0x809_0000));
    assert_eq!(doorbell.pages().bytes(), 0x1_0000);
    let [host] = board.hosts[..] else {
        panic!("{:?}", board.hosts);
    };
    assert_eq!(host.config.segment(), Segment(0));
    assert_eq!(host.config.buses(), 0..=255);
    assert_eq!(host.config.range().start(), PhysAddr::new(0x40_1000_0000));
    assert_eq!(
        host.window,
        MemoryWindow {
            start: PhysAddr::new(0x1000_0000),
            bytes: 0x2eff_0000
        }
    );
}

#[test]
fn what_firmware_keeps_and_the_ram_disk_are_reserved() {
    let mut tree = virt();
    let mut kept = node(
        "reserved-memory",
        vec![cells("#address-cells", &[2]), cells("#size-cells", &[2])],
    );
    kept.add_child(node(
        "firmware@50000000",
        vec![cells("reg", &[0, 0x5000_0000, 0, 0x1000])],
    ));
    tree.root.add_child(kept);
    let chosen = tree.root.child_mut("chosen").unwrap();
    chosen.add_property(cells("linux,initrd-start", &[0x4800_0000]));
    chosen.add_property(cells("linux,initrd-end", &[0, 0x4800_1000]));
    let blob = tree.to_dtb();
    let board = Board::parse(&blob).unwrap();
    let span = |start| Span::new(PhysAddr::new(start), 0x1000);
    assert_eq!(board.reserved[..], [span(0x5000_0000), span(0x4800_0000)]);
}

#[test]
fn disabled_nodes_are_not_used_and_plain_buses_are_looked_into() {
    let mut tree = virt();
    let uart = tree.root.remove_child("pl011@9000000").unwrap();
    let mut bus = node(
        "soc",
        vec![text("compatible", "simple-bus"), cells("ranges", &[])],
    );
    bus.add_property(cells("#address-cells", &[2]));
    bus.add_property(cells("#size-cells", &[2]));
    bus.add_child(uart);
    tree.root.add_child(bus);
    let blob = tree.to_dtb();
    let found = Board::parse(&blob).unwrap().uart;
    assert_eq!(found, Some(PhysAddr::new(0x900_0000)));

    let off = |node: &mut DeviceTreeNode| node.add_property(text("status", "disabled"));
    let blob = changed("pl011@9000000", off);
    assert_eq!(Board::parse(&blob).unwrap().uart, None);
    assert_eq!(
        refused("intc@8000000", off),
        DeviceTreeError::Missing {
            what: "GICv3 (arm,gic-v3)"
        }
    );
}

#[test]
fn windows_that_are_translated_or_missing_are_refused() {
    let name = "pcie@10000000";
    let moved = refused(name, |node| {
        let mut window = WINDOWS[1];
        window[4] = 0x2000_0000;
        node.add_property(cells("ranges", &window));
    });
    assert!(matches!(
        moved,
        DeviceTreeError::Value {
            found: 0x1000_0000,
            ..
        }
    ));
    let missing = refused(name, |node| {
        node.add_property(cells("ranges", &WINDOWS[2]));
    });
    assert!(matches!(missing, DeviceTreeError::Missing { .. }));
    let small = refused(name, |node| {
        node.add_property(cells("reg", &[0x40, 0x1000_0000, 0, 0xff0_0000]));
    });
    assert!(small.to_string().contains("1 MiB for each bus"), "{small}");
    let wrong = refused(name, |node| {
        node.add_property(cells("bus-range", &[9, 8]));
    });
    assert!(wrong.to_string().contains("bus-range"), "{wrong}");
}

#[test]
fn what_cannot_be_done_without_is_named() {
    for (name, wanted) in [
        ("memory@40000000", "no memory"),
        ("cpus", "no CPUs"),
        ("psci", "no PSCI method"),
        ("intc@8000000", "no GICv3"),
    ] {
        let mut tree = virt();
        tree.root.remove_child(name);
        let error = Board::parse(&tree.to_dtb()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn every_cut_and_every_changed_byte_ends_without_a_panic() {
    let blob = virt().to_dtb();
    for length in 0..blob.len() {
        assert!(Board::parse(&blob[..length]).is_err(), "{length}");
    }
    for at in 0..blob.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut damaged = blob.clone();
            damaged[at] ^= bits;
            // Many bytes do not matter; whatever it says, it says it.
            let _ = Board::parse(&damaged).map(|board| board.cpus.len());
        }
    }
}
