//! The second-stage table format: what an entry means, and its bits.

#![expect(
    unsafe_code,
    reason = "promises the table engine that its words mean what it is told"
)]

use hv_core::{Perms, PhysAddr};
use hv_iommu::{Entry, Format, Level};

use crate::spec::second_stage::{ADDRESS, K, PS, R, W, WB};

/// Second-stage tables of VT-d, with 2^`INDEX_BITS` entries per table.
///
/// Hardware has 512 entries per table, the default. Models run the same code with fewer: a page of
/// level `n` then has `4 KiB << (INDEX_BITS * (n - 1))` bytes.
///
/// An unmapped leaf keeps its address with [`K`] set and its permission bits clear. Links have both
/// permissions, so that the leaf alone decides. SNP (bit 11) is never set: it is reserved on units
/// without snoop control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecondStage<const INDEX_BITS: u32 = 9>(());

impl<const INDEX_BITS: u32> SecondStage<INDEX_BITS> {
    /// The format. It has no options in this version.
    pub const fn new() -> Self {
        Self(())
    }

    const fn permission_bits(perms: Perms) -> u64 {
        match perms {
            Perms::Read => R,
            Perms::Write => W,
            Perms::ReadWrite => R | W,
        }
    }
}

const fn address(word: u64) -> PhysAddr {
    PhysAddr::new(word & ADDRESS)
}

// SAFETY: the tests below pin every clause: encoders and `decode` are inverse, and a word is present
// exactly if it is a leaf or a link.
unsafe impl<const INDEX_BITS: u32> Format for SecondStage<INDEX_BITS> {
    const INDEX_BITS: u32 = INDEX_BITS;

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Entry {
        match Perms::from_rights(word & R != 0, word & W != 0) {
            Some(perms) if level == Level::LEAF || word & PS != 0 => Entry::Leaf {
                to: address(word),
                perms,
            },
            Some(_) => Entry::Table {
                page: address(word),
                written_back: word & WB != 0,
            },
            None if word == 0 => Entry::Empty,
            None if word & K != 0 => Entry::Pending { to: address(word) },
            None => Entry::Unknown(word),
        }
    }

    #[inline]
    fn leaf(&self, level: Level, to: PhysAddr, perms: Perms) -> u64 {
        let size = if level == Level::LEAF { 0 } else { PS };
        to.as_u64() & ADDRESS | Self::permission_bits(perms) | size
    }

    #[inline]
    fn table(&self, page: PhysAddr) -> u64 {
        page.as_u64() & ADDRESS | R | W
    }

    #[inline]
    fn written_back(&self) -> u64 {
        WB
    }

    #[inline]
    fn pending(&self, _level: Level, to: PhysAddr) -> u64 {
        to.as_u64() & ADDRESS | K
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: SecondStage = SecondStage::new();

    fn levels() -> impl Iterator<Item = Level> {
        (1..=5).filter_map(Level::new)
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let pages = [0, 0x1000, 0x4000_0000, ADDRESS];
        for level in levels() {
            let size = 4096u64 << (9 * (level.number() - 1));
            for page in pages {
                let to = PhysAddr::new(page & !(size - 1));
                for perms in [Perms::Read, Perms::Write, Perms::ReadWrite] {
                    let word = FORMAT.leaf(level, to, perms);
                    assert_eq!(FORMAT.decode(word, level), Entry::Leaf { to, perms });
                }
                let word = FORMAT.pending(level, to);
                assert_eq!(FORMAT.decode(word, level), Entry::Pending { to });
                if level == Level::LEAF {
                    continue;
                }
                let page = PhysAddr::new(page);
                for (bit, written_back) in [(0, false), (FORMAT.written_back(), true)] {
                    let word = FORMAT.table(page) | bit;
                    assert_eq!(
                        FORMAT.decode(word, level),
                        Entry::Table { page, written_back }
                    );
                }
            }
            assert_eq!(FORMAT.decode(0, level), Entry::Empty);
        }
    }

    #[test]
    fn words_are_what_the_manual_shows() {
        let two = Level::new(2).unwrap();
        let at = PhysAddr::new(0x4020_0000);
        assert_eq!(FORMAT.leaf(Level::LEAF, at, Perms::Read), 0x4020_0001);
        assert_eq!(FORMAT.leaf(Level::LEAF, at, Perms::Write), 0x4020_0002);
        assert_eq!(FORMAT.leaf(two, at, Perms::ReadWrite), 0x4020_0083);
        assert_eq!(FORMAT.table(at), 0x4020_0003);
        assert_eq!(FORMAT.pending(two, at), 0x0100_0000_4020_0000);
    }

    #[test]
    fn present_for_hardware_is_leaf_or_table_for_us() {
        // Every combination of the bits that decide, at every level.
        let bits = [R, W, PS, K, WB, 0x1000];
        for level in levels() {
            for choice in 0u32..1 << bits.len() {
                let word: u64 = (0..bits.len())
                    .filter(|bit| choice >> bit & 1 != 0)
                    .map(|bit| bits[bit])
                    .sum();
                let present = word & 3 != 0;
                let decoded = FORMAT.decode(word, level);
                let ours = matches!(decoded, Entry::Leaf { .. } | Entry::Table { .. });
                assert_eq!(ours, present, "{word:#x} at {level}: {decoded:?}");
            }
        }
    }

    #[test]
    fn foreign_words_are_unknown() {
        assert_eq!(
            FORMAT.decode(0x1000, Level::LEAF),
            Entry::Unknown(0x1000),
            "an address without our mark"
        );
        assert_eq!(
            FORMAT.decode(PS, Level::MAX),
            Entry::Unknown(PS),
            "a size without permission"
        );
    }
}
