//! The property tests of `table_model`, on the first-stage format of SMMUv3: the same operations and the same model, with
//! the walker of that architecture, whose permissions are the other way round and know no writing alone.

#![cfg(not(any(hv_loom, hv_fault)))]

#[path = "../table_model/change.rs"]
mod change;
#[path = "../table_model/frames.rs"]
mod frames;
#[path = "../table_model/random.rs"]
mod random;
#[path = "../table_model/reclaimer.rs"]
mod reclaimer;
#[path = "../table_model/subject.rs"]
mod subject;

/// The format of SMMUv3 with pages of 4 KiB.
mod under_test {
    use std::ops::Range;

    use hv_core::Perms;
    use hv_iommu::Level;
    use hv_smmu::{BlockChanges, Change, Vmsa};
    use hv_tests::arena::Arena;
    use hv_tests::vmsa_walker::Stage;
    pub(crate) use hv_tests::vmsa_walker::Walker;

    use crate::subject::Shape;

    pub(crate) type Format = Vmsa;

    /// Architectural levels 2 to 0.
    pub(crate) const LEVELS: Range<u32> = 2..5;
    /// Log2 of the tables of a root.
    pub(crate) const MOST_ROOT_TABLES: u32 = 0;
    /// What devices can be let do.
    pub(crate) const PERMS: &[Perms] = &[Perms::Read, Perms::ReadWrite];
    /// Walkers that snoop nothing, and that snoop; none that note what they do.
    pub(crate) const SNOOPS: u32 = 2;
    /// What hardware sets in a word that it used, and in a leaf that it wrote through: nothing.
    pub(crate) const NOTES: (u64, u64) = (0, 0);
    /// The address in a leaf.
    pub(crate) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

    /// What a walker sees of a word: nothing that is not valid, nothing that is the software's.
    pub(crate) fn visible(word: u64) -> u64 {
        match word & 1 {
            0 => 0,
            _ => word & !0x8780_0000_0000_0000,
        }
    }

    /// Whether units that follow `changes` can go on without a gap. A page has AF, a table does not.
    fn follows(old: u64, new: u64, changes: BlockChanges) -> bool {
        let is_page = |word: u64| word & 0x403 == 0x403;
        let level = if is_page(old) || is_page(new) { 1 } else { 2 };
        let change = hv_smmu::change(old, new, Level::new(level).unwrap(), changes);
        matches!(change, Change::Free | Change::FlushAfter)
    }

    /// Walkers of a table that is resized live are of BBML 2, others of BBML 0.
    pub(crate) fn arena(frames: usize, shape: &Shape) -> Arena {
        let arena = Arena::for_words(frames, visible);
        match shape.live_resize {
            true => arena.watch_changes(|old, new| follows(old, new, BlockChanges::AtOnce)),
            false => arena.watch_changes(|old, new| follows(old, new, BlockChanges::BreakFirst)),
        }
    }

    pub(crate) fn format(shape: &Shape) -> Format {
        Format::first(shape.coherent)
    }

    pub(crate) fn walker<R: Fn(u64, usize) -> u64>(read: R, root: u64, shape: &Shape) -> Walker<R> {
        Walker {
            stage: Stage::First,
            read,
            root,
            granule: 0,
            start: 0,
            size: (64 - 12 - 9 * shape.levels) as u8,
            output_bits: 46,
            attributes: if shape.coherent { 0xb00 } else { 0xa00 },
            notes_writes: false,
        }
    }
}
