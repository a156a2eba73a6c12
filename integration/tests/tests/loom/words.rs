//! The format under test, and what its words mean to a walker: written down once more, apart from the format.
//!
//! VT-d: bits 0 and 1 are read and write, bit 7 above the last level makes a leaf, bits 8 and 9 are accessed and dirty,
//! bits 51:12 are the address.

use hv_vtd::SecondStage;

/// The format, with two words per table.
pub(crate) type Format = SecondStage<1>;

pub(crate) const ACCESSED: u64 = 1 << 8;
pub(crate) const DIRTY: u64 = 1 << 9;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The format, for tables in which hardware notes what is written, or others: the same.
pub(crate) fn format(_dirty: bool) -> Format {
    Format::new()
}

/// Whether the word stops a read, or a write.
pub(crate) fn stops(word: u64, write: bool) -> bool {
    word & 3 == 0 || (write && word & 2 == 0)
}

pub(crate) fn is_leaf(word: u64, level: u8) -> bool {
    level == 1 || word & 0x80 != 0
}
