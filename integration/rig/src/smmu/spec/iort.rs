//! Firmware's description of a machine with SMMUs: an I/O remapping table (IORT, Arm DEN 0049, as ACPICA has it).

use crate::acpi;

/// Bytes of the table's header: that of every table, how many nodes there are, and where they begin.
const HEADER: usize = acpi::HEADER_BYTES + 12;
/// Bytes of an SMMU's node and of a host bridge's, without mappings.
const SMMU_BYTES: u16 = 68;
const ROOT_BYTES: u16 = 36;
/// Bytes of a node of reserved memory, without ranges and mappings.
const RESERVED_BYTES: u16 = 28;
/// Bytes of a range of such memory.
const RANGE_BYTES: u16 = 20;
/// Bytes of a node of interrupt translation services with one of them.
const SERVICES_BYTES: u16 = 24;
/// Bytes of a mapping.
const MAPPING_BYTES: u16 = 20;
/// Flag of a mapping: it has one output, whatever comes in.
const SINGLE: u32 = 1;
/// Attributes of reserved memory (flags, 9:2): normal write-back. It is not to be moved (bit 0), and not for privileged
/// requests alone (bit 1).
const WRITE_BACK: u32 = 5 << 2;

/// The wire of the first unit's events; its errors have the next, and so on.
const FIRST_WIRE: u32 = 64;

/// An SMMU.
#[derive(Clone, Debug)]
pub(crate) struct SmmuNode {
    pub(crate) base: u64,
    pub(crate) coherent: bool,
    /// What it notes in leaves, as IDR0.HTTU has it: more than that the table has no word for.
    pub(crate) httu: u8,
    /// Which model it is.
    pub(crate) model: u32,
    /// All its interrupts are one wire.
    pub(crate) one_wire: bool,
    /// The stream of requester 0.
    pub(crate) first_stream: u32,
    /// Who its requesters are to interrupt translation services.
    pub(crate) writers: Vec<RequesterRange>,
}

/// Requesters of an SMMU that become writers of messages, one for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequesterRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
    /// Who the first is to the services.
    pub(crate) device: u32,
    /// Which services, by their place in the table.
    pub(crate) services: usize,
}

/// Requesters of a host bridge that become streams of an SMMU, one for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) stream: u32,
    /// Which SMMU, by its number.
    pub(crate) smmu: usize,
}

/// A host bridge: its segment, and who goes where.
#[derive(Clone, Debug)]
pub(crate) struct RootNode {
    pub(crate) segment: u16,
    /// Its devices reach memory coherently whatever they say (CANWBS).
    pub(crate) canwbs: bool,
    /// Its devices may ask for translations.
    pub(crate) ats: bool,
    /// Bits of a PASID that it forwards; 0 for none.
    pub(crate) pasid_bits: u8,
    pub(crate) mappings: Vec<Mapping>,
}

/// Memory that firmware goes on using through some streams (RMR), at the same addresses.
#[derive(Clone, Debug)]
pub(crate) struct ReservedNode {
    /// First byte, and how many.
    pub(crate) memory: (u64, u64),
    /// Whose: the number of an SMMU, and a stream of it.
    pub(crate) streams: Vec<(usize, u32)>,
}

fn node(bytes: &mut Vec<u8>, kind: u8, revision: u8, length: u16, number: usize, mappings: usize) {
    let offset = if mappings == 0 { 0 } else { length };
    let whole = length + MAPPING_BYTES * mappings as u16;
    bytes.push(kind);
    bytes.extend(whole.to_le_bytes());
    bytes.push(revision);
    bytes.extend((number as u32).to_le_bytes());
    bytes.extend((mappings as u32).to_le_bytes());
    bytes.extend(u32::from(offset).to_le_bytes());
}

/// Where the node of an SMMU is, or the first byte behind the last.
fn smmu_at(smmus: &[SmmuNode], number: usize) -> usize {
    let before = smmus.iter().take(number);
    let bytes = before.map(|smmu| SMMU_BYTES + MAPPING_BYTES * smmu.writers.len() as u16);
    HEADER + bytes.map(usize::from).sum::<usize>()
}

/// The table. `services` are the numbers of interrupt translation services.
pub(crate) fn table(
    smmus: &[SmmuNode],
    roots: &[RootNode],
    reserved: &[ReservedNode],
    services: &[u32],
) -> Vec<u8> {
    // Revision E.f.
    let mut bytes = acpi::begin(*b"IORT", 6);
    let nodes = smmus.len() + services.len() + roots.len() + reserved.len();
    bytes.extend((nodes as u32).to_le_bytes());
    bytes.extend((HEADER as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for (number, smmu) in smmus.iter().enumerate() {
        node(&mut bytes, 4, 4, SMMU_BYTES, number, smmu.writers.len());
        bytes.extend(smmu.base.to_le_bytes());
        let flags = u32::from(smmu.coherent) | u32::from(smmu.httu.min(2)) << 1;
        bytes.extend(flags.to_le_bytes());
        // Reserved, no VATOS.
        bytes.extend([0; 4 + 8]);
        bytes.extend(smmu.model.to_le_bytes());
        let wire = FIRST_WIRE + 2 * number as u32;
        // Those of events and global errors alone, or one for all.
        let wires = match smmu.one_wire {
            true => [wire; 4],
            false => [wire, 0, wire + 1, 0],
        };
        for wire in wires {
            bytes.extend(wire.to_le_bytes());
        }
        bytes.extend([0; 4 + 4]);
        for writers in &smmu.writers {
            let at = smmu_at(smmus, smmus.len()) + writers.services * usize::from(SERVICES_BYTES);
            let stream = smmu.first_stream + u32::from(writers.first);
            let one_less = u32::from(writers.last - writers.first);
            for word in [stream, one_less, writers.device, at as u32, 0] {
                bytes.extend(word.to_le_bytes());
            }
        }
    }
    for (number, id) in services.iter().enumerate() {
        let length = SERVICES_BYTES;
        node(&mut bytes, 0, 1, length, smmus.len() + number, 0);
        for word in [1, *id] {
            bytes.extend(word.to_le_bytes());
        }
    }
    let before_roots = smmus.len() + services.len();
    for (number, root) in roots.iter().enumerate() {
        node(
            &mut bytes,
            2,
            3,
            ROOT_BYTES,
            before_roots + number,
            root.mappings.len(),
        );
        // Its devices snoop.
        bytes.extend(1u32.to_le_bytes());
        bytes.extend([0, 0, 0, if root.canwbs { 7 } else { 3 }]);
        // ATS, and PASIDs forwarded, or not (attributes 0 and 2).
        let passes = u32::from(root.pasid_bits != 0) << 2;
        bytes.extend((u32::from(root.ats) | passes).to_le_bytes());
        bytes.extend(u32::from(root.segment).to_le_bytes());
        // Bits of an address; bits of a PASID.
        bytes.extend([64, root.pasid_bits, 0, 0]);
        for mapping in &root.mappings {
            let at = smmu_at(smmus, mapping.smmu);
            let one_less = u32::from(mapping.last - mapping.first);
            for word in [mapping.first.into(), one_less, mapping.stream, at as u32, 0] {
                bytes.extend(word.to_le_bytes());
            }
        }
    }
    for (number, region) in reserved.iter().enumerate() {
        let number = before_roots + roots.len() + number;
        let length = RESERVED_BYTES + RANGE_BYTES;
        node(&mut bytes, 6, 3, length, number, region.streams.len());
        for word in [WRITE_BACK, 1, RESERVED_BYTES.into()] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(region.memory.0.to_le_bytes());
        bytes.extend(region.memory.1.to_le_bytes());
        bytes.extend([0; 4]);
        for (smmu, stream) in &region.streams {
            let at = smmu_at(smmus, *smmu);
            for word in [0, 0, *stream, at as u32, SINGLE] {
                bytes.extend(word.to_le_bytes());
            }
        }
    }
    acpi::finish(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_where_mappings_say() {
        let smmu = SmmuNode {
            base: 0x905_0000,
            coherent: true,
            httu: 2,
            model: 2,
            one_wire: true,
            first_stream: 0x1_0000,
            writers: Vec::new(),
        };
        let mapping = Mapping {
            first: 0x100,
            last: 0x1ff,
            stream: 0x1_0100,
            smmu: 1,
        };
        let root = RootNode {
            segment: 7,
            canwbs: true,
            ats: false,
            pasid_bits: 20,
            mappings: vec![mapping],
        };
        let reserved = ReservedNode {
            memory: (0x1_0010_0000, 0x5000),
            streams: vec![(0, 0x10), (1, 0x1_0011)],
        };
        let bytes = table(&[smmu.clone(), smmu], &[root], &[reserved], &[]);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(4) as usize, bytes.len());
        assert_eq!((word(36), word(40)), (4, 48));
        let (second, root) = (HEADER + 68, HEADER + 136);
        assert_eq!((word(second + 24), bytes[root + 23]), (5, 7));
        assert_eq!((bytes[second], word(second + 16)), (4, 0x905_0000));
        assert_eq!((word(second + 40), word(second + 44)), (2, 66));
        assert_eq!((word(second + 48), word(second + 56)), (66, 66));
        assert_eq!((bytes[root], word(root + 28), word(root + 12)), (2, 7, 36));
        assert_eq!((word(root + 24), bytes[root + 33]), (4, 20));
        let at = root + 36;
        assert_eq!(
            (word(at), word(at + 4), word(at + 8)),
            (0x100, 0xff, 0x1_0100)
        );
        assert_eq!(word(at + 12) as usize, second);
        let region = at + 20;
        assert_eq!((bytes[region], word(region + 8)), (6, 2));
        assert_eq!((word(region + 12), word(region + 20)), (48, 1));
        assert_eq!((word(region + 28), word(region + 36)), (0x10_0000, 0x5000));
        let second_stream = region + 48 + 20;
        assert_eq!(word(second_stream + 8), 0x1_0011);
        assert_eq!(word(second_stream + 12) as usize, second);
        assert_eq!(
            (word(second_stream + 16), bytes.len()),
            (1, second_stream + 20)
        );
        assert_eq!(
            bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
    }
    #[test]
    fn writers_of_messages_are_told_between_units_and_what_is_behind_them() {
        let writers = |services| RequesterRange {
            first: 8,
            last: 0xff,
            device: 0x20_0008,
            services,
        };
        let smmu = |services| SmmuNode {
            base: 0x905_0000,
            coherent: true,
            httu: 0,
            model: 0,
            one_wire: false,
            first_stream: 0x1_0000,
            writers: vec![writers(services)],
        };
        let mapping = Mapping {
            first: 0,
            last: 0xff,
            stream: 0x1_0000,
            smmu: 1,
        };
        let root = RootNode {
            segment: 0,
            canwbs: false,
            ats: false,
            pasid_bits: 0,
            mappings: vec![mapping],
        };
        let bytes = table(&[smmu(0), smmu(1)], &[root], &[], &[3, 8]);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let (second, first_its) = (HEADER + 88, HEADER + 176);
        assert_eq!((word(36), bytes[first_its]), (5, 0));
        let its = first_its + 24;
        assert_eq!((bytes[its], word(its + 16), word(its + 20)), (0, 1, 8));
        assert_eq!((word(second + 8), word(second + 12)), (1, 68));
        let at = second + 68;
        assert_eq!(
            [word(at), word(at + 4), word(at + 8), word(at + 12)],
            [0x1_0008, 0xf7, 0x20_0008, its as u32]
        );
        let root = its + 24;
        assert_eq!((bytes[root], word(root + 36 + 12)), (2, second as u32));
    }
}
