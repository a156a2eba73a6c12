//! The format that the matrix is measured with: the engine's type for it, and its words as the floors write them by hand.
//!
//! One program measures one format, so that each loop is compiled for one: VT-d's second stage, or with the feature `vmsa`
//! that of Arm's SMMUv3. Numbers stand here a second time on purpose: what a floor writes is compared with what the
//! engine wrote, word by word, by the tests.

use crate::window::Layout;

#[cfg(not(feature = "vmsa"))]
mod chosen {
    //! VT-d's second stage, with 4 KiB pages.

    use hv_vtd::{SecondStage, Vtd};

    use super::Layout;

    /// The format.
    pub type Tables = SecondStage;
    /// Units that walk such tables, on the rig.
    pub type Units = Vtd<hv_rig::Rig>;

    /// Its name in results.
    pub const NAME: &str = "vtd";

    /// The engine's format, for units that snoop or do not, and note writes or do not: which this one does not tell apart.
    pub const fn tables(_snoops: bool, _notes: bool) -> Tables {
        SecondStage::new()
    }

    /// How its words are laid out: read and write; bit 7 makes a leaf above the lowest level (VT-d specification, 9.8).
    pub const WORDS: Layout = Layout {
        address: 0x000f_ffff_ffff_f000,
        present: 0b11,
        link_mask: 0b1000_0011,
        link: 0b11,
    };
    /// Software's mark of a leaf, which hardware ignores.
    const MARK: u64 = 1 << 56;
    /// A leaf of 4 KiB, beside its address.
    pub const PAGE: u64 = MARK | 0b11;
    /// A larger one.
    pub const BLOCK: u64 = MARK | 0b1000_0011;
}

#[cfg(feature = "vmsa")]
mod chosen {
    //! Second stages of Arm's VMSAv8-64, with 4 KiB pages, as SMMUv3 walks them.

    use hv_smmu::{MemoryType, Smmu, Vmsa};

    use super::Layout;

    /// The format.
    pub type Tables = Vmsa;
    /// Units that walk such tables, on the rig.
    pub type Units = Smmu<hv_rig::Rig>;

    /// Its name in results.
    pub const NAME: &str = "vmsa";

    /// The engine's format, for units that snoop or do not, and note writes, which only those that snoop do.
    pub const fn tables(snoops: bool, notes: bool) -> Tables {
        match notes {
            true => Vmsa::second_that_notes(MemoryType::AsSent),
            false => Vmsa::second(MemoryType::AsSent, snoops),
        }
    }

    /// How its words are laid out: bit 0 makes one valid, bit 1 a link of it, or at the lowest level a page (Arm ARM, D8.3).
    pub const WORDS: Layout = Layout {
        address: 0x0000_ffff_ffff_f000,
        present: 0b1,
        link_mask: 0b11,
        link: 0b11,
    };
    /// Beside an address: write-back (5:2), readable and writable (7:6), inner shareable (9:8), accessed (10), never
    /// executed (54:53), and software's mark of a leaf (56).
    const LEAF: u64 = 0b1111 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10 | EXECUTE_NEVER | 1 << 56 | 1;
    const EXECUTE_NEVER: u64 = 1 << 54;
    /// A leaf of 4 KiB.
    pub const PAGE: u64 = LEAF | 0b10;
    /// A larger one.
    pub const BLOCK: u64 = LEAF;
}

pub use chosen::{BLOCK, NAME, PAGE, Tables, Units, WORDS, tables};

/// The leaf at `level` that maps `to`, for reading and writing, in tables of units that snoop.
#[inline(always)]
pub const fn leaf(to: u64, level: u32) -> u64 {
    to | if level == 1 { PAGE } else { BLOCK }
}

/// A link to the table at `page`.
#[inline(always)]
pub const fn link(page: u64) -> u64 {
    page | WORDS.link
}

#[cfg(test)]
mod tests {
    use hv_core::{Perms, PhysAddr};
    use hv_iommu::{Format, Level};

    use super::*;

    #[test]
    fn floors_and_engine_write_the_same_words() {
        let engine = tables(true, false);
        for level in 1..=3 {
            let to = 0x40_0000_0000;
            let found = engine.leaf(
                Level::new(level).unwrap(),
                PhysAddr::new(to),
                Perms::ReadWrite,
            );
            assert_eq!(
                found,
                leaf(to, level.into()),
                "{NAME}, level {level}: {found:#x}"
            );
            assert_ne!(found & WORDS.present, 0);
        }
        assert_eq!(engine.table(PhysAddr::new(0x7000)), link(0x7000));
        assert_eq!(WORDS.address, Tables::ADDRESS);
    }
}
