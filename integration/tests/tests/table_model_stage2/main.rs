//! The property tests of `table_model`, on the stage-2 format of SMMUv3: the same operations and the same model, with
//! roots of up to 16 tables and a walker of its own; and tables of 16 and 64 KiB pages beside a map of pages.

#![cfg(not(any(hv_loom, hv_fault)))]

#[path = "../table_model/change.rs"]
mod change;
#[path = "../table_model/frames.rs"]
mod frames;
mod granule_cases;
mod granule_runs;
mod granules;
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
    use hv_smmu::{BlockChanges, Change, MemoryType, Vmsa};
    use hv_tests::arena::Arena;
    use hv_tests::vmsa_walker::Stage;
    pub(crate) use hv_tests::vmsa_walker::Walker;

    use crate::subject::Shape;

    pub(crate) type Format = Vmsa;

    /// Architectural levels 2 to 0.
    pub(crate) const LEVELS: Range<u32> = 2..5;
    /// Log2 of the tables of a root.
    pub(crate) const MOST_ROOT_TABLES: u32 = 4;
    /// What devices can be let do.
    pub(crate) const PERMS: &[Perms] = &[Perms::Read, Perms::Write, Perms::ReadWrite];
    /// Walkers that snoop nothing, that snoop, that note what was written as well.
    pub(crate) const SNOOPS: u32 = 3;
    /// What hardware sets in a word that it used, and in a leaf that it wrote through.
    pub(crate) const NOTES: (u64, u64) = (0, 1 << 7);
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
        match shape.dirty {
            true => Format::second_that_notes(MemoryType::AsSent),
            false => Format::second(MemoryType::AsSent, shape.coherent),
        }
    }

    pub(crate) fn walker<R: Fn(u64, usize) -> u64>(read: R, root: u64, shape: &Shape) -> Walker<R> {
        Walker {
            stage: Stage::Second,
            read,
            root,
            granule: 0,
            start: (shape.levels - 2) as u8,
            size: (64 - 12 - 9 * shape.levels - shape.root_tables) as u8,
            output_bits: 46,
            attributes: if shape.coherent { 0x33c } else { 0x23c },
            notes_writes: shape.dirty,
        }
    }
}
