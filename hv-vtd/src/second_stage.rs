//! The second-stage table format: what an entry means, and its bits.

#![expect(
    unsafe_code,
    reason = "promises the table engine that its words mean what it is told"
)]

use hv_core::fault::Fault;
use hv_core::{Perms, PhysAddr};
use hv_iommu::{Entry, Format, Level};

use crate::spec::second_stage::{A, ADDRESS, D, F, K, PS, R, SNP, W, WB};

/// Second-stage tables of VT-d, with 2^`INDEX_BITS` entries per table.
///
/// Hardware has 512 entries per table, the default. Models run the same code with fewer: a page of
/// level `n` then has `4 KiB << (INDEX_BITS * (n - 1))` bytes.
///
/// An unmapped leaf keeps its address and [`K`], which all leaves have, with its permission bits clear, a detached table its
/// address alone, an unlinked empty one its address and [`F`]. Links have both permissions, so that the
/// leaf alone decides.
///
/// # Invariants
/// `beside` has [`K`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStage<const INDEX_BITS: u32 = 9> {
    /// What every leaf has beside: K, and SNP or not.
    beside: u64,
}

impl<const INDEX_BITS: u32> SecondStage<INDEX_BITS> {
    /// The format for any unit.
    pub const fn new() -> Self {
        Self { beside: K }
    }

    /// The format whose leaves make devices snoop. Only for units with snoop control: SNP is reserved on others.
    pub const fn that_snoops() -> Self {
        Self { beside: SNP | K }
    }

    const fn permission_bits(perms: Perms) -> u64 {
        match perms {
            Perms::Read => R,
            Perms::Write => W,
            Perms::ReadWrite => R | W,
        }
    }
}

impl<const INDEX_BITS: u32> Default for SecondStage<INDEX_BITS> {
    fn default() -> Self {
        Self::new()
    }
}

const fn address(word: u64) -> PhysAddr {
    PhysAddr::new(word & ADDRESS)
}

// SAFETY: the tests below pin every clause: encoders and `decode` are inverse, a word is present exactly
// if it is a leaf or a link, the constants agree with `decode`, and addresses stand plainly in bits
// 51:12, so that the words of neighbouring pages differ by the span.
unsafe impl<const INDEX_BITS: u32> Format for SecondStage<INDEX_BITS> {
    const INDEX_BITS: u32 = INDEX_BITS;
    const ADDRESS: u64 = ADDRESS;
    const LINK_MASK: u64 = R | W | PS | F;
    const LINK: u64 = R | W;
    const PRESENT: u64 = R | W;
    const FROZEN: u64 = F;
    const WRITTEN_BACK: u64 = WB;
    const ACCESSED: u64 = A;
    const DIRTY: u64 = D;

    #[inline]
    fn decode(&self, word: u64, level: Level) -> Entry {
        match Perms::from_rights(word & R != 0, word & W != 0) {
            Some(perms) if level == Level::LEAF || word & PS != 0 => Entry::Leaf {
                to: address(word),
                perms,
            },
            Some(Perms::ReadWrite) => Entry::Table {
                page: address(word),
                written_back: word & WB != 0,
                frozen: word & F != 0,
            },
            Some(_) => Entry::Unknown(word),
            None if word == 0 => Entry::Empty,
            None if word & !(ADDRESS | D) == K => Entry::Pending { to: address(word) },
            None if level == Level::LEAF => Entry::Unknown(word),
            None if word & !ADDRESS == F => Entry::Tombstone {
                page: address(word),
            },
            None if word & !(ADDRESS | WB) == 0 => Entry::PendingTable {
                page: address(word),
            },
            None => Entry::Unknown(word),
        }
    }

    #[inline]
    fn leaf(&self, level: Level, to: PhysAddr, perms: Perms) -> u64 {
        let size = if level == Level::LEAF { 0 } else { PS };
        to.as_u64() & ADDRESS | Self::permission_bits(perms) | size | self.beside
    }

    #[inline]
    fn table(&self, page: PhysAddr) -> u64 {
        page.as_u64() & ADDRESS | R | W
    }

    #[inline]
    fn pending(&self, word: u64) -> u64 {
        // K is there already: putting it in would be a step of each unmap.
        let kept = word & (ADDRESS | D | K);
        match Fault::PendingWithoutKind.is_on() {
            true => kept & !K,
            false => kept,
        }
    }

    #[inline]
    fn tombstone(&self, page: PhysAddr) -> u64 {
        page.as_u64() & ADDRESS | F
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: SecondStage = SecondStage::new();
    const PERMS: [Perms; 3] = [Perms::Read, Perms::Write, Perms::ReadWrite];

    fn levels() -> impl Iterator<Item = Level> {
        (1..=5).filter_map(Level::new)
    }

    fn is_link(word: u64) -> bool {
        word & SecondStage::<9>::LINK_MASK == SecondStage::<9>::LINK
    }

    #[test]
    fn leaves_are_what_was_encoded() {
        let pages = [0, 0x1000, 0x4000_0000, 0x000a_5a5a_5a5a_5000, ADDRESS];
        for level in levels() {
            let size = 4096u64 << (9 * (level.number() - 1));
            for page in pages {
                let to = PhysAddr::new(page & !(size - 1));
                for perms in PERMS {
                    for bits in [0, A, D, A | D, WB, F] {
                        let word = FORMAT.leaf(level, to, perms) | bits;
                        assert_eq!(FORMAT.decode(word, level), Entry::Leaf { to, perms });
                        assert!(level == Level::LEAF || !is_link(word));
                        let pending = FORMAT.pending(word);
                        assert_eq!(FORMAT.decode(pending, level), Entry::Pending { to });
                        assert_eq!(pending & D, bits & D, "the dirty bit stays");
                    }
                    let next = PhysAddr::new(size);
                    let (word, second) = (
                        FORMAT.leaf(level, PhysAddr::new(0), perms),
                        FORMAT.leaf(level, next, perms),
                    );
                    assert_eq!(second - word, size);
                    assert_eq!(FORMAT.pending(second) - FORMAT.pending(word), size);
                }
            }
            assert_eq!(FORMAT.decode(0, level), Entry::Empty);
        }
    }

    #[test]
    fn links_and_what_becomes_of_them_name_their_table() {
        for level in levels().filter(|level| *level != Level::LEAF) {
            for page in [0x1000, 0x4000_0000, ADDRESS].map(PhysAddr::new) {
                for bits in [0, A, WB, F, F | WB, A | F | WB] {
                    let word = FORMAT.table(page) | bits;
                    let (written_back, frozen) = (bits & WB != 0, bits & F != 0);
                    let expected = Entry::Table {
                        page,
                        written_back,
                        frozen,
                    };
                    assert_eq!(FORMAT.decode(word, level), expected);
                    assert_eq!(is_link(word), !frozen);
                    assert_eq!(word & ADDRESS, page.as_u64());
                    let detached = word & !(R | W | F | A);
                    assert_eq!(FORMAT.decode(detached, level), Entry::PendingTable { page });
                }
                let tombstone = FORMAT.tombstone(page);
                assert_eq!(FORMAT.decode(tombstone, level), Entry::Tombstone { page });
                let detached = tombstone & !F;
                assert_eq!(FORMAT.decode(detached, level), Entry::PendingTable { page });
            }
        }
    }

    #[test]
    fn words_are_what_the_manual_shows() {
        let two = Level::new(2).unwrap();
        let at = PhysAddr::new(0x4020_0000);
        // Hardware ignores it.
        let ours = 0x0100_0000_0000_0000;
        assert_eq!(
            FORMAT.leaf(Level::LEAF, at, Perms::Read),
            ours | 0x4020_0001
        );
        assert_eq!(
            FORMAT.leaf(Level::LEAF, at, Perms::Write),
            ours | 0x4020_0002
        );
        assert_eq!(FORMAT.leaf(two, at, Perms::ReadWrite), ours | 0x4020_0083);
        assert_eq!(FORMAT.table(at), 0x4020_0003);
        assert_eq!(FORMAT.pending(ours | 0x4020_0083), ours | 0x4020_0000);
        assert_eq!(FORMAT.tombstone(at), 0x0400_0000_4020_0000);
    }

    #[test]
    fn leaves_that_snoop_differ_in_one_bit_and_nothing_else_has_it() {
        let snooping = SecondStage::<9>::that_snoops();
        for level in levels() {
            let to = PhysAddr::new(0x4000_0000);
            for perms in PERMS {
                let (plain, word) = (
                    FORMAT.leaf(level, to, perms),
                    snooping.leaf(level, to, perms),
                );
                assert_eq!((plain & SNP, word), (0, plain | SNP));
                assert_eq!(snooping.decode(word, level), Entry::Leaf { to, perms });
                assert_eq!(snooping.pending(word), FORMAT.pending(plain));
            }
        }
        let at = PhysAddr::new(0x1000);
        assert_eq!(snooping.table(at), FORMAT.table(at));
        assert_eq!(snooping.tombstone(at), FORMAT.tombstone(at));
    }

    #[test]
    fn present_for_hardware_is_leaf_or_table_for_us() {
        // Every combination of the bits that decide, at every level.
        let bits = [R, W, PS, K, WB, F, A, D, 0x1000];
        for level in levels() {
            for choice in 0u32..1 << bits.len() {
                let word: u64 = (0..bits.len())
                    .filter(|bit| choice >> bit & 1 != 0)
                    .map(|bit| bits[bit])
                    .sum();
                let present = word & 3 != 0;
                let decoded = FORMAT.decode(word, level);
                let ours = matches!(decoded, Entry::Leaf { .. } | Entry::Table { .. });
                // A link that takes rights away is present, and none of ours.
                let foreign = matches!(decoded, Entry::Unknown(_)) && word & 3 != 3;
                assert!(
                    ours == present || foreign,
                    "{word:#x} at {level}: {decoded:?}"
                );
                let table = matches!(decoded, Entry::Table { frozen: false, .. });
                assert!(level == Level::LEAF || table == is_link(word), "{word:#x}");
            }
        }
    }

    #[test]
    fn foreign_words_are_unknown() {
        let two = Level::new(2).unwrap();
        for (word, level, why) in [
            (0x1000, Level::LEAF, "an address without our mark"),
            (
                F | 0x1000,
                Level::LEAF,
                "a tombstone where no table is linked",
            ),
            (PS, Level::MAX, "a size without permission"),
            (K | F | 0x1000, two, "a pending tombstone"),
            (R | 0x1000, two, "a link that takes rights away"),
        ] {
            assert_eq!(FORMAT.decode(word, level), Entry::Unknown(word), "{why}");
        }
    }
}
