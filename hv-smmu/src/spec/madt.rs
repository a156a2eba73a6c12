//! The MADT of ACPI, as far as SMMUs need it: where interrupt translation services have their registers.
//!
//! All numbers are little endian and nothing is aligned. Source: ACPI 6.5, 5.2.12 and 5.2.12.18, in agreement with ACPICA
//! `actbl2.h` (`acpi_table_madt`, `acpi_madt_generic_translator`).

use static_assertions::const_assert_eq;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"APIC";

/// The table's header: the one of all ACPI tables and what the MADT adds.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct TableHeader {
    /// [`SIGNATURE`].
    pub signature: [u8; 4],
    /// Bytes of the whole table.
    pub length: U32,
    /// Revision of the table.
    pub revision: u8,
    /// Makes the sum of all bytes zero.
    pub checksum: u8,
    /// Who made the machine and the table.
    pub makers: [u8; 26],
    /// Of other architectures.
    pub local_controller: U32,
    /// Of other architectures.
    pub flags: U32,
}
const_assert_eq!(size_of::<TableHeader>(), 44);

/// What each entry starts with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct EntryHeader {
    /// Kind of entry, [`TYPE_ITS`] or another.
    pub kind: u8,
    /// Bytes of the entry, this header included.
    pub length: u8,
}
const_assert_eq!(size_of::<EntryHeader>(), 2);

/// Entry: interrupt translation services.
pub const TYPE_ITS: u8 = 15;

/// Interrupt translation services.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ItsEntry {
    /// What all have.
    pub header: EntryHeader,
    /// Reserved.
    pub reserved: U16,
    /// Their number, by which the IORT names them.
    pub id: U32,
    /// Where their registers are: a multiple of [`ITS_ALIGN`].
    pub base: U64,
    /// Reserved.
    pub reserved_too: U32,
}
const_assert_eq!(size_of::<ItsEntry>(), 20);

/// What the registers' address is a multiple of (Arm IHI 0069, 12.1: frames of 64 KiB).
pub const ITS_ALIGN: u64 = 0x1_0000;
