//! The format under test, and what its words mean to a walker: written down once more, apart from the format.
//!
//! Stage 2 of VMSAv8-64: bit 0 makes a word valid; bit 1 makes a page of it at the last level, where its absence is
//! reserved, and a table above, where its absence makes a block; bits 7:6 are the permission of a leaf, bit 10 lets it
//! be accessed, bits 47:12 are the address. Where writes are noted, bit 51 of a leaf says that it is for writing, and
//! hardware sets bit 7 before it lets the first write through.

use hv_smmu::{MemoryType, Vmsa};

/// The format, with two words per table.
pub(crate) type Format = Vmsa<12, 1>;

pub(crate) const ACCESSED: u64 = 0;
pub(crate) const DIRTY: u64 = 1 << 7;
pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// The format, for tables in which hardware notes what is written, or others.
pub(crate) fn format(dirty: bool) -> Format {
    match dirty {
        true => Format::second_that_notes(MemoryType::AsSent),
        false => Format::second(MemoryType::AsSent, true),
    }
}

/// Whether the word stops a read, or a write. A leaf has AF, which no table has.
pub(crate) fn stops(word: u64, write: bool) -> bool {
    let leaf = word & 1 << 10 != 0;
    let refused = word & 0x40 == 0 || (write && word & (0x80 | 1 << 51) == 0);
    word & 1 == 0 || (leaf && refused)
}

pub(crate) fn is_leaf(word: u64, level: u8) -> bool {
    assert!(
        level > 1 || word & 2 != 0,
        "{word:#x} is reserved at the last level"
    );
    assert!(
        (level == 1 || word & 2 == 0) == (word & 1 << 10 != 0),
        "{word:#x} faults at level {level}"
    );
    level == 1 || word & 2 == 0
}
