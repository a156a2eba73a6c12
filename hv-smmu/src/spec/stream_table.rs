//! The stream table's registers and its first level; entries are in [`stream_entry`](super::stream_entry).
//!
//! Source: Linux `arm-smmu-v3.h` (`STRTAB_*`), QEMU `smmuv3-internal.h`.

use bitfield_struct::bitfield;
use static_assertions::const_assert_eq;

/// Bytes of a stream table entry.
pub const ENTRY_BYTES: u64 = 64;
/// Bytes of a descriptor of the first level.
pub const LEVEL_1_BYTES: u64 = 8;

/// STRTAB_BASE: where the table is. Aligned to its size, that of the first level if there are two.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct StreamTableBase {
    #[bits(6)]
    __: u8,
    /// The address without its low 6 bits (bits 51:6).
    #[bits(46)]
    pub address: u64,
    #[bits(10)]
    __: u16,
    /// The unit may allocate cache lines for it (bit 62).
    pub ra: bool,
    __: bool,
}

/// The low bits of an address that [`StreamTableBase`] and [`Level1Descriptor`] leave out.
pub const TABLE_ADDRESS_SHIFT: u32 = 6;

/// STRTAB_BASE_CFG: the table's shape.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct StreamTableConfig {
    /// Log2 of the number of streams (bits 5:0). StreamIDs beyond are bad ones.
    #[bits(6)]
    pub log2size: u8,
    /// Bits of a StreamID that the second level decodes (bits 10:6): [`SPLIT_CHOICES`].
    #[bits(5)]
    pub split: u8,
    #[bits(5)]
    __: u8,
    /// [`FORMAT_LINEAR`] or [`FORMAT_TWO_LEVEL`] (bits 17:16).
    #[bits(2)]
    pub fmt: u8,
    #[bits(14)]
    __: u16,
}

/// One array of entries.
pub const FORMAT_LINEAR: u8 = 0;
/// Descriptors that lead to arrays of entries.
pub const FORMAT_TWO_LEVEL: u8 = 1;
/// What STRTAB_BASE_CFG.SPLIT may be.
pub const SPLIT_CHOICES: [u8; 3] = [6, 8, 10];
/// SPLIT: one array for each PCI bus, as Linux has it.
pub const SPLIT_BY_BUS: u8 = 8;

/// A descriptor of the first level. One 64-bit store replaces it.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Level1Descriptor {
    /// 0: no streams here, theirs are bad ids. N: 2^(N-1) entries, at most 2^SPLIT (bits 4:0).
    #[bits(5)]
    pub span: u8,
    __: bool,
    /// The address of the entries without its low 6 bits (bits 51:6). Aligned to their size.
    #[bits(46)]
    pub address: u64,
    #[bits(12)]
    __: u16,
}

impl Level1Descriptor {
    /// No streams.
    pub const EMPTY: Self = Self::new();

    /// The SPAN of 2^`log2` entries.
    pub const fn span_of(log2: u8) -> u8 {
        log2 + 1
    }
}
const_assert_eq!(size_of::<Level1Descriptor>() as u64, LEVEL_1_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_match_an_independent_table() {
        let address = 0x000f_ffff_ffff_ffc0u64;
        let base = StreamTableBase::new().with_address(address >> TABLE_ADDRESS_SHIFT);
        assert_eq!(base.into_bits(), address);
        assert_eq!(StreamTableBase::new().with_ra(true).into_bits(), 1 << 62);
        let config = StreamTableConfig::new();
        assert_eq!(config.with_log2size(0x3f).into_bits(), 0x3f);
        assert_eq!(config.with_split(0x1f).into_bits(), 0x7c0);
        assert_eq!(config.with_fmt(FORMAT_TWO_LEVEL).into_bits(), 0x1_0000);
        let level1 = Level1Descriptor::new().with_address(address >> TABLE_ADDRESS_SHIFT);
        assert_eq!(level1.into_bits(), address);
        assert_eq!(Level1Descriptor::new().with_span(0x1f).into_bits(), 0x1f);
        assert_eq!(Level1Descriptor::EMPTY.into_bits(), 0);
        // 256 entries, one bus.
        assert_eq!(Level1Descriptor::span_of(SPLIT_BY_BUS), 9);
    }

    #[test]
    fn a_table_seen_in_an_emulator_decodes() {
        // QEMU 10: 256 streams, linear.
        let config = StreamTableConfig::from_bits(8);
        assert_eq!((config.log2size(), config.fmt()), (8, FORMAT_LINEAR));
        let two = StreamTableConfig::from_bits(0x1_0210);
        assert_eq!(
            (two.log2size(), two.split(), two.fmt()),
            (16, 8, FORMAT_TWO_LEVEL)
        );
    }
}
