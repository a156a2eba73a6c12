//! What can be wrong with ACPI tables.

use hv_core::PhysAddr;
use thiserror::Error;

use super::Signature;

/// Damage in, or absence of, an ACPI table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AcpiError {
    /// No RSDP where the boot loader said, nor in the BIOS areas.
    #[error("no ACPI root pointer found in {looked_in}")]
    NoRootPointer {
        /// Where it was searched.
        looked_in: &'static str,
    },
    /// Bytes that a pointer or length names are not there.
    #[error("{what} at {address} wants {wanted} bytes, which are not readable memory")]
    Unreadable {
        /// The table or structure.
        what: Signature,
        /// Where it would start.
        address: PhysAddr,
        /// How long it would be.
        wanted: u32,
    },
    /// A table does not begin with its signature.
    #[error("expected table {expected} at {address}, found {found}")]
    WrongSignature {
        /// Where the table is.
        address: PhysAddr,
        /// The signature that was expected.
        expected: Signature,
        /// The signature that is there.
        found: Signature,
    },
    /// The bytes of a table do not add up to zero.
    #[error("table {table} at {address}: bytes add up to {sum:#04x}, expected 0x00")]
    BadChecksum {
        /// The table.
        table: Signature,
        /// Where it is.
        address: PhysAddr,
        /// The sum that was found.
        sum: u8,
    },
    /// A length field is below what the structure needs.
    #[error("{table}: length {found} at offset {offset} is below the minimum of {minimum}")]
    TooShort {
        /// The table.
        table: Signature,
        /// Offset of the structure in the table.
        offset: usize,
        /// The length that was found.
        found: usize,
        /// The length that is needed.
        minimum: usize,
    },
    /// A structure reaches past the end of its table.
    #[error("{table}: structure of {found} bytes at offset {offset} passes the end at {end}")]
    PastEnd {
        /// The table.
        table: Signature,
        /// Offset of the structure in the table.
        offset: usize,
        /// The length that was found.
        found: usize,
        /// The length of the table.
        end: usize,
    },
    /// More entries than the image keeps.
    #[error("{table}: more than {limit} entries")]
    TooMany {
        /// The table.
        table: Signature,
        /// How many are kept.
        limit: usize,
    },
    /// A PCI configuration region covers no bus.
    #[error("MCFG: segment {segment} ends at bus {last} before it starts at bus {first}")]
    BusRange {
        /// The PCI segment.
        segment: u16,
        /// First bus.
        first: u8,
        /// Last bus.
        last: u8,
    },
}
