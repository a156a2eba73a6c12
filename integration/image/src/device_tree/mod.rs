//! What the image takes from a flattened device tree: memory, CPUs, console, interrupt controller, PCI hosts.
//!
//! Names and forms of nodes: Devicetree Specification 0.4, and the bindings that Linux keeps (`arm,gic-v3`,
//! `pci-host-ecam-generic`, `arm,psci`).

mod error;
mod pci;

#[cfg(test)]
mod tests;

use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard, Reg, Status};
use dtoolkit::{Node, Property};
use hv_core::{PageCount, PhysAddr, PhysRange};

use self::error::About;
pub use self::error::DeviceTreeError;
pub use self::pci::{HostBridge, MemoryWindow};
use crate::MAX_CPUS;
use crate::memory::usable::{MAX_RESERVED, Span};

/// Most spans of RAM that are kept.
const MAX_RAM: usize = 32;
/// Most interrupt translation services that are kept.
const MAX_SERVICES: usize = 16;
/// Where the translation frame of an ITS starts, and its bytes: behind the control frame (Arm IHI 0069).
const TRANSLATION_FRAME: u64 = 0x1_0000;
/// Most PCI hosts that are kept.
const MAX_HOSTS: usize = 4;

/// The affinity fields of a CPU's MPIDR, by which hardware names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mpidr(u64);

impl Mpidr {
    /// Aff3 (39:32) and Aff2 to Aff0 (23:0) (Arm ARM, D19.2 MPIDR_EL1).
    const AFFINITY: u64 = 0xff_00ff_ffff;

    /// The affinity fields of a register value.
    pub const fn new(register: u64) -> Self {
        Self(register & Self::AFFINITY)
    }

    /// The fields, where the register has them.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Aff3, Aff2, Aff1, Aff0.
    pub const fn fields(self) -> [u8; 4] {
        let [aff0, aff1, aff2, _, aff3, ..] = self.0.to_le_bytes();
        [aff3, aff2, aff1, aff0]
    }
}

/// By which instruction firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// Secure monitor call.
    Smc,
    /// Hypervisor call: something else runs at EL2.
    Hvc,
}

/// The interrupt controller: a GICv3 or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gic {
    /// Registers of the distributor.
    pub distributor: PhysRange,
    /// Registers of the redistributors, one behind the other.
    pub redistributors: PhysRange,
}

/// Where devices write interrupt messages: the translation frame of each ITS.
pub type Doorbells = ArrayVec<PhysRange, MAX_SERVICES>;

/// The machine as the tree describes it.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    /// The kernel command line.
    pub command_line: &'a str,
    /// RAM.
    pub ram: ArrayVec<Span, MAX_RAM>,
    /// RAM that must not be handed out: what firmware keeps, and an initial RAM disk.
    pub reserved: ArrayVec<Span, MAX_RESERVED>,
    /// Every CPU that may be used.
    pub cpus: ArrayVec<Mpidr, MAX_CPUS>,
    /// How firmware starts CPUs and ends the machine.
    pub firmware: Conduit,
    /// The interrupt controller.
    pub gic: Gic,
    /// Where its translation services take messages.
    pub doorbells: Doorbells,
    /// Registers of the first PL011 UART.
    pub uart: Option<PhysAddr>,
    /// The PCI host bridges.
    pub hosts: ArrayVec<HostBridge, MAX_HOSTS>,
}

impl<'a> Board<'a> {
    /// Reads the tree in `blob`.
    ///
    /// # Errors
    /// [`DeviceTreeError`] naming what is missing or damaged.
    pub fn parse(blob: &'a [u8]) -> Result<Self, DeviceTreeError> {
        let tree = Fdt::new(blob)?;
        let root = tree.root();
        let chosen = root.child("chosen");
        let command_line = match chosen.and_then(|node| node.property("bootargs")) {
            Some(property) => property.value_as::<&str>().about("bootargs")?,
            None => "",
        };
        Ok(Self {
            command_line,
            ram: ram(root)?,
            reserved: reserved(tree, root)?,
            cpus: cpus(root)?,
            firmware: conduit(root)?,
            gic: gic(root)?,
            doorbells: doorbells(root)?,
            uart: match compatible(root, &["arm,pl011"]).next() {
                Some(node) => Some(registers(node, 0, "UART registers")?.start()),
                None => None,
            },
            hosts: pci::hosts(root)?,
        })
    }
}

/// Every node that may be used: those below the root, and those on simple buses that translate no address.
fn devices(root: FdtNode<'_>) -> impl Iterator<Item = FdtNode<'_>> {
    let on_bus = root.children().flat_map(|node| {
        let empty = node
            .property("ranges")
            .is_some_and(|ranges| ranges.value().is_empty());
        let plain = node.is_compatible("simple-bus") && empty;
        plain.then(|| node.children()).into_iter().flatten()
    });
    root.children().chain(on_bus).filter(is_enabled)
}

fn is_enabled(node: &FdtNode<'_>) -> bool {
    matches!(node.status(), Ok(Status::Okay))
}

/// Those that are compatible with one of `names`.
fn compatible<'a>(
    root: FdtNode<'a>,
    names: &'static [&'static str],
) -> impl Iterator<Item = FdtNode<'a>> {
    devices(root).filter(move |node| names.iter().any(|name| node.is_compatible(name)))
}

/// Address and size of one entry of `reg`.
fn numbers(reg: Reg<'_>, what: &'static str) -> Result<(u64, u64), DeviceTreeError> {
    Ok((
        reg.address::<u64>().about(what)?,
        reg.size::<u64>().about(what)?,
    ))
}

/// Every entry of `reg`.
fn spans<'a>(
    node: FdtNode<'a>,
    what: &'static str,
) -> Result<impl Iterator<Item = Result<(u64, u64), DeviceTreeError>> + 'a, DeviceTreeError> {
    let entries = node.reg().about(what)?;
    Ok(entries
        .into_iter()
        .flatten()
        .map(move |reg| numbers(reg, what)))
}

/// Entry `index` of `reg` as registers: whole pages.
fn registers(
    node: FdtNode<'_>,
    index: usize,
    what: &'static str,
) -> Result<PhysRange, DeviceTreeError> {
    let mut entries = spans(node, what)?;
    let entry = entries
        .nth(index)
        .ok_or(DeviceTreeError::Missing { what })?;
    let (start, bytes) = entry?;
    let range = PageCount::for_bytes(bytes)
        .and_then(|pages| PhysRange::new(PhysAddr::new(start), pages).ok());
    range.ok_or(DeviceTreeError::Value {
        what,
        found: start,
        expected: "whole pages in the address space",
    })
}

/// Adds to a list that has an end.
fn push<T, const N: usize>(
    list: &mut ArrayVec<T, N>,
    value: T,
    what: &'static str,
) -> Result<(), DeviceTreeError> {
    list.try_push(value)
        .map_err(|_| DeviceTreeError::TooMany { what, limit: N })
}

fn ram(root: FdtNode<'_>) -> Result<ArrayVec<Span, MAX_RAM>, DeviceTreeError> {
    let what = "memory";
    let mut ram = ArrayVec::new();
    let is_memory = |node: &FdtNode<'_>| {
        let kind = node.property("device_type");
        kind.is_some_and(|kind| kind.value_as::<&str>() == Ok(what))
    };
    for node in root.children().filter(is_enabled).filter(is_memory) {
        for entry in spans(node, what)? {
            let (start, bytes) = entry?;
            push(&mut ram, Span::new(PhysAddr::new(start), bytes), what)?;
        }
    }
    if ram.is_empty() {
        return Err(DeviceTreeError::Missing { what });
    }
    Ok(ram)
}

fn reserved(
    tree: Fdt<'_>,
    root: FdtNode<'_>,
) -> Result<ArrayVec<Span, MAX_RESERVED>, DeviceTreeError> {
    let what = "reserved memory";
    let mut kept = ArrayVec::new();
    for entry in tree.memory_reservations() {
        let start = PhysAddr::new(entry.address());
        push(&mut kept, Span::new(start, entry.size()), what)?;
    }
    for node in root
        .child("reserved-memory")
        .iter()
        .flat_map(|node| node.children())
    {
        for entry in spans(node, what)? {
            let (start, bytes) = entry?;
            push(&mut kept, Span::new(PhysAddr::new(start), bytes), what)?;
        }
    }
    if let Some(chosen) = root.child("chosen") {
        let address = |name| match chosen.property(name) {
            // As wide as the loader chose to make it.
            Some(property) => match property.value().len() {
                4 => property.value_as::<u32>().map(u64::from),
                _ => property.value_as::<u64>(),
            }
            .about("initial RAM disk")
            .map(Some),
            None => Ok(None),
        };
        if let (Some(start), Some(end)) =
            (address("linux,initrd-start")?, address("linux,initrd-end")?)
        {
            let disk = Span::new(PhysAddr::new(start), end.saturating_sub(start));
            push(&mut kept, disk, what)?;
        }
    }
    Ok(kept)
}

fn cpus(root: FdtNode<'_>) -> Result<ArrayVec<Mpidr, MAX_CPUS>, DeviceTreeError> {
    let what = "CPUs";
    let mut cpus = ArrayVec::new();
    let node = root.child("cpus");
    let is_cpu = |node: &FdtNode<'_>| {
        let kind = node.property("device_type");
        kind.is_some_and(|kind| kind.value_as::<&str>() == Ok("cpu"))
    };
    for cpu in node.iter().flat_map(|node| node.children()) {
        if !is_cpu(&cpu) || !is_enabled(&cpu) {
            continue;
        }
        let mut entries = cpu.reg().about(what)?.into_iter().flatten();
        let reg = entries.next().ok_or(DeviceTreeError::Missing { what })?;
        let name = reg.address::<u64>().about(what)?;
        push(&mut cpus, Mpidr::new(name), what)?;
    }
    if cpus.is_empty() {
        return Err(DeviceTreeError::Missing { what });
    }
    Ok(cpus)
}

fn conduit(root: FdtNode<'_>) -> Result<Conduit, DeviceTreeError> {
    let what = "PSCI method";
    let node = compatible(root, &["arm,psci-1.0", "arm,psci-0.2"]).next();
    let method = node.and_then(|node| node.property("method"));
    let method = method.ok_or(DeviceTreeError::Missing { what })?;
    match method.value_as::<&str>().about(what)? {
        "smc" => Ok(Conduit::Smc),
        "hvc" => Ok(Conduit::Hvc),
        _ => Err(DeviceTreeError::Missing { what }),
    }
}

fn gic(root: FdtNode<'_>) -> Result<Gic, DeviceTreeError> {
    let what = "GICv3 (arm,gic-v3)";
    let node = compatible(root, &["arm,gic-v3"]).next();
    let node = node.ok_or(DeviceTreeError::Missing { what })?;
    if let Some(regions) = node.property("#redistributor-regions") {
        let found = regions.value_as::<u32>().about(what)?;
        if found != 1 {
            return Err(DeviceTreeError::Value {
                what: "#redistributor-regions",
                found: found.into(),
                expected: "1",
            });
        }
    }
    Ok(Gic {
        distributor: registers(node, 0, what)?,
        redistributors: registers(node, 1, what)?,
    })
}

/// The services are below the controller that they are a part of.
fn doorbells(root: FdtNode<'_>) -> Result<Doorbells, DeviceTreeError> {
    let what = "ITS (arm,gic-v3-its)";
    let mut found = Doorbells::new();
    let parts = compatible(root, &["arm,gic-v3"]).flat_map(|gic| gic.children());
    let is_its = |node: &FdtNode<'_>| node.is_compatible("arm,gic-v3-its");
    for node in parts.filter(is_enabled).filter(is_its) {
        let start = registers(node, 0, what)?.start();
        let frame = start
            .checked_add(TRANSLATION_FRAME)
            .zip(PageCount::for_bytes(TRANSLATION_FRAME))
            .and_then(|(start, pages)| PhysRange::new(start, pages).ok());
        let frame = frame.ok_or(DeviceTreeError::Value {
            what,
            found: start.as_u64(),
            expected: "a frame behind it in the address space",
        })?;
        push(&mut found, frame, what)?;
    }
    Ok(found)
}
