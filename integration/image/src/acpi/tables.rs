//! The walk from the root pointer over the root table to single tables.
#![expect(
    unsafe_code,
    reason = "firmware tables are read where firmware left them"
)]

use core::fmt;

use hv_core::PhysAddr;
use zerocopy::FromBytes;

use super::error::AcpiError;
use super::spec::{Header, RSDP_SIGNATURE, RsdpV1, RsdpV2};
use super::{Madt, Mcfg};
use crate::memory::physical;
use crate::memory::usable::{Span, UsableRanges};

/// A table's name: four letters, printed with dots for what is not printable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// The root pointer, which has no four-letter name of its own.
    pub const RSDP: Self = Self(*b"RSDP");
    /// Root table with 32-bit pointers.
    pub const RSDT: Self = Self(*b"RSDT");
    /// Root table with 64-bit pointers.
    pub const XSDT: Self = Self(*b"XSDT");
    /// Interrupt controllers and processors.
    pub const MADT: Self = Self(*b"APIC");
    /// PCI configuration space.
    pub const MCFG: Self = Self(*b"MCFG");
    /// DMA remapping units.
    pub const DMAR: Self = Self(*b"DMAR");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| {
            let printable = byte.is_ascii_graphic();
            write!(f, "{}", if printable { char::from(*byte) } else { '.' })
        })
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where table bytes come from.
pub trait TableMemory<'a> {
    /// The `length` bytes at `address`, or `None` where no memory is readable.
    fn bytes(&self, address: PhysAddr, length: u32) -> Option<&'a [u8]>;
}

/// Firmware tables in place, through the identity map.
///
/// # Invariants
/// Everything below `limit` is mapped; RAM beside `handed_out` is not written any more.
#[derive(Clone, Debug)]
pub struct IdentityTables {
    limit: PhysAddr,
    handed_out: UsableRanges,
}

impl IdentityTables {
    /// Tables below `limit`, the end of the identity map, and outside of `handed_out`: a damaged
    /// pointer into memory that others write is refused.
    ///
    /// # Safety
    /// Everything below `limit` is mapped, and nobody writes RAM that is not in `handed_out` for as
    /// long as tables are used.
    pub const unsafe fn new(limit: PhysAddr, handed_out: UsableRanges) -> Self {
        // INVARIANT: the caller's promise.
        Self { limit, handed_out }
    }
}

impl TableMemory<'static> for IdentityTables {
    fn bytes(&self, address: PhysAddr, length: u32) -> Option<&'static [u8]> {
        let wanted = Span::new(address, length.into());
        let end = address.checked_add(length.into())?;
        let in_use = self.handed_out.iter().any(|range| wanted.overlaps(*range));
        if address.as_u64() == 0 || end > self.limit || in_use {
            return None;
        }
        // SAFETY: the invariant says that the bytes are mapped and, as they touch nothing that is
        // handed out, do not change. (Device registers may, but firmware has no reason to point
        // there, and reading bytes of them is still defined.)
        Some(unsafe { physical::bytes(address, length as usize) })
    }
}

/// First byte of the area that a BIOS keeps the root pointer in, if not in its extended data area.
const BIOS_AREA: PhysAddr = PhysAddr::new(0xe_0000);
/// Length of that area.
const BIOS_AREA_BYTES: u32 = 0x2_0000;
/// Where the BIOS data area keeps the segment of the extended data area.
const EBDA_SEGMENT: PhysAddr = PhysAddr::new(0x40e);
/// How much of the extended data area is searched.
const EBDA_BYTES: u32 = 1024;
/// The root pointer lies on such a boundary.
const RSDP_ALIGN: usize = 16;

/// The tables of a machine: a checked root table and the memory that it points into.
#[derive(Clone, Copy, Debug)]
pub struct Tables<'a, M> {
    memory: M,
    root: Signature,
    /// The root table's pointers, without its header.
    pointers: &'a [u8],
}

impl<'a, M: TableMemory<'a>> Tables<'a, M> {
    /// Finds the root table, by the pointer of the boot loader or in the BIOS areas.
    ///
    /// # Errors
    /// [`AcpiError`] when there is no root pointer, or it or the root table is damaged.
    pub fn find(memory: M, rsdp: Option<PhysAddr>) -> Result<Self, AcpiError> {
        let rsdp = match rsdp {
            Some(address) => address,
            None => scan(&memory).ok_or(AcpiError::NoRootPointer {
                looked_in: "start info, EBDA, 0xe0000..0xfffff",
            })?,
        };
        let (root, address) = root_table(&memory, rsdp)?;
        let table = checked_table(&memory, address, root)?;
        let pointers = table.get(size_of::<Header>()..).unwrap_or_default();
        Ok(Self {
            memory,
            root,
            pointers,
        })
    }

    /// Physical addresses of all tables, in the root table's order.
    pub fn addresses(&self) -> impl Iterator<Item = PhysAddr> + use<'a, M> {
        let width = if self.root == Signature::XSDT { 8 } else { 4 };
        self.pointers.chunks_exact(width).map(|pointer| {
            let little_endian = pointer.iter().rev();
            PhysAddr::new(little_endian.fold(0, |value, byte| value << 8 | u64::from(*byte)))
        })
    }

    /// Signatures of all tables, for people; `None` where a pointer leads nowhere.
    pub fn signatures(&self) -> impl Iterator<Item = Option<Signature>> {
        self.addresses()
            .map(|address| header(&self.memory, address).map(|header| Signature(header.signature)))
    }

    /// All bytes of the first table with this signature, checked; `None` if there is none.
    ///
    /// # Errors
    /// [`AcpiError`] when the table is damaged.
    pub fn table(&self, signature: Signature) -> Result<Option<&'a [u8]>, AcpiError> {
        match self.find_table(signature) {
            Some(address) => checked_table(&self.memory, address, signature).map(Some),
            None => Ok(None),
        }
    }

    /// Where the first table with this signature is.
    fn find_table(&self, signature: Signature) -> Option<PhysAddr> {
        self.addresses().find(|address| {
            header(&self.memory, *address).is_some_and(|header| header.signature == signature.0)
        })
    }

    /// The processors and interrupt controllers, or `None` without a MADT.
    ///
    /// # Errors
    /// [`AcpiError`] when the table is damaged.
    pub fn madt(&self) -> Result<Option<Madt>, AcpiError> {
        self.table(Signature::MADT)?.map(Madt::parse).transpose()
    }

    /// The PCI configuration regions, or `None` without an MCFG.
    ///
    /// # Errors
    /// [`AcpiError`] when the table is damaged.
    pub fn mcfg(&self) -> Result<Option<Mcfg>, AcpiError> {
        self.table(Signature::MCFG)?.map(Mcfg::parse).transpose()
    }

    /// The bytes of the DMAR, header included; `None` without one. Its checksum is left to its parser:
    /// shipped firmware has wrong ones, and a machine must not lose its IOMMU over that.
    ///
    /// # Errors
    /// [`AcpiError`] when the table cannot be read whole.
    pub fn dmar(&self) -> Result<Option<&'a [u8]>, AcpiError> {
        match self.find_table(Signature::DMAR) {
            Some(address) => whole_table(&self.memory, address, Signature::DMAR).map(Some),
            None => Ok(None),
        }
    }
}

/// What the tables behind the header are, with the header checked again: parsers also run on bytes
/// of their own.
pub(super) fn body(table: &[u8], signature: Signature) -> Result<&[u8], AcpiError> {
    table.get(size_of::<Header>()..).ok_or(AcpiError::TooShort {
        table: signature,
        offset: 0,
        found: table.len(),
        minimum: size_of::<Header>(),
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn header<'a>(memory: &impl TableMemory<'a>, address: PhysAddr) -> Option<&'a Header> {
    let bytes = memory.bytes(address, size_of::<Header>() as u32)?;
    Header::ref_from_bytes(bytes).ok()
}

/// The table at `address` with signature, length and checksum verified.
fn checked_table<'a>(
    memory: &impl TableMemory<'a>,
    address: PhysAddr,
    expected: Signature,
) -> Result<&'a [u8], AcpiError> {
    let table = whole_table(memory, address, expected)?;
    match sum(table) {
        0 => Ok(table),
        sum => Err(AcpiError::BadChecksum {
            table: expected,
            address,
            sum,
        }),
    }
}

/// All bytes of a table, whose checksum is not looked at.
fn whole_table<'a>(
    memory: &impl TableMemory<'a>,
    address: PhysAddr,
    expected: Signature,
) -> Result<&'a [u8], AcpiError> {
    let header = header(memory, address).ok_or(AcpiError::Unreadable {
        what: expected,
        address,
        wanted: size_of::<Header>() as u32,
    })?;
    let found = Signature(header.signature);
    if expected != found {
        return Err(AcpiError::WrongSignature {
            address,
            expected,
            found,
        });
    }
    let length = header.length.get();
    if (length as usize) < size_of::<Header>() {
        return Err(AcpiError::TooShort {
            table: found,
            offset: 0,
            found: length as usize,
            minimum: size_of::<Header>(),
        });
    }
    memory.bytes(address, length).ok_or(AcpiError::Unreadable {
        what: found,
        address,
        wanted: length,
    })
}

/// Which root table the root pointer names, and where it is.
fn root_table<'a>(
    memory: &impl TableMemory<'a>,
    rsdp: PhysAddr,
) -> Result<(Signature, PhysAddr), AcpiError> {
    let read = |wanted: u32| {
        let unreadable = AcpiError::Unreadable {
            what: Signature::RSDP,
            address: rsdp,
            wanted,
        };
        memory.bytes(rsdp, wanted).ok_or(unreadable)
    };
    let verify = |bytes: &[u8]| match sum(bytes) {
        0 => Ok(()),
        sum => Err(AcpiError::BadChecksum {
            table: Signature::RSDP,
            address: rsdp,
            sum,
        }),
    };
    let too_short = |found: usize, minimum: usize| AcpiError::TooShort {
        table: Signature::RSDP,
        offset: 0,
        found,
        minimum,
    };
    let short = read(size_of::<RsdpV1>() as u32)?;
    let v1 =
        RsdpV1::ref_from_bytes(short).map_err(|_| too_short(short.len(), size_of::<RsdpV1>()))?;
    if v1.signature != RSDP_SIGNATURE {
        let [a, b, c, d, ..] = v1.signature;
        return Err(AcpiError::WrongSignature {
            address: rsdp,
            expected: Signature(*b"RSD "),
            found: Signature([a, b, c, d]),
        });
    }
    verify(short)?;
    let rsdt = (Signature::RSDT, PhysAddr::new(v1.rsdt.get().into()));
    if v1.revision < 2 {
        return Ok(rsdt);
    }
    let long = read(size_of::<RsdpV2>() as u32)?;
    let v2 =
        RsdpV2::ref_from_bytes(long).map_err(|_| too_short(long.len(), size_of::<RsdpV2>()))?;
    let length = v2.length.get();
    if (length as usize) < size_of::<RsdpV2>() {
        return Err(too_short(length as usize, size_of::<RsdpV2>()));
    }
    verify(read(length)?)?;
    Ok(match v2.xsdt.get() {
        0 => rsdt,
        xsdt => (Signature::XSDT, PhysAddr::new(xsdt)),
    })
}

/// Searches the areas in which a BIOS leaves the root pointer.
fn scan<'a>(memory: &impl TableMemory<'a>) -> Option<PhysAddr> {
    let ebda = memory.bytes(EBDA_SEGMENT, 2).and_then(|bytes| match bytes {
        [low, high] => Some(u64::from(u16::from_le_bytes([*low, *high])) << 4),
        _ => None,
    });
    let areas = [
        (ebda.map(PhysAddr::new), EBDA_BYTES),
        (Some(BIOS_AREA), BIOS_AREA_BYTES),
    ];
    areas.into_iter().find_map(|(start, length)| {
        let start = start?;
        let bytes = memory.bytes(start, length)?;
        let place = bytes
            .chunks(RSDP_ALIGN)
            .position(|chunk| chunk.starts_with(&RSDP_SIGNATURE))?;
        let offset = place.checked_mul(RSDP_ALIGN)?;
        start.checked_add(offset as u64)
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
