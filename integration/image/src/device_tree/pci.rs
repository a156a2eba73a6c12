//! PCI host bridges with memory-mapped configuration space, and the windows behind which their devices appear.

use arrayvec::ArrayVec;
use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property};
use hv_core::{PhysAddr, PhysRange, Segment};

use super::error::{About, DeviceTreeError};
use super::{MAX_HOSTS, compatible, push, registers};
use crate::pci::EcamRegion;

/// Bits 25:24 of a PCI address's first cell, its space (IEEE 1275 PCI bus binding, 2.2.1.1).
const SPACE_SHIFT: u32 = 24;
/// Width of the same.
const SPACE_MASK: u32 = 0b11;
/// [`SPACE_MASK`] value: memory below 4 GiB.
const SPACE_MEMORY_32: u32 = 0b10;

/// Where functions of a host can be told to appear: bus and CPU addresses are the same there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryWindow {
    /// First byte.
    pub start: PhysAddr,
    /// Number of bytes.
    pub bytes: u64,
}

/// A PCI host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// Configuration space.
    pub config: EcamRegion,
    /// Memory below 4 GiB, that any BAR can be told to lie in.
    pub window: MemoryWindow,
}

/// Every host bridge.
pub(super) fn hosts(root: FdtNode<'_>) -> Result<ArrayVec<HostBridge, MAX_HOSTS>, DeviceTreeError> {
    let mut hosts = ArrayVec::new();
    for node in compatible(root, &["pci-host-ecam-generic"]) {
        push(&mut hosts, host(node)?, "PCI hosts")?;
    }
    Ok(hosts)
}

fn host(node: FdtNode<'_>) -> Result<HostBridge, DeviceTreeError> {
    let registers = registers(node, 0, "PCI configuration space")?;
    let number = |name, absent| match node.property(name) {
        Some(property) => property.value_as::<u32>().about(name),
        None => Ok(absent),
    };
    let segment = number("linux,pci-domain", 0)?;
    let segment = u16::try_from(segment).map_err(|_| DeviceTreeError::Value {
        what: "linux,pci-domain",
        found: segment.into(),
        expected: "16 bits",
    })?;
    let config = config(Segment(segment), buses(node)?, registers)?;
    Ok(HostBridge {
        config,
        window: window(node)?,
    })
}

/// First and last bus.
fn buses(node: FdtNode<'_>) -> Result<(u8, u8), DeviceTreeError> {
    let what = "bus-range";
    let Some(property) = node.property(what) else {
        return Ok((0, u8::MAX));
    };
    let numbers = property.value_as::<u64>().about(what)?;
    let wrong = DeviceTreeError::Value {
        what,
        found: numbers,
        expected: "two buses below 256, the lower one first",
    };
    let first = u8::try_from(numbers >> 32).map_err(|_| wrong.clone())?;
    let last = u8::try_from(numbers & u64::from(u32::MAX)).map_err(|_| wrong.clone())?;
    if first > last {
        return Err(wrong);
    }
    Ok((first, last))
}

/// The region of these buses; `registers` begin with those of the first one.
fn config(
    segment: Segment,
    (first, last): (u8, u8),
    registers: PhysRange,
) -> Result<EcamRegion, DeviceTreeError> {
    let what = "PCI configuration space";
    let before = EcamRegion::bytes(0..=first) - EcamRegion::bytes(0..=0);
    let start = registers.start().as_u64();
    let base = start.checked_sub(before).map(PhysAddr::new);
    let region = base.and_then(|base| EcamRegion::new(segment, first..=last, base));
    let region = region.filter(|region| region.range().last() <= registers.last());
    region.ok_or(DeviceTreeError::Value {
        what,
        found: registers.pages().bytes(),
        expected: "1 MiB for each bus of bus-range",
    })
}

/// The window below 4 GiB.
fn window(node: FdtNode<'_>) -> Result<MemoryWindow, DeviceTreeError> {
    let what = "PCI memory window below 4 GiB";
    let ranges = node.ranges().about(what)?;
    for range in ranges.into_iter().flatten() {
        let [space, bus @ ..] = range.child_bus_address.as_ref() else {
            continue;
        };
        if space.get() >> SPACE_SHIFT & SPACE_MASK != SPACE_MEMORY_32 {
            continue;
        }
        let bus = bus
            .iter()
            .fold(0, |number: u64, cell| number << 32 | u64::from(cell.get()));
        let start = range.parent_bus_address::<u64>().about(what)?;
        if bus != start {
            return Err(DeviceTreeError::Value {
                what,
                found: bus,
                expected: "the address by which the CPU knows it",
            });
        }
        let bytes = range.length::<u64>().about(what)?;
        return Ok(MemoryWindow {
            start: PhysAddr::new(start),
            bytes,
        });
    }
    Err(DeviceTreeError::Missing { what })
}
