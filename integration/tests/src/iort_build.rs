//! Builds IORT tables byte by byte, from the layout alone and not from the parser's types.

use crate::dmar_build::{Sample, fix_checksum, samples_of};

/// The IORT tables of machines, by name; none, said plainly, where the folder is missing.
pub fn samples() -> Vec<Sample> {
    samples_of(b"IORT")
}

/// An id mapping in the making.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// The first id.
    pub input: u32,
    /// The field that is one less than how many.
    pub count: u32,
    /// What the first becomes.
    pub output: u32,
    /// The node: its offset in the table.
    pub to: u32,
    /// Flags; 1 is single.
    pub flags: u32,
}

/// A mapping of `count` ids and one more.
pub const fn map(input: u32, count: u32, output: u32, to: u32) -> Map {
    Map {
        input,
        count,
        output,
        to,
        flags: 0,
    }
}

/// A single mapping.
pub const fn single(output: u32, to: u32) -> Map {
    Map {
        input: 0,
        count: 0,
        output,
        to,
        flags: 1,
    }
}

/// An SMMUv3 in the making; what is not told is as QEMU's virt board has it.
#[derive(Clone, Copy, Debug)]
pub struct Smmu {
    /// Address of its registers.
    pub base: u64,
    /// Flags; 1 is coherent.
    pub flags: u32,
    /// Model.
    pub model: u32,
    /// Interrupts: events, page requests, errors, syncs.
    pub interrupts: [u32; 4],
    /// The field of the mapping for its own messages.
    pub device_id_mapping: u32,
    /// Revision of the node.
    pub revision: u8,
}

impl Smmu {
    /// A coherent one of no special model.
    pub const fn at(base: u64) -> Self {
        Self {
            base,
            flags: 1,
            model: 0,
            interrupts: [106, 107, 109, 108],
            device_id_mapping: 0,
            revision: 4,
        }
    }
}

/// An IORT in the making.
#[derive(Clone, Debug)]
pub struct Table {
    bytes: Vec<u8>,
    nodes: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// A table without nodes.
    pub fn new() -> Self {
        let mut bytes = Vec::new();
        bytes.extend(b"IORT");
        bytes.extend([0; 4]);
        bytes.extend([6, 0]);
        bytes.extend(b"BUILT ");
        bytes.extend(b"TESTTAB\0");
        bytes.extend(7u32.to_le_bytes());
        bytes.extend(b"HAND");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(48u32.to_le_bytes());
        bytes.extend([0; 4]);
        Self { bytes, nodes: 0 }
    }

    /// Where the next node will stand.
    pub fn next(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Adds a node: its kind, revision, what follows the header, and its mappings.
    #[must_use]
    pub fn node(mut self, kind: u8, revision: u8, body: &[u8], maps: &[Map]) -> Self {
        let length = (16 + body.len() + 20 * maps.len()) as u16;
        let offset = if maps.is_empty() {
            0
        } else {
            16 + body.len() as u32
        };
        self.bytes.push(kind);
        self.bytes.extend(length.to_le_bytes());
        self.bytes.push(revision);
        self.bytes.extend(self.nodes.to_le_bytes());
        self.bytes.extend((maps.len() as u32).to_le_bytes());
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend(body);
        for map in maps {
            for word in [map.input, map.count, map.output, map.to, map.flags] {
                self.bytes.extend(word.to_le_bytes());
            }
        }
        self.nodes += 1;
        self
    }

    /// Adds a group of interrupt translation services.
    #[must_use]
    pub fn its(self, ids: &[u32]) -> Self {
        let mut body = (ids.len() as u32).to_le_bytes().to_vec();
        body.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        self.node(0, 1, &body, &[])
    }

    /// Adds a device of the ACPI namespace. The length of its name decides how the next node is aligned.
    #[must_use]
    pub fn component(self, flags: u32, name: &str, maps: &[Map]) -> Self {
        let mut body = flags.to_le_bytes().to_vec();
        body.extend(1u32.to_le_bytes());
        body.extend([0, 0, 0, 3]);
        body.push(40);
        body.extend(name.as_bytes());
        body.push(0);
        self.node(1, 4, &body, maps)
    }

    /// Adds a PCI host bridge with 16 PASID bits.
    #[must_use]
    pub fn root(self, segment: u32, ats: u32, maps: &[Map]) -> Self {
        let mut body = 1u32.to_le_bytes().to_vec();
        body.extend([0, 0, 0, 3]);
        body.extend(ats.to_le_bytes());
        body.extend(segment.to_le_bytes());
        body.extend([48, 16, 0, 0]);
        self.node(2, 4, &body, maps)
    }

    /// Adds an SMMU of an older architecture.
    #[must_use]
    pub fn old_smmu(self, base: u64) -> Self {
        let mut body = base.to_le_bytes().to_vec();
        body.extend(0x1_0000u64.to_le_bytes());
        body.extend([0; 44]);
        self.node(3, 3, &body, &[])
    }

    /// Adds an SMMUv3. One of revision 0 ends behind its interrupts.
    #[must_use]
    pub fn smmu(self, smmu: Smmu, maps: &[Map]) -> Self {
        let mut body = smmu.base.to_le_bytes().to_vec();
        body.extend(smmu.flags.to_le_bytes());
        body.extend([0; 12]);
        body.extend(smmu.model.to_le_bytes());
        body.extend(smmu.interrupts.iter().flat_map(|wire| wire.to_le_bytes()));
        if smmu.revision > 0 {
            body.extend(5u32.to_le_bytes());
            body.extend(smmu.device_id_mapping.to_le_bytes());
        }
        self.node(4, smmu.revision, &body, maps)
    }

    /// Adds a performance counter group.
    #[must_use]
    pub fn counters(self, base: u64, of: u32, maps: &[Map]) -> Self {
        let mut body = base.to_le_bytes().to_vec();
        body.extend(200u32.to_le_bytes());
        body.extend(of.to_le_bytes());
        body.extend((base + 0x1000).to_le_bytes());
        self.node(5, 2, &body, maps)
    }

    /// Adds reserved memory: base and length of each range.
    #[must_use]
    pub fn reserved(self, flags: u32, ranges: &[(u64, u64)], maps: &[Map]) -> Self {
        let mut body = flags.to_le_bytes().to_vec();
        body.extend((ranges.len() as u32).to_le_bytes());
        // Descriptors before the mappings.
        body.extend(28u32.to_le_bytes());
        for (base, length) in ranges {
            body.extend(base.to_le_bytes());
            body.extend(length.to_le_bytes());
            body.extend([0; 4]);
        }
        self.node(6, 3, &body, maps)
    }

    /// The bytes, with length, count and checksum.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes[36..40].copy_from_slice(&self.nodes.to_le_bytes());
        fix_checksum(&mut self.bytes);
        self.bytes
    }
}

/// Where nodes of the tables in [`built_tables`] stand: the services come first, then the SMMU.
pub const ITS: u32 = 48;

/// Tables of shapes that the samples lack.
pub fn built_tables() -> Vec<(&'static str, Vec<u8>)> {
    let virt = {
        let table = Table::new().its(&[0]);
        let smmu = table.next();
        table
            .smmu(Smmu::at(0x905_0000), &[map(0, 0xffff, 0, ITS)])
            .root(
                0,
                7,
                &[map(0, 0xff, 0, smmu), map(0x100, 0xfeff, 0x100, ITS)],
            )
    };
    let unaligned = {
        // Names of every length modulo 4 before what counts.
        let table = Table::new().its(&[0, 7]).component(0x29, "\\_SB.A", &[]);
        let table = table.component(0, "\\_SB.BC", &[]);
        let first = table.next();
        let table = table.smmu(Smmu::at(0x2b40_0000), &[map(0, 0xff_ffff, 0, ITS)]);
        let table = table.component(
            1,
            "\\_SB.DEVSX",
            &[single(0x7000, first), single(0x7001, first)],
        );
        let second = table.next();
        let smmu = Smmu {
            flags: 0x10 | 8 | 4,
            revision: 5,
            interrupts: [0; 4],
            device_id_mapping: 1,
            ..Smmu::at(0x2b50_0000)
        };
        table
            .smmu(
                smmu,
                &[map(0, 0xffff, 0x1_0000, ITS), single(0x2_0000, ITS)],
            )
            .root(0, 1, &[map(0, 0xffff, 0x1_0000, first)])
            .root(1, 0, &[map(0, 0xffff, 0, second)])
            .counters(0x2b40_2000, first, &[single(0x3_0000, ITS)])
            .reserved(
                0,
                &[(0x8800_0000, 0x20_0000)],
                &[map(0, 1, 0x1_0010, first)],
            )
            .reserved(
                1,
                &[(0x9000_0000, 0x1_0000), (0x9800_0000, 0x1_0000)],
                &[single(0x20, second)],
            )
            .old_smmu(0x2b60_0000)
            .node(7, 0, &[0; 8], &[])
    };
    let counts = {
        // Firmware that stored how many, and an id that only the last end has.
        let table = Table::new().its(&[0]);
        let one = table.next();
        let table = table.smmu(Smmu::at(0x905_0000), &[map(0, 0x1_0000, 0, ITS)]);
        let two = table.next();
        table
            .smmu(Smmu::at(0x907_0000), &[map(0, 0x1_0000, 0x1_0000, ITS)])
            .root(
                0,
                0,
                &[map(0, 0x100, 0, one), map(0x100, 0x100, 0x4000, two)],
            )
    };
    vec![
        ("as QEMU's virt board", virt.finish()),
        ("unaligned nodes of every kind", unaligned.finish()),
        ("counts that are one too many", counts.finish()),
    ]
}
