//! Break before make, as a pure rule: what may be written over what while units walk the tables.
//!
//! A unit that has one translation cached and reads another one must not come to use a mixture of both, or to find
//! itself with two for one address. So some changes of a valid descriptor have to go through an invalid one, and a flush
//! of that. The rule is about one word; that a table which takes the place of a block maps what the block did, and a
//! block what its table did, is the engine's promise (rule 12 of its protocol).
//!
//! Source: IHI 0070, 3.21.1, for changes of size by the levels of BBML, nT and the contiguous hint. What else has to be
//! broken first is DDI 0487's to say, and stands here as recalled: that was not at hand, and of what was read only Linux
//! `io-pgtable-arm.c` has a rule, which is to break first always. Where the rule may be narrower than here, this is the
//! safer reading.
//!
//! Units of level 1 follow a change of size by way of a block with nT, and no device faults meanwhile (3.21.1.2: that is
//! forbidden to an SMMU). A split takes two stores with a completed flush between them, the mark and then the link: only
//! when no unit has the block in a way that conflicts with pages may the link stand. A merge takes the block with its mark
//! and a flush, then the block without it and another one; in between the unit may keep nothing of the block, and is slow.
//! The engine's split and merge are one exchange each, whose one flush may come later and is owed by the range. A split
//! in two would have a state in between that every other change has to know: who unmaps, protects or merges a marked
//! block, and to whom the second half belongs when the flush fails. So `live_resize` takes level 2, and a range on a
//! unit of level 1 is cut with a gap, by name.

use hv_core::{Perms, PhysAddr};
use hv_iommu::{Format, Level};

use crate::Vmsa;
use crate::spec::second_stage::{
    ACCESSED, DIRTY_MODIFIER, EXECUTE_NEVER, EXECUTE_NEVER_LOW, IGNORED, NO_TRANSLATION_KEPT, READ,
    SOFTWARE, TABLE_OR_PAGE, VALID, WRITE,
};

/// What a unit follows of a change between a block and a table (IDR3.BBML).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockChanges {
    /// Level 0: none.
    BreakFirst,
    /// Level 1: by way of a block that is marked as not to be kept.
    Marked,
    /// Level 2: at once. No conflict is reported, and either translation is used until a flush.
    AtOnce,
}

impl BlockChanges {
    /// The level that IDR3 gives (2 bits); the reserved one promises nothing.
    pub const fn from_bbml(bbml: u8) -> Self {
        match bbml {
            1 => Self::Marked,
            2 => Self::AtOnce,
            _ => Self::BreakFirst,
        }
    }
}

/// How one descriptor takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// At any time, and units know of it.
    Free,
    /// At any time; until a flush that follows, units may go by the old one.
    FlushAfter,
    /// By an invalid one first, and a flush of that. Meanwhile devices fault.
    BreakFirst,
    /// By the old block with its mark (nT) first, and a flush of that. Devices go on meanwhile. The engine has no step for
    /// it, see above.
    MarkFirst,
}

/// How `new` may be written over `old` in a table of `level`, whose units follow `changes`.
pub const fn change(old: u64, new: u64, level: Level, changes: BlockChanges) -> Change {
    let last = level.number() == Level::LEAF.number();
    match (is_valid(old, last), is_valid(new, last)) {
        // What is not valid is not cached.
        (false, _) => return Change::Free,
        (true, false) => return Change::FlushAfter,
        (true, true) => {}
    }
    let (was_table, is_table) = (is_table(old, last), is_table(new, last));
    if was_table != is_table {
        return match changes {
            BlockChanges::BreakFirst => Change::BreakFirst,
            BlockChanges::Marked => Change::MarkFirst,
            BlockChanges::AtOnce => Change::FlushAfter,
        };
    }
    let different = (old ^ new) & !(SOFTWARE | IGNORED);
    if different == 0 {
        return Change::Free;
    }
    if was_table {
        return Change::BreakFirst;
    }
    // Of a page, the mark's bit is address.
    let mark = if last { 0 } else { NO_TRANSLATION_KEPT };
    let permissions = READ | WRITE | DIRTY_MODIFIER | EXECUTE_NEVER | EXECUTE_NEVER_LOW;
    if different & !(permissions | ACCESSED | mark) != 0 {
        // Another address, kind of memory or shareability, or the contiguous hint.
        return Change::BreakFirst;
    }
    // A leaf without AF is not cached.
    match different == ACCESSED && new & ACCESSED != 0 {
        true => Change::Free,
        false => Change::FlushAfter,
    }
}

/// Whether hardware takes a descriptor for anything; the reserved coding of the last level faults.
const fn is_valid(word: u64, last: bool) -> bool {
    word & VALID != 0 && (!last || word & TABLE_OR_PAGE != 0)
}

const fn is_table(word: u64, last: bool) -> bool {
    !last && word & TABLE_OR_PAGE != 0
}

impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> Vmsa<PAGE_SHIFT, INDEX_BITS> {
    /// Whether units that follow `changes` go on without a fault while a block is replaced by a table of the same
    /// meaning, and the other way round: what [`UnitCaps::live_resize`](hv_iommu::UnitCaps::live_resize) says.
    pub fn live_resize(&self, changes: BlockChanges) -> bool {
        let Some(level) = Level::new(Level::LEAF.number() + 1) else {
            return false;
        };
        let block = self.leaf(level, PhysAddr::new(0), Perms::ReadWrite);
        let table = self.table(PhysAddr::new(1 << PAGE_SHIFT));
        let lives = |old, new| {
            matches!(
                change(old, new, level, changes),
                Change::Free | Change::FlushAfter
            )
        };
        lives(block, table) && lives(table, block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryType, Vmsa16K, Vmsa64K};

    const ALL: [BlockChanges; 3] = [
        BlockChanges::BreakFirst,
        BlockChanges::Marked,
        BlockChanges::AtOnce,
    ];

    /// A page, a block and a table as hardware walks them, and what differs from them in one respect.
    const PAGE: u64 = 0x4080_07ff;
    const BLOCK: u64 = 0x4080_07fd;
    const TABLE: u64 = 0x4080_0003;

    #[test]
    fn each_change_is_what_the_architecture_allows() {
        use Change::{BreakFirst, FlushAfter, Free, MarkFirst};
        let same = |change| [change; 3];
        let (last, two) = (1, 2);
        let rows: &[(u64, u64, u8, [Change; 3], &str)] = &[
            (0, PAGE, last, same(Free), "a new page"),
            (0, TABLE, two, same(Free), "a new table"),
            (
                0x4080_0000 | 1 << 56,
                PAGE,
                last,
                same(Free),
                "over a word that is not valid",
            ),
            (PAGE, 0, last, same(FlushAfter), "unmap"),
            (
                PAGE,
                0x4080_0000 | 1 << 56,
                last,
                same(FlushAfter),
                "a pending word",
            ),
            (TABLE, TABLE & !1, two, same(FlushAfter), "a detached table"),
            (
                TABLE & !1,
                TABLE,
                two,
                same(Free),
                "a table that is linked again",
            ),
            (TABLE, TABLE | 1 << 58, two, same(Free), "a mark of ours"),
            (
                BLOCK,
                BLOCK | 1 << 57,
                two,
                same(Free),
                "a mark of ours in a leaf",
            ),
            (PAGE, PAGE | 1 << 63, last, same(Free), "an ignored bit"),
            (PAGE, PAGE & !0x80, last, same(FlushAfter), "no more writes"),
            (PAGE & !0x80, PAGE, last, same(FlushAfter), "writes as well"),
            (
                PAGE,
                PAGE | 1 << 54,
                last,
                same(FlushAfter),
                "no more execution",
            ),
            (PAGE, PAGE | 1 << 51, last, same(FlushAfter), "dirty state"),
            (PAGE & !0x400, PAGE, last, same(Free), "accessed"),
            (PAGE, PAGE & !0x400, last, same(FlushAfter), "not accessed"),
            (
                PAGE & !0x480,
                PAGE,
                last,
                same(FlushAfter),
                "accessed, and writes as well",
            ),
            (PAGE, PAGE + 0x1000, last, same(BreakFirst), "another page"),
            (
                PAGE,
                PAGE ^ 0x1_0000,
                last,
                same(BreakFirst),
                "another page: bit 16 is address",
            ),
            (BLOCK, BLOCK ^ 0x1_0000, two, same(FlushAfter), "the mark"),
            (
                PAGE,
                PAGE ^ 0x28,
                last,
                same(BreakFirst),
                "another kind of memory",
            ),
            (
                PAGE,
                PAGE ^ 0x100,
                last,
                same(BreakFirst),
                "another shareability",
            ),
            (
                PAGE,
                PAGE | 1 << 52,
                last,
                same(BreakFirst),
                "the contiguous hint",
            ),
            (
                BLOCK,
                BLOCK + 0x20_0000,
                two,
                same(BreakFirst),
                "another block",
            ),
            (
                TABLE,
                TABLE + 0x1000,
                two,
                same(BreakFirst),
                "another table",
            ),
            (
                BLOCK,
                TABLE,
                two,
                [BreakFirst, MarkFirst, FlushAfter],
                "a split",
            ),
            (
                TABLE,
                BLOCK,
                two,
                [BreakFirst, MarkFirst, FlushAfter],
                "a merge",
            ),
            (
                BLOCK,
                PAGE,
                last,
                same(Free),
                "over the reserved coding of the last level",
            ),
            (
                PAGE,
                BLOCK,
                last,
                same(FlushAfter),
                "to the reserved coding",
            ),
        ];
        for (old, new, level, expected, what) in rows {
            let level = Level::new(*level).unwrap();
            let found = ALL.map(|changes| change(*old, *new, level, changes));
            assert_eq!(found, *expected, "{what}: {old:#x} to {new:#x} at {level}");
        }
    }

    #[test]
    fn a_live_change_of_size_is_what_the_rule_allows() {
        for memory in [MemoryType::AsSent, MemoryType::ForcedWriteBack] {
            let live = |changes| {
                [
                    Vmsa::<12, 9>::second(memory, true).live_resize(changes),
                    Vmsa16K::second(memory, false).live_resize(changes),
                    Vmsa64K::second(memory, true).live_resize(changes),
                ]
            };
            let expected = [[false; 3], [false; 3], [true; 3]];
            assert_eq!(ALL.map(live), expected);
        }
        let levels = [0, 1, 2, 3].map(BlockChanges::from_bbml);
        assert_eq!(levels, [ALL[0], ALL[1], ALL[2], ALL[0]]);
    }

    #[test]
    fn what_the_engine_writes_needs_no_gap() {
        needs_no_gap(Vmsa::second(MemoryType::AsSent, true));
        needs_no_gap(Vmsa::second_that_notes(MemoryType::ForcedWriteBack));
    }

    /// Every word of the format over every other one that the states of the protocol allow.
    fn needs_no_gap(format: Vmsa) {
        let (two, at) = (Level::new(2).unwrap(), PhysAddr::new(0x4080_0000));
        let clean =
            [Perms::Read, Perms::Write, Perms::ReadWrite].map(|perms| format.leaf(two, at, perms));
        let noted = clean.map(|leaf| leaf | format.noted(leaf | WRITE));
        let leaves = [clean, noted].concat();
        let link = format.table(at);
        let (frozen, written) = (1_u64 << 58, 1_u64 << 57);
        let detached = link & !1;
        let mut steps = vec![
            (0, link),
            (link, link | frozen),
            (link | frozen, link),
            (link, link | written),
            (link | frozen, format.tombstone(at)),
            (format.tombstone(at), link),
            (format.tombstone(at), 0),
            (link, detached),
            (link | written, detached | written),
            (detached, 0),
        ];
        for leaf in leaves.iter().copied() {
            let pending = format.pending(leaf);
            steps.extend([(0, leaf), (leaf, pending), (pending, 0)]);
            steps.extend(leaves.iter().map(|other| (leaf, *other)));
        }
        for (old, new) in steps {
            let found = change(old, new, two, BlockChanges::BreakFirst);
            assert!(
                matches!(found, Change::Free | Change::FlushAfter),
                "{old:#x} to {new:#x}"
            );
        }
    }
}
