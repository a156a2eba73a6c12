//! The IORT of ACPI: how its nodes lie in memory.
//!
//! All numbers are little endian and nothing is aligned. Source: ACPICA `actbl2.h` (revision E.f), in agreement with
//! coreboot, edk2 platform tables and Linux `drivers/acpi/arm64/iort.c`.

use static_assertions::const_assert_eq;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The table's signature.
pub const SIGNATURE: [u8; 4] = *b"IORT";

/// The table's header: the one of all ACPI tables and what IORT adds.
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
    /// How many nodes there are.
    pub node_count: U32,
    /// Where the first is, from the start of the table.
    pub node_offset: U32,
    /// Reserved.
    pub reserved: U32,
}
const_assert_eq!(size_of::<TableHeader>(), 48);

/// What each node starts with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct NodeHeader {
    /// Kind of node, [`TYPE_ITS_GROUP`] and its neighbours.
    pub kind: u8,
    /// Bytes of the node, this header and its mappings included.
    pub length: U16,
    /// Revision of the node.
    pub revision: u8,
    /// Number of the node; all zero in older tables.
    pub identifier: U32,
    /// How many [`IdMapping`]s the node has.
    pub mapping_count: U32,
    /// Where they are, from the start of the node.
    pub mapping_offset: U32,
}
const_assert_eq!(size_of::<NodeHeader>(), 16);

/// Node: interrupt translation services.
pub const TYPE_ITS_GROUP: u8 = 0;
/// Node: a device of the ACPI namespace.
pub const TYPE_NAMED_COMPONENT: u8 = 1;
/// Node: a PCI host bridge.
pub const TYPE_ROOT_COMPLEX: u8 = 2;
/// Node: an SMMU of an older architecture.
pub const TYPE_SMMU_V1_V2: u8 = 3;
/// Node: an SMMUv3.
pub const TYPE_SMMU_V3: u8 = 4;
/// Node: a performance counter group.
pub const TYPE_PMCG: u8 = 5;
/// Node: reserved memory ranges.
pub const TYPE_RMR: u8 = 6;
/// Node: an interrupt wire bridge.
pub const TYPE_IWB: u8 = 7;

/// The fixed part of a node to which a revision has added something.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct Grown<T, More> {
    /// What it had before.
    pub first: T,
    /// What was added.
    pub more: More,
}

/// An id mapping: from what a node receives to what it sends on.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct IdMapping {
    /// The first id that is mapped.
    pub input_base: U32,
    /// How many are, less one. Some firmware stored how many.
    pub count: U32,
    /// What the first becomes.
    pub output_base: U32,
    /// The node that it goes to: its offset from the start of the table.
    pub output_reference: U32,
    /// [`MAPPING_SINGLE`].
    pub flags: U32,
}
const_assert_eq!(size_of::<IdMapping>(), 20);

/// Mapping flag: whatever the input is, the output is the output base.
pub const MAPPING_SINGLE: u32 = 1 << 0;

/// The fixed part of an ITS group; the ids of its services follow, 32 bits each.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct ItsGroupBody {
    /// How many services there are.
    pub count: U32,
}
const_assert_eq!(size_of::<ItsGroupBody>(), 4);

/// How a device reaches memory.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryProperties {
    /// [`CCA_COHERENT`] or 0.
    pub cca: U32,
    /// Allocation hints: transient, write, read, override (bits 0 to 3).
    pub hints: u8,
    /// Reserved.
    pub reserved: U16,
    /// [`MEMORY_CPM`] and its neighbours.
    pub flags: u8,
}
const_assert_eq!(size_of::<MemoryProperties>(), 8);

/// CCA: fully coherent.
pub const CCA_COHERENT: u32 = 1;
/// Memory flag: coherent path to memory.
pub const MEMORY_CPM: u8 = 1 << 0;
/// Memory flag: device attributes are cacheable and inner shareable.
pub const MEMORY_DACS: u8 = 1 << 1;
/// Memory flag: accesses to memory are coherent whatever attributes the device sends or the SMMU gives them, No_snoop
/// included (IORT E.f, as ACPICA and Linux's CANWBS have it).
pub const MEMORY_CANWBS: u8 = 1 << 2;

/// The fixed part of a named component; its path in the ACPI namespace follows, ended by a zero.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct NamedComponentBody {
    /// [`NAMED_STALL`] and [`named_pasid_bits`].
    pub flags: U32,
    /// How it reaches memory.
    pub memory: MemoryProperties,
    /// Bits of an address that it can send.
    pub address_limit: u8,
}
const_assert_eq!(size_of::<NamedComponentBody>(), 13);

/// Named component flag: its transactions may stall.
pub const NAMED_STALL: u32 = 1 << 0;

/// How many PASID bits a named component has (flags, bits 5:1).
pub const fn named_pasid_bits(flags: U32) -> u8 {
    (flags.get() >> 1 & 0x1f) as u8
}

/// The fixed part of a root complex. Older revisions end before the address limit, or before the PASID bits.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RootComplexBody {
    /// How its devices reach memory.
    pub memory: MemoryProperties,
    /// [`ROOT_ATS`] and its neighbours.
    pub ats: U32,
    /// PCI segment.
    pub segment: U32,
}
const_assert_eq!(size_of::<RootComplexBody>(), 16);

/// What later revisions of a root complex add.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RootComplexLimits {
    /// Bits of an address that its devices can send.
    pub address_limit: u8,
    /// Most PASID bits (4:0).
    pub pasid: U16,
}
const_assert_eq!(size_of::<RootComplexLimits>(), 3);

/// Root complex: devices may ask for translations.
pub const ROOT_ATS: u32 = 1 << 0;
/// Root complex: devices may ask for pages.
pub const ROOT_PRI: u32 = 1 << 1;
/// Root complex: PASIDs are forwarded.
pub const ROOT_PASID: u32 = 1 << 2;
/// Root complex, PASID capabilities: the width.
pub const ROOT_PASID_BITS: u16 = 0x1f;

/// The fixed part of an SMMUv3, in node revision 0 all of it: there is nothing about messages of its own.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct SmmuV3Body {
    /// Address of page 0.
    pub base: U64,
    /// [`SMMU_COHACC_OVERRIDE`] and its neighbours.
    pub flags: U32,
    /// Reserved.
    pub reserved: U32,
    /// Address of VATOS registers, or 0.
    pub vatos: U64,
    /// [`MODEL_GENERIC`] and its neighbours.
    pub model: U32,
    /// Interrupt of the event queue, 0 for none.
    pub event_gsiv: U32,
    /// Interrupt of the page request queue, 0 for none.
    pub pri_gsiv: U32,
    /// Interrupt of global errors, 0 for none.
    pub gerror_gsiv: U32,
    /// Interrupt of CMD_SYNC, 0 for none.
    pub sync_gsiv: U32,
}
const_assert_eq!(size_of::<SmmuV3Body>(), 44);

/// What node revision 1 adds to an SMMUv3. Source: Linux `drivers/acpi/arm64/iort.c` (`iort_get_id_mapping_index`); tables
/// of revision 0 without it: QEMU before 6.2 (`AcpiIortSmmu3`).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct SmmuV3Places {
    /// Proximity domain, with [`SMMU_PXM_VALID`].
    pub proximity: U32,
    /// The mapping that gives the DeviceID of its own messages, see [`SMMU_DEVICE_ID_VALID`].
    pub device_id_mapping: U32,
}
const_assert_eq!(size_of::<SmmuV3Places>(), 8);

/// The revision of the node of an SMMUv3 from which [`SmmuV3Places`] are there.
pub const SMMU_REVISION_PLACES: u8 = 1;

/// SMMUv3 flag: it snoops the CPU's caches, whatever IDR0.COHACC says; without it, it does not.
pub const SMMU_COHACC_OVERRIDE: u32 = 1 << 0;
/// SMMUv3 flag: the proximity domain is one.
pub const SMMU_PXM_VALID: u32 = 1 << 3;
/// SMMUv3 flag: the DeviceID mapping index is one (node revision 5 and later; from revision 1 on, it is one if some interrupt
/// is none of the wires).
pub const SMMU_DEVICE_ID_VALID: u32 = 1 << 4;
/// SMMUv3 flags that are known (4:0).
pub const SMMU_FLAGS: u32 = 0x1f;
/// The revision of the node from which [`SMMU_DEVICE_ID_VALID`] decides.
pub const SMMU_REVISION_DEVICE_ID_FLAG: u8 = 5;

/// What an SMMUv3 notes in leaves, whatever IDR0.HTTU says (flags, bits 2:1).
pub const fn smmu_httu_override(flags: u32) -> u8 {
    (flags >> 1 & 3) as u8
}

/// Model: as the architecture has it.
pub const MODEL_GENERIC: u32 = 0;
/// Model: HiSilicon Hi161x.
pub const MODEL_HISILICON_HI161X: u32 = 1;
/// Model: Cavium CN99xx.
pub const MODEL_CAVIUM_CN99XX: u32 = 2;

/// The fixed part of an SMMU of an older architecture; what follows is of no use here.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct SmmuBody {
    /// Address of the registers.
    pub base: U64,
    /// Bytes of the registers.
    pub span: U64,
    /// Model.
    pub model: U32,
    /// Flags.
    pub flags: U32,
}
const_assert_eq!(size_of::<SmmuBody>(), 24);

/// The fixed part of a performance counter group.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct PmcgBody {
    /// Address of page 0.
    pub base: U64,
    /// Overflow interrupt, 0 for none.
    pub overflow_gsiv: U32,
    /// The node whose events it counts: its offset from the start of the table.
    pub reference: U32,
}
const_assert_eq!(size_of::<PmcgBody>(), 16);

/// What node revision 1 adds to a performance counter group. Source: Linux `drivers/acpi/arm64/iort.c`
/// (`arm_smmu_v3_pmcg_init_resources`).
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PmcgPage {
    /// Address of page 1.
    pub page_1: U64,
}
const_assert_eq!(size_of::<PmcgPage>(), 8);

/// The revision of the node of a performance counter group from which [`PmcgPage`] is there.
pub const PMCG_REVISION_PAGE: u8 = 1;

/// The fixed part of a node of reserved memory ranges.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RmrBody {
    /// [`RMR_REMAP_PERMITTED`], [`RMR_PRIVILEGED`] and [`rmr_attributes`].
    pub flags: U32,
    /// How many [`RmrDescriptor`]s there are.
    pub count: U32,
    /// Where they are, from the start of the node.
    pub offset: U32,
}
const_assert_eq!(size_of::<RmrBody>(), 12);

/// RMR flag: the ranges may be mapped elsewhere.
pub const RMR_REMAP_PERMITTED: u32 = 1 << 0;
/// RMR flag: for privileged requests.
pub const RMR_PRIVILEGED: u32 = 1 << 1;

/// Memory attributes of reserved ranges (flags, bits 9:2): 0 to 3 are device memory, 4 normal non-cacheable, 5 normal
/// write-back.
pub const fn rmr_attributes(flags: u32) -> u8 {
    (flags >> 2) as u8
}

/// A reserved memory range.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, Debug)]
#[repr(C)]
pub struct RmrDescriptor {
    /// First byte.
    pub base: U64,
    /// Bytes.
    pub length: U64,
    /// Reserved.
    pub reserved: U32,
}
const_assert_eq!(size_of::<RmrDescriptor>(), 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_written_by_hand_read_back() {
        // The SMMUv3 of QEMU's virt board.
        let mut node = [0u8; 52];
        node[..8].copy_from_slice(&0x905_0000u64.to_le_bytes());
        node[8] = 0x1d;
        node[24] = 2;
        node[28..44].copy_from_slice(&[106, 0, 0, 0, 107, 0, 0, 0, 109, 0, 0, 0, 108, 0, 0, 0]);
        node[48] = 3;
        let (node, places) = SmmuV3Body::read_from_prefix(&node).unwrap();
        let places = SmmuV3Places::read_from_bytes(places).unwrap();
        assert_eq!((node.base.get(), node.model.get()), (0x905_0000, 2));
        let flags = node.flags.get();
        assert_eq!(
            flags,
            SMMU_COHACC_OVERRIDE | SMMU_PXM_VALID | SMMU_DEVICE_ID_VALID | 2 << 1
        );
        assert_eq!(smmu_httu_override(flags), 2);
        let interrupts = [
            node.event_gsiv,
            node.pri_gsiv,
            node.gerror_gsiv,
            node.sync_gsiv,
        ];
        assert_eq!(interrupts.map(U32::get), [106, 107, 109, 108]);
        assert_eq!(places.device_id_mapping.get(), 3);
    }

    #[test]
    fn fields_match_an_independent_table() {
        assert_eq!(named_pasid_bits(U32::new(0x29)), 20);
        assert_eq!(
            rmr_attributes(5 << 2 | RMR_REMAP_PERMITTED | RMR_PRIVILEGED),
            5
        );
        let mut header = [0u8; 16];
        header[0] = TYPE_RMR;
        header[1..3].copy_from_slice(&[0x34, 0x12]);
        header[3] = 3;
        header[8] = 7;
        header[12] = 0x1c;
        let header = NodeHeader::read_from_bytes(&header).unwrap();
        assert_eq!(
            (header.kind, header.length.get(), header.revision),
            (6, 0x1234, 3)
        );
        assert_eq!(
            (header.mapping_count.get(), header.mapping_offset.get()),
            (7, 0x1c)
        );
    }
}
