//! Layouts of ACPI structures (ACPI 6.5: RSDP 5.2.5.3, header 5.2.6, MADT 5.2.12; PCI Firmware 3.3:
//! MCFG 4.1.2).
//!
//! All are packed little-endian byte structures: alignment 1, every bit pattern valid.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Signature of the root pointer.
pub(super) const RSDP_SIGNATURE: [u8; 8] = *b"RSD PTR ";

/// The root pointer as of ACPI 1.0: the first 20 bytes, under their own checksum.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RsdpV1 {
    /// "RSD PTR ".
    pub(super) signature: [u8; 8],
    /// Makes the 20 bytes add up to zero.
    pub(super) _checksum: u8,
    /// Who made the firmware.
    pub(super) _oem: [u8; 6],
    /// 0 for ACPI 1.0; from 2 on the long form follows.
    pub(super) revision: u8,
    /// Physical address of the RSDT.
    pub(super) rsdt: U32,
}

/// What ACPI 2.0 appended to the root pointer.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RsdpV2 {
    /// The short form.
    pub(super) v1: RsdpV1,
    /// Length of the whole structure in bytes.
    pub(super) length: U32,
    /// Physical address of the XSDT.
    pub(super) xsdt: U64,
    /// Makes all `length` bytes add up to zero.
    pub(super) _checksum: u8,
    /// Reserved.
    pub(super) _reserved: [u8; 3],
}

/// The header that every system description table starts with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// Four letters.
    pub(super) signature: [u8; 4],
    /// Length of the whole table in bytes, header included.
    pub(super) length: U32,
    /// Revision of the table's layout.
    pub(super) _revision: u8,
    /// Makes all `length` bytes add up to zero.
    pub(super) _checksum: u8,
    /// Who made the table, and with what.
    pub(super) _oem: [u8; 26],
}

/// What the MADT has behind its header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct MadtFields {
    /// Physical address of the local APICs.
    pub(super) lapic_address: U32,
    /// Bit 0: the machine also has 8259 interrupt controllers.
    pub(super) _flags: U32,
}

/// What every interrupt-controller structure of the MADT starts with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct MadtEntry {
    /// What the structure describes: one of the `MADT_*` values, or something else.
    pub(super) kind: u8,
    /// Its length in bytes, these two included.
    pub(super) length: u8,
}

/// [`MadtEntry::kind`]: a processor with an 8-bit APIC id.
pub(super) const MADT_LOCAL_APIC: u8 = 0;
/// [`MadtEntry::kind`]: a 64-bit address that replaces the one in the table.
pub(super) const MADT_LAPIC_ADDRESS_OVERRIDE: u8 = 5;
/// [`MadtEntry::kind`]: a processor with a 32-bit x2APIC id.
pub(super) const MADT_LOCAL_X2APIC: u8 = 9;

/// Processor flags bit 0: ready for use.
pub(super) const PROCESSOR_ENABLED: u32 = 1 << 0;

/// A processor local APIC structure (type 0).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LocalApic {
    pub(super) _entry: MadtEntry,
    /// Id that the ACPI namespace uses.
    pub(super) _processor: u8,
    /// The local APIC id.
    pub(super) apic_id: u8,
    /// [`PROCESSOR_ENABLED`] and "online capable".
    pub(super) flags: U32,
}

/// A local APIC address override structure (type 5).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LapicAddressOverride {
    pub(super) _entry: MadtEntry,
    pub(super) _reserved: U16,
    /// Physical address of the local APICs.
    pub(super) address: U64,
}

/// A processor local x2APIC structure (type 9).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LocalX2Apic {
    pub(super) _entry: MadtEntry,
    pub(super) _reserved: U16,
    /// The x2APIC id.
    pub(super) apic_id: U32,
    /// [`PROCESSOR_ENABLED`] and "online capable".
    pub(super) flags: U32,
    /// Id that the ACPI namespace uses.
    pub(super) _processor: U32,
}

/// Reserved bytes between the MCFG's header and its first entry.
pub(super) const MCFG_RESERVED_BYTES: usize = 8;

/// One configuration region of the MCFG.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct McfgEntry {
    /// Where bus 0 of the segment would be, whether or not it is in the region.
    pub(super) base: U64,
    /// The PCI segment group.
    pub(super) segment: U16,
    /// First bus that the region decodes.
    pub(super) first_bus: u8,
    /// Last bus that the region decodes.
    pub(super) last_bus: u8,
    /// Reserved.
    pub(super) _reserved: U32,
}

static_assertions::assert_eq_size!(RsdpV1, [u8; 20]);
static_assertions::assert_eq_size!(RsdpV2, [u8; 36]);
static_assertions::assert_eq_size!(Header, [u8; 36]);
static_assertions::assert_eq_size!(MadtFields, [u8; 8]);
static_assertions::assert_eq_size!(LocalApic, [u8; 8]);
static_assertions::assert_eq_size!(LapicAddressOverride, [u8; 12]);
static_assertions::assert_eq_size!(LocalX2Apic, [u8; 16]);
static_assertions::assert_eq_size!(McfgEntry, [u8; 16]);
