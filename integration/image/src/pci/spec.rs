//! Offsets and bits of PCI configuration space (PCI Local Bus 3.0 chapter 6, PCI Express Base
//! chapter 7).

/// Vendor (15:0) and device (31:16) id.
pub(super) const ID: u16 = 0x00;
/// Vendor id that no function has: nothing answered.
pub(super) const NO_VENDOR: u16 = 0xffff;

/// Command (15:0) and status (31:16).
pub(super) const COMMAND_STATUS: u16 = 0x04;
/// The command half of [`COMMAND_STATUS`]. Status bits are cleared by writing ones, so writes keep
/// them zero.
pub(super) const COMMAND_MASK: u32 = 0x0000_ffff;
/// Command bit 0: the function answers in I/O space.
pub(super) const COMMAND_IO: u32 = 1 << 0;
/// Command bit 1: the function answers in memory space.
pub(super) const COMMAND_MEMORY: u32 = 1 << 1;
/// Command bit 2: the function may start transactions of its own.
pub(super) const COMMAND_BUS_MASTER: u32 = 1 << 2;
/// Status bit 4, in the upper half: there is a capability list.
pub(super) const STATUS_CAPABILITIES: u32 = 1 << 20;

/// Revision (7:0), interface (15:8), subclass (23:16), base class (31:24).
pub(super) const CLASS_REVISION: u16 = 0x08;

/// Header type (23:16) beside cache line size, latency timer and self test.
pub(super) const HEADER: u16 = 0x0c;
/// Header type without the multi-function bit.
pub(super) const HEADER_LAYOUT_MASK: u8 = 0x7f;
/// Header type bit 7: the device has more than function 0.
pub(super) const HEADER_MULTI_FUNCTION: u8 = 0x80;
/// Layout of a plain function.
pub(super) const LAYOUT_ENDPOINT: u8 = 0;
/// Layout of a PCI-to-PCI bridge.
pub(super) const LAYOUT_BRIDGE: u8 = 1;
/// Layout of a CardBus bridge, whose bus numbers are where those of a PCI-to-PCI bridge are.
pub(super) const LAYOUT_CARDBUS: u8 = 2;

/// First base address register; five more follow in a plain function.
pub(super) const BAR0: u16 = 0x10;
/// Base address registers of a plain function.
pub(super) const BAR_COUNT: u8 = 6;
/// BAR bit 0: I/O space rather than memory.
pub(super) const BAR_IO: u32 = 1 << 0;
/// BAR bits 2:1, the width of a memory BAR.
pub(super) const BAR_WIDTH_MASK: u32 = 0b11 << 1;
/// [`BAR_WIDTH_MASK`] value: the next register holds the upper half.
pub(super) const BAR_WIDTH_64: u32 = 0b10 << 1;
/// Bits of a memory BAR that are no address.
pub(super) const BAR_MEMORY_FLAGS: u64 = 0xf;

/// Bridges: primary (7:0), secondary (15:8), subordinate (23:16) bus.
pub(super) const BRIDGE_BUSES: u16 = 0x18;

/// Bridges have two base address registers only.
pub(super) const BRIDGE_BAR_COUNT: u8 = 2;
/// Bridges: memory base (15:4) and limit (31:20), bits 31:20 of the first and last address that goes through.
pub(super) const BRIDGE_MEMORY: u16 = 0x20;
/// Bridges: the same for prefetchable memory; base above limit lets nothing through.
pub(super) const BRIDGE_PREFETCHABLE: u16 = 0x24;
/// Bridges: the same for I/O (base 7:4, limit 15:12), beside a status register.
pub(super) const BRIDGE_IO: u16 = 0x1c;
/// A bridge's memory window is a multiple of this.
pub(super) const BRIDGE_WINDOW_BYTES: u64 = 1 << 20;
/// [`BRIDGE_MEMORY`] or [`BRIDGE_PREFETCHABLE`] with the base above the limit.
pub(super) const BRIDGE_WINDOW_CLOSED: u32 = 0x0000_fff0;
/// [`BRIDGE_IO`] with the base above the limit.
pub(super) const BRIDGE_IO_CLOSED: u32 = 0x0000_00f0;

/// First capability (7:0).
pub(super) const CAPABILITIES: u16 = 0x34;
/// A capability's place is a multiple of four.
pub(super) const CAPABILITY_ALIGN_MASK: u8 = !3;
/// No capability lies in the header.
pub(super) const FIRST_CAPABILITY: u8 = 0x40;
/// As many capabilities as fit behind the header: a longer list is a loop.
pub(super) const MAX_CAPABILITIES: usize = (0x100 - FIRST_CAPABILITY as usize) / 4;
/// Capability id of PCI Express.
pub(super) const CAPABILITY_PCI_EXPRESS: u8 = 0x10;
/// In the first word of the PCI Express capability: device/port type (23:20).
pub(super) const EXPRESS_PORT_SHIFT: u32 = 20;
/// Width of the device/port type.
pub(super) const EXPRESS_PORT_MASK: u32 = 0xf;

/// Device capabilities, from the start of the PCI Express capability (PCI Express Base, "Device Capabilities
/// Register"; Linux `PCI_EXP_DEVCAP`).
pub(super) const EXPRESS_DEVICE_CAPABILITIES: u16 = 0x04;

/// Extended capability id of access control services (PCI Express Base, "ACS Extended Capability"; Linux
/// `PCI_EXT_CAP_ID_ACS`).
pub(super) const EXTENDED_ACS: u16 = 0x0d;
/// In the ACS capability: capability (15:0) and control (31:16) register.
pub(super) const ACS_REGISTERS: u16 = 0x04;
/// Extended capability id of SR-IOV (PCI Express Base, "SR-IOV Extended Capability"; Linux
/// `PCI_EXT_CAP_ID_SRIOV`).
pub(super) const EXTENDED_SRIOV: u16 = 0x10;
/// In the SR-IOV capability: control (15:0) and status (31:16).
pub(super) const SRIOV_CONTROL: u16 = 0x08;
/// In the SR-IOV capability: the number of virtual functions (15:0).
pub(super) const SRIOV_COUNT: u16 = 0x10;
/// In the SR-IOV capability: offset of the first virtual function (15:0) and their stride (31:16).
pub(super) const SRIOV_PLACES: u16 = 0x14;

/// First extended capability: id (15:0), version (19:16), next (31:20).
pub(super) const EXTENDED_CAPABILITIES: u16 = 0x100;
/// Extended capability id.
pub(super) const EXTENDED_ID_MASK: u32 = 0xffff;
/// Where the next extended capability's offset starts.
pub(super) const EXTENDED_NEXT_SHIFT: u32 = 20;
/// An extended capability's place is a multiple of four.
pub(super) const EXTENDED_ALIGN_MASK: u16 = 0xffc;
/// As many extended capabilities as fit: a longer list is a loop.
pub(super) const MAX_EXTENDED_CAPABILITIES: usize = (0x1000 - 0x100) / 4;
