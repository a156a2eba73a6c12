//! From id registers to what domains ask about.

use hv_core::PageSize;
use hv_iommu::{Format, Level, LevelSet, RootTables, UnitCaps};

use crate::spec::granule::{Granule, OutputSize};
use crate::spec::id_registers::{Idr0, Idr3, Idr5};
use crate::spec::second_stage::{ADDRESS_BITS, MAX_ROOT_TABLES_LOG2};
use crate::spec::stream_entry::SecondStageShape;

/// BBML: page sizes may change in a live table.
const BBML_SIZES: u8 = 2;

/// What a unit with these registers can do with tables of `granule`. Firmware says whether it is `coherent`.
pub(crate) fn unit_caps(
    (idr0, idr3, idr5): (Idr0, Idr3, Idr5),
    granule: Granule,
    coherent: bool,
) -> UnitCaps {
    let bits = address_bits(idr5);
    UnitCaps {
        levels: levels(granule, idr5),
        root_tables: RootTables::new(MAX_ROOT_TABLES_LOG2).unwrap_or(RootTables::ONE),
        largest_page: largest_page(granule),
        coherent,
        domain_ids: 1 << idr0.vmid_bits(),
        iova_bits: bits,
        phys_bits: bits,
        // What is not present is not kept (recalled), and stores are not buffered.
        sync_on_map: false,
        write_only: true,
        live_resize: idr3.bbml() == BBML_SIZES,
        nested: false,
        dirty: false,
    }
}

/// Significant bits of input and output addresses of second stages: as many as physical addresses have (Linux). More
/// than the format can name are not used.
pub(crate) const fn address_bits(idr5: Idr5) -> u8 {
    let bits = idr5.output_size().bits();
    if bits as u32 > ADDRESS_BITS {
        ADDRESS_BITS as u8
    } else {
        bits
    }
}

/// The output size that stream table entries say.
pub(crate) const fn output_size(idr5: Idr5) -> OutputSize {
    match idr5.output_size() {
        OutputSize::Bits52 => OutputSize::Bits48,
        other => other,
    }
}

/// The architecture's number of a level that is counted from the leaves.
pub(crate) const fn architectural(level: Level) -> Option<u8> {
    4_u8.checked_sub(level.number())
}

/// Significant bits of an address that tables with such a root translate, on a unit with addresses of `bits` bits.
pub(crate) fn input_bits<F: Format>(level: Level, tables: RootTables, bits: u8) -> u8 {
    let spans = F::PAGE_SHIFT + F::INDEX_BITS * u32::from(level.number());
    (spans + u32::from(tables.log2())).min(bits.into()) as u8
}

/// The depths whose roots a stream table entry can name, for some width. Where 16 tables side by side one level below
/// cover all addresses that the unit has, a root above them is not to be used (Linux, citing DDI 0487: 40 and 42 bits
/// with 4 KiB, 40 and 48 with 16 KiB).
fn levels(granule: Granule, idr5: Idr5) -> LevelSet {
    let bits = address_bits(idr5);
    let index_bits = granule.shift() - 3;
    let serves = |level: &Level| {
        let spans = |level: u8| granule.shift() + index_bits * level;
        let number = level.number();
        // A root that covers no more than a table below does is never needed.
        let most = spans(number).min(bits);
        let Some(start) = architectural(*level) else {
            return false;
        };
        let below = spans(number - 1);
        let is_needed = number == 1 || below.saturating_add(MAX_ROOT_TABLES_LOG2) < bits;
        is_needed && SecondStageShape::new(granule, start, most, output_size(idr5)).is_some()
    };
    (1..=Level::MAX.number())
        .filter_map(Level::new)
        .filter(serves)
        .fold(LevelSet::EMPTY, LevelSet::with)
}

/// The largest page of a format with such a granule, in the sizes that domains know.
const fn largest_page(granule: Granule) -> PageSize {
    match granule {
        Granule::Size4K => PageSize::Size1G,
        Granule::Size16K | Granule::Size64K => PageSize::Size1G,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(oas: u8) -> Idr5 {
        Idr5::new().with_oas(oas)
    }

    fn numbers(granule: Granule, oas: u8) -> Vec<u8> {
        let set = levels(granule, at(oas));
        set.iter().map(Level::number).collect()
    }

    #[test]
    fn roots_are_side_by_side_where_the_architecture_wants_it() {
        // By OAS code: 32, 36, 40, 42, 44, 48 and 52 bits.
        // 4 KiB: a table of level 2 covers 30 bits, 16 of them 34; of level 3 39 and 43; of level 4 48.
        assert_eq!(numbers(Granule::Size4K, 0), [2]);
        assert_eq!(numbers(Granule::Size4K, 1), [2, 3]);
        assert_eq!(
            numbers(Granule::Size4K, 2),
            [2, 3],
            "40 bits: not four levels"
        );
        assert_eq!(
            numbers(Granule::Size4K, 3),
            [2, 3],
            "42 bits: not four levels"
        );
        assert_eq!(numbers(Granule::Size4K, 4), [2, 3, 4]);
        assert_eq!(numbers(Granule::Size4K, 5), [2, 3, 4]);
        assert_eq!(numbers(Granule::Size4K, 6), [2, 3, 4]);
        // 16 KiB: level 1 covers 25 bits, 16 tables 29; level 2 36 and 40; level 3 47 and 51.
        assert_eq!(
            numbers(Granule::Size16K, 2),
            [1, 2],
            "40 bits: 16 tables of level 2"
        );
        assert_eq!(numbers(Granule::Size16K, 5), [1, 2, 3]);
        // 64 KiB: 29 and 33, 42 and 46.
        assert_eq!(numbers(Granule::Size64K, 4), [1, 2]);
        assert_eq!(numbers(Granule::Size64K, 5), [1, 2, 3]);
    }

    #[test]
    fn an_emulators_registers_become_capabilities() {
        let registers = (
            Idr0::from_bits(0x0d44_101b),
            Idr3::from_bits(0x1414),
            Idr5::from_bits(0x74),
        );
        let caps = unit_caps(registers, Granule::Size4K, true);
        assert_eq!((caps.iova_bits, caps.phys_bits), (44, 44));
        assert_eq!(caps.domain_ids, 65536);
        assert!(caps.coherent && caps.write_only && caps.live_resize && !caps.sync_on_map);
        let narrow = registers.0.with_vmid16(false);
        let caps = unit_caps(
            (narrow, registers.1.with_bbml(1), at(6)),
            Granule::Size4K,
            false,
        );
        assert_eq!((caps.domain_ids, caps.iova_bits), (256, 48));
        assert!(!caps.live_resize && !caps.coherent);
    }
}
