//! The DMAR table of ACPI: how its structures lie in memory.
//!
//! All numbers are little endian and nothing is aligned. Source: ACPICA `actbl1.h`, coreboot
//! `acpi.h`, Linux `dmar.c`, Xen `vtd/dmar.c`.

use static_assertions::const_assert_eq;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"DMAR";

/// The table's header: the one of all ACPI tables and what DMAR adds.
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
    /// Who made the machine.
    pub oem_id: [u8; 6],
    /// The maker's name for the table.
    pub oem_table_id: [u8; 8],
    /// The maker's revision.
    pub oem_revision: U32,
    /// Which tool made the table.
    pub creator_id: [u8; 4],
    /// The tool's revision.
    pub creator_revision: U32,
    /// Significant bits of a host address, minus one.
    pub host_address_width: u8,
    /// [`FLAG_INTR_REMAP`] and its neighbours.
    pub flags: u8,
    /// Reserved.
    pub reserved: [u8; 10],
}
const_assert_eq!(size_of::<TableHeader>(), 48);

/// Offset of the table length.
pub const LENGTH_OFFSET: usize = 4;
/// Offset of the checksum.
pub const CHECKSUM_OFFSET: usize = 9;
/// Offset of the host address width.
pub const HOST_ADDRESS_WIDTH_OFFSET: usize = 36;

/// Table flag: the platform supports interrupt remapping.
pub const FLAG_INTR_REMAP: u8 = 1 << 0;
/// Table flag: do not use x2APIC.
pub const FLAG_X2APIC_OPT_OUT: u8 = 1 << 1;
/// Table flag: firmware asks for DMA protection by the system.
pub const FLAG_DMA_OPT_IN: u8 = 1 << 2;

/// What each structure starts with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RecordHeader {
    /// Kind of structure, [`TYPE_DRHD`] and its neighbours.
    pub kind: U16,
    /// Bytes of the structure, this header included.
    pub length: U16,
}
const_assert_eq!(size_of::<RecordHeader>(), 4);

/// Structure: a remapping unit.
pub const TYPE_DRHD: u16 = 0;
/// Structure: a reserved memory region.
pub const TYPE_RMRR: u16 = 1;
/// Structure: root ports that support ATS.
pub const TYPE_ATSR: u16 = 2;
/// Structure: a unit's proximity domain.
pub const TYPE_RHSA: u16 = 3;
/// Structure: name of an ACPI device.
pub const TYPE_ANDD: u16 = 4;
/// Structure: integrated devices with address translation caches.
pub const TYPE_SATC: u16 = 5;
/// Structure: properties of integrated devices (ACPICA only).
pub const TYPE_SIDP: u16 = 6;

/// DRHD without the structure header; scopes follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct DrhdBody {
    /// [`DRHD_INCLUDE_ALL`].
    pub flags: u8,
    /// Bits 3:0: log2 of the size of the register set in pages; the rest is reserved.
    pub size: u8,
    /// PCI segment.
    pub segment: U16,
    /// Address of the registers.
    pub base: U64,
}
const_assert_eq!(size_of::<DrhdBody>(), 12);

/// DRHD flag: covers all functions of the segment that no other unit names.
pub const DRHD_INCLUDE_ALL: u8 = 1 << 0;
/// DRHD size: the bits that are not reserved.
pub const DRHD_SIZE: u8 = 0xf;

/// RMRR without the structure header; scopes follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RmrrBody {
    /// Reserved.
    pub reserved: U16,
    /// PCI segment.
    pub segment: U16,
    /// First byte of the region.
    pub base: U64,
    /// Last byte of the region.
    pub limit: U64,
}
const_assert_eq!(size_of::<RmrrBody>(), 20);

/// ATSR, SATC or SIDP without the structure header; scopes follow.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ScopedBody {
    /// ATSR: [`ATSR_ALL_PORTS`]. SATC: [`SATC_REQUIRED`]. SIDP: reserved.
    pub flags: u8,
    /// Reserved.
    pub reserved: u8,
    /// PCI segment.
    pub segment: U16,
}
const_assert_eq!(size_of::<ScopedBody>(), 4);

/// ATSR flag: all root ports support ATS.
pub const ATSR_ALL_PORTS: u8 = 1 << 0;
/// SATC flag: the devices need ATS (Xen only).
pub const SATC_REQUIRED: u8 = 1 << 0;

/// RHSA without the structure header.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RhsaBody {
    /// Reserved.
    pub reserved: U32,
    /// Address of the unit's registers.
    pub base: U64,
    /// The proximity domain.
    pub domain: U32,
}
const_assert_eq!(size_of::<RhsaBody>(), 16);

/// ANDD without the structure header; a path of ASCII characters ended by zero follows.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct AnddBody {
    /// Reserved.
    pub reserved: [u8; 3],
    /// The number by which scopes name the device.
    pub number: u8,
}
const_assert_eq!(size_of::<AnddBody>(), 4);

/// What each device scope starts with; the path follows in pairs.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ScopeHeader {
    /// Kind of device, [`SCOPE_ENDPOINT`] and its neighbours.
    pub kind: u8,
    /// Bytes of the scope: 6 and 2 for each step of the path.
    pub length: u8,
    /// Properties in a SIDP; reserved in older tables.
    pub flags: u8,
    /// Reserved.
    pub reserved: u8,
    /// IOAPIC id, HPET number or ANDD device number.
    pub enumeration_id: u8,
    /// Bus at which the path starts.
    pub start_bus: u8,
}
const_assert_eq!(size_of::<ScopeHeader>(), 6);

/// The highest device number of a path's step.
pub const DEVICE_MAX: u8 = 31;
/// The highest function number of a path's step.
pub const FUNCTION_MAX: u8 = 7;

/// Scope: a PCI endpoint.
pub const SCOPE_ENDPOINT: u8 = 1;
/// Scope: a PCI bridge and what is behind it.
pub const SCOPE_BRIDGE: u8 = 2;
/// Scope: an IOAPIC.
pub const SCOPE_IOAPIC: u8 = 3;
/// Scope: an HPET that sends MSIs.
pub const SCOPE_HPET: u8 = 4;
/// Scope: an ACPI device.
pub const SCOPE_NAMESPACE: u8 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_written_by_hand_reads_back() {
        let drhd = [1, 0x04, 0x02, 0x01, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0];
        let drhd = DrhdBody::read_from_bytes(&drhd).unwrap();
        assert_eq!((drhd.flags, drhd.size & DRHD_SIZE), (1, 4));
        assert_eq!((drhd.segment.get(), drhd.base.get()), (0x0102, 0xfed9_1000));
        let scope = [1, 8, 0x1f, 0, 7, 0x3a];
        let scope = ScopeHeader::read_from_bytes(&scope).unwrap();
        assert_eq!((scope.kind, scope.length, scope.flags), (1, 8, 0x1f));
        assert_eq!((scope.enumeration_id, scope.start_bus), (7, 0x3a));
    }

    #[test]
    fn header_fields_lie_where_the_offsets_say() {
        let mut bytes = [0u8; 48];
        bytes[LENGTH_OFFSET] = 0xaa;
        bytes[CHECKSUM_OFFSET] = 0xbb;
        bytes[HOST_ADDRESS_WIDTH_OFFSET] = 0xcc;
        bytes[37] = 0x07;
        let header = TableHeader::read_from_bytes(&bytes).unwrap();
        assert_eq!(header.length.get(), 0xaa);
        assert_eq!(header.checksum, 0xbb);
        assert_eq!(header.host_address_width, 0xcc);
        assert_eq!(
            header.flags,
            FLAG_INTR_REMAP | FLAG_X2APIC_OPT_OUT | FLAG_DMA_OPT_IN
        );
    }
}
