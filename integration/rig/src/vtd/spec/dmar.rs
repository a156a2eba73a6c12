//! Firmware's description of the units: the bytes of a DMAR table.

use crate::acpi;

/// A remapping unit (VT-d manual, DMA Remapping Hardware Unit Definition).
#[derive(Clone, Debug)]
pub(crate) struct Drhd {
    /// Whether it takes all functions of its segment that no other unit lists.
    pub(crate) include_all: bool,
    /// The PCI segment.
    pub(crate) segment: u16,
    /// Where its registers are.
    pub(crate) base: u64,
    /// How many pages of registers there are, as a power of two up to 15.
    pub(crate) size_pages_log2: u8,
    /// What it lists.
    pub(crate) scopes: Vec<Scope>,
}

/// A reserved memory region (VT-d manual, Reserved Memory Region Reporting Structure).
#[derive(Clone, Debug)]
pub(crate) struct Rmrr {
    /// The PCI segment of its functions.
    pub(crate) segment: u16,
    /// The first byte.
    pub(crate) base: u64,
    /// The last byte.
    pub(crate) limit: u64,
    /// Whom it is for.
    pub(crate) scopes: Vec<Scope>,
}

/// What a unit lists (VT-d manual, device scope).
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// 1 for a function, 2 for a bridge and all below it.
    pub(crate) kind: u8,
    /// The bus that the path starts at.
    pub(crate) start_bus: u8,
    /// Device and function of each bridge on the way, and of the function at last.
    pub(crate) path: Vec<(u8, u8)>,
}

/// Type of a unit's structure (VT-d manual, remapping structure types).
const DRHD: u16 = 0;
/// Bytes of a unit's structure without its scopes.
const DRHD_BYTES: usize = 16;
/// Flag of a unit's structure: it takes the rest of its segment.
const INCLUDE_PCI_ALL: u8 = 1 << 0;
/// Type of a reserved region's structure (VT-d manual, remapping structure types).
const RMRR: u16 = 1;
/// Bytes of a reserved region's structure without its scopes.
const RMRR_BYTES: usize = 24;
/// Bytes of a scope without its path.
const SCOPE_BYTES: usize = 6;

/// A DMAR table of these units and reserved regions, for a host with addresses of so many bits, 1 to 256. `flags` are those of
/// the table: bit 0 for interrupt remapping (VT-d manual, DMA Remapping Reporting Structure). Units that
/// take the rest come last, as the manual demands within a segment; regions come after all units.
pub(crate) fn table(host_address_bits: u8, flags: u8, units: &[Drhd], regions: &[Rmrr]) -> Vec<u8> {
    let mut table = acpi::begin(*b"DMAR", 1);
    table.extend([host_address_bits.wrapping_sub(1), flags]);
    table.extend([0; 10]);
    for last in [false, true] {
        for unit in units.iter().filter(|unit| unit.include_all == last) {
            table.extend(structure(unit));
        }
    }
    table.extend(regions.iter().flat_map(reserved));
    acpi::finish(table)
}

fn structure(unit: &Drhd) -> Vec<u8> {
    let scopes: Vec<u8> = unit.scopes.iter().flat_map(scope).collect();
    let mut bytes = Vec::with_capacity(DRHD_BYTES + scopes.len());
    bytes.extend(DRHD.to_le_bytes());
    bytes.extend(((DRHD_BYTES + scopes.len()) as u16).to_le_bytes());
    let flags = if unit.include_all { INCLUDE_PCI_ALL } else { 0 };
    bytes.extend([flags, unit.size_pages_log2 & 0xf]);
    bytes.extend(unit.segment.to_le_bytes());
    bytes.extend(unit.base.to_le_bytes());
    bytes.extend(scopes);
    bytes
}

fn reserved(region: &Rmrr) -> Vec<u8> {
    let scopes: Vec<u8> = region.scopes.iter().flat_map(scope).collect();
    let mut bytes = Vec::with_capacity(RMRR_BYTES + scopes.len());
    bytes.extend(RMRR.to_le_bytes());
    bytes.extend(((RMRR_BYTES + scopes.len()) as u16).to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(region.segment.to_le_bytes());
    bytes.extend(region.base.to_le_bytes());
    bytes.extend(region.limit.to_le_bytes());
    bytes.extend(scopes);
    bytes
}

fn scope(scope: &Scope) -> Vec<u8> {
    let length = SCOPE_BYTES + 2 * scope.path.len();
    // Flags, a reserved byte and the enumeration id stay 0: only interrupt controllers have an id.
    let mut bytes = vec![scope.kind, length as u8, 0, 0, 0, scope.start_bus];
    bytes.extend(
        scope
            .path
            .iter()
            .flat_map(|(device, function)| [*device, *function]),
    );
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_bytes_in_place() {
        let rest = Drhd {
            include_all: true,
            segment: 0x0102,
            base: 0xfed9_1000,
            size_pages_log2: 0,
            scopes: Vec::new(),
        };
        let (kind, start_bus, path) = (1, 5, vec![(0x1c, 2), (3, 1)]);
        let listed = Drhd {
            include_all: false,
            segment: 0,
            base: 0x12_fed9_0000,
            size_pages_log2: 2,
            scopes: vec![Scope {
                kind,
                start_bus,
                path,
            }],
        };
        let table = table(39, 1, &[rest, listed], &[]);
        assert_eq!(
            table[0..10],
            [b'D', b'M', b'A', b'R', 90, 0, 0, 0, 1, table[9]]
        );
        assert_eq!(table.len(), 90);
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        assert_eq!(table[36..48], [38, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            table[48..64],
            [0, 0, 26, 0, 0, 2, 0, 0, 0, 0, 0xd9, 0xfe, 0x12, 0, 0, 0]
        );
        assert_eq!(table[64..74], [1, 10, 0, 0, 0, 5, 0x1c, 2, 3, 1]);
        assert_eq!(
            table[74..90],
            [0, 0, 16, 0, 1, 0, 2, 1, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_region_has_its_bytes_in_place() {
        let (kind, start_bus, path) = (1, 0, vec![(2, 1)]);
        let region = Rmrr {
            segment: 7,
            base: 0x1_0010_0000,
            limit: 0x1_0010_4fff,
            scopes: vec![Scope {
                kind,
                start_bus,
                path,
            }],
        };
        let table = table(39, 0, &[], &[region]);
        assert_eq!(table[48..56], [1, 0, 32, 0, 0, 0, 7, 0]);
        assert_eq!(table[56..64], [0, 0, 0x10, 0, 1, 0, 0, 0]);
        assert_eq!(table[64..72], [0xff, 0x4f, 0x10, 0, 1, 0, 0, 0]);
        assert_eq!(table[72..], [1, 8, 0, 0, 0, 0, 2, 1]);
    }

    #[test]
    fn a_table_without_units_is_a_header() {
        assert_eq!(table(64, 0, &[], &[]).len(), 48);
        assert_eq!(table(64, 0, &[], &[])[36], 63);
    }
}
