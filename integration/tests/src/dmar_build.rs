//! Builds DMAR tables byte by byte, from the layout alone and not from the parser's types.

use std::path::PathBuf;

/// Where the tables of real machines are, beside the project.
pub fn samples_folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/acpi"))
}

/// A table of a real machine or emulator.
#[derive(Debug)]
pub struct Sample {
    /// Its file.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The DMAR tables of real machines, by name; none, said plainly, where the folder is missing.
pub fn samples() -> Vec<Sample> {
    samples_of(b"DMAR")
}

/// The tables of machines that begin with this signature, likewise.
pub(crate) fn samples_of(signature: &[u8; 4]) -> Vec<Sample> {
    let folder = samples_folder();
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!(
            "NOTE: no tables of machines: {} is missing; only built tables are tried",
            folder.display()
        );
        return Vec::new();
    };
    let mut samples: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .filter_map(|path| {
            let bytes = std::fs::read(&path).ok()?;
            bytes
                .starts_with(signature)
                .then_some(Sample { path, bytes })
        })
        .collect();
    samples.sort_by(|left, right| left.path.cmp(&right.path));
    samples
}

/// A device scope: kind, flags, enumeration id, start bus and path.
pub fn scope(kind: u8, flags: u8, enumeration_id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let length = 6 + 2 * path.len() as u8;
    let mut bytes = vec![kind, length, flags, 0, enumeration_id, bus];
    for &(device, function) in path {
        bytes.extend([device, function]);
    }
    bytes
}

/// A PCI endpoint on a bus.
pub fn endpoint(bus: u8, device: u8, function: u8) -> Vec<u8> {
    scope(1, 0, 0, bus, &[(device, function)])
}

/// A DMAR table in the making.
#[derive(Clone, Debug)]
pub struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// A table without structures: host address width minus one, and flags.
    pub fn new(host_address_width: u8, flags: u8) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(b"DMAR");
        bytes.extend([0; 4]);
        bytes.extend([1, 0]);
        bytes.extend(b"BUILT ");
        bytes.extend(b"TESTTAB\0");
        bytes.extend(7u32.to_le_bytes());
        bytes.extend(b"HAND");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend([host_address_width, flags]);
        bytes.extend([0; 10]);
        Self { bytes }
    }

    /// Adds a structure of any type: what follows its type and length.
    #[must_use]
    pub fn record(mut self, kind: u16, body: &[u8]) -> Self {
        let length = 4 + body.len() as u16;
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(body);
        self
    }

    /// Adds a unit.
    #[must_use]
    pub fn drhd(self, flags: u8, size: u8, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Self {
        let mut body = vec![flags, size];
        body.extend(segment.to_le_bytes());
        body.extend(base.to_le_bytes());
        body.extend(scopes.concat());
        self.record(0, &body)
    }

    /// Adds a reserved region from `base` to its last byte `limit`.
    #[must_use]
    pub fn rmrr(self, segment: u16, base: u64, limit: u64, scopes: &[Vec<u8>]) -> Self {
        let mut body = vec![0, 0];
        body.extend(segment.to_le_bytes());
        body.extend(base.to_le_bytes());
        body.extend(limit.to_le_bytes());
        body.extend(scopes.concat());
        self.record(1, &body)
    }

    /// Adds an ATSR (2), SATC (5) or SIDP (6).
    #[must_use]
    pub fn scoped(self, kind: u16, flags: u8, segment: u16, scopes: &[Vec<u8>]) -> Self {
        let mut body = vec![flags, 0];
        body.extend(segment.to_le_bytes());
        body.extend(scopes.concat());
        self.record(kind, &body)
    }

    /// Adds a proximity domain.
    #[must_use]
    pub fn rhsa(self, base: u64, domain: u32) -> Self {
        let mut body = vec![0; 4];
        body.extend(base.to_le_bytes());
        body.extend(domain.to_le_bytes());
        self.record(3, &body)
    }

    /// Adds an ACPI device.
    #[must_use]
    pub fn andd(self, number: u8, name: &str) -> Self {
        let mut body = vec![0, 0, 0, number];
        body.extend(name.as_bytes());
        body.push(0);
        self.record(4, &body)
    }

    /// The bytes, with length and checksum.
    pub fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        fix_checksum(&mut self.bytes);
        self.bytes
    }
}

/// Makes the sum of all bytes zero.
pub fn fix_checksum(bytes: &mut [u8]) {
    bytes[9] = 0;
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[9] = 0u8.wrapping_sub(sum);
}

/// Tables of shapes that the samples do not have, by name.
pub fn built_tables() -> Vec<(&'static str, Vec<u8>)> {
    let small = Table::new(38, 1).drhd(1, 0, 0, 0xfed9_0000, &[]);
    let units = Table::new(45, 3)
        .drhd(0, 0, 0, 0xfed9_0000, &[endpoint(0, 2, 0)])
        .drhd(
            0,
            4,
            0,
            0xfc80_0000,
            &[endpoint(0, 4, 0), endpoint(0, 5, 0), endpoint(0, 10, 0)],
        )
        .drhd(
            1,
            0,
            0,
            0xfed9_1000,
            &[
                scope(3, 0, 2, 0xf0, &[(0x1f, 0)]),
                scope(4, 0, 0, 0xf0, &[(0xf, 0)]),
                scope(5, 0, 1, 0, &[(0x15, 1)]),
            ],
        )
        .andd(1, "\\_SB.PCI0.I2C0");
    let segments = Table::new(51, 1)
        .drhd(1, 0, 0, 0xfed9_0000, &[])
        .drhd(1, 0, 1, 0xfed9_1000, &[])
        .drhd(1, 0, 0xffff, 0xffff_ffff_0000_0000, &[])
        .rhsa(0xfed9_0000, 0)
        .rhsa(0xfed9_1000, 0xdead_beef);
    let deep_path: Vec<_> = (0..8).map(|step| (step, step)).collect();
    let bridges = Table::new(47, 1).drhd(
        0,
        0,
        0,
        0xfed9_0000,
        &[
            scope(2, 0, 0, 0, &[(0x1c, 0)]),
            scope(2, 0, 0, 0x20, &[(0, 0), (3, 1)]),
            scope(1, 0, 0, 0, &deep_path),
        ],
    );
    let everything = Table::new(38, 7)
        .drhd(0, 0, 0, 0xfed9_0000, &[endpoint(0, 2, 0)])
        .drhd(1, 1, 0, 0xfed9_2000, &[scope(3, 0, 2, 0, &[(0x1e, 7)])])
        .rmrr(0, 0x3e2e_0000, 0x3e2f_ffff, &[endpoint(0, 0x14, 0)])
        .rmrr(
            0,
            0x8000_0000,
            0xafff_ffff,
            &[endpoint(0, 2, 0), endpoint(0, 2, 1)],
        )
        .scoped(2, 1, 0, &[])
        .scoped(2, 0, 0, &[scope(2, 0, 0, 0, &[(1, 0)])])
        .rhsa(0xfed9_0000, 1)
        .andd(3, "\\_SB.PCI0.UA00")
        .scoped(5, 1, 0, &[endpoint(0, 2, 0)])
        .scoped(6, 0, 0, &[scope(1, 0x1f, 0, 0, &[(2, 0)])]);
    vec![
        ("one unit", small.finish()),
        ("several units", units.finish()),
        ("several segments", segments.finish()),
        ("bridges and deep paths", bridges.finish()),
        ("all structures", everything.finish()),
    ]
}
