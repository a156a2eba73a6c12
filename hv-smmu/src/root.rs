//! Roots of stage-2 tables: which ones a unit can walk, and what a stream table entry says about one.

use hv_core::PhysAddr;
use hv_iommu::{Level, LevelSet, RootPointer, RootTables};

use crate::SecondStage;
use crate::spec::second_stage::{ADDRESS_BITS, MAX_ROOT_TABLES_LOG2, granule, start_level, t0sz};

/// The fields of a stream table entry that say where walks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootFields {
    /// S2TG, 2 bits.
    pub granule: u8,
    /// S2SL0, 2 bits.
    pub start_level: u8,
    /// S2T0SZ, 6 bits.
    pub t0sz: u8,
    /// S2TTB: aligned to the size of all tables of the root.
    pub base: PhysAddr,
}

impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> SecondStage<PAGE_SHIFT, INDEX_BITS> {
    /// Address bits that a root translates.
    const fn bits(level: Level, tables: RootTables) -> u32 {
        PAGE_SHIFT + INDEX_BITS * level.number() as u32 + tables.log2() as u32
    }

    /// The levels at which tables of a unit with so many output bits may start. One more level where 16 tables of the
    /// level below would do is not legal on all of them, and slower, so it is not among these.
    pub fn levels(output_bits: u8) -> LevelSet {
        let starts = |level: Level| start_level(PAGE_SHIFT, level.number()).is_some();
        let would_do = |below| {
            starts(below) && Self::bits(below, Self::most_tables()) >= u32::from(output_bits)
        };
        (1..=Level::MAX.number())
            .filter_map(Level::new)
            .filter(|level| starts(*level) && !level.below().is_some_and(would_do))
            .fold(LevelSet::EMPTY, LevelSet::with)
    }

    /// How many tables may stand side by side as a root: at every level.
    pub const fn most_tables() -> RootTables {
        match RootTables::new(MAX_ROOT_TABLES_LOG2) {
            Some(tables) => tables,
            None => RootTables::ONE,
        }
    }

    /// What the entry says about a root of this format, on a unit that translates so many input bits. `None` where such
    /// a root resolves none of them, or more tables stand there than the unit has addresses for: it was made
    /// for another unit.
    pub fn root_fields(root: RootPointer, input_bits: u8) -> Option<RootFields> {
        let bits = u32::from(input_bits).min(ADDRESS_BITS);
        let bits = bits.min(Self::bits(root.level(), root.tables()));
        // At least one bit is left for the start level.
        let below = PAGE_SHIFT + INDEX_BITS * (u32::from(root.level().number()) - 1);
        let start_level = start_level(PAGE_SHIFT, root.level().number())?;
        (bits > below).then_some(())?;
        Some(RootFields {
            granule: granule(PAGE_SHIFT)?,
            start_level,
            t0sz: t0sz(u8::try_from(bits).ok()?)?,
            base: root.page(),
        })
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "names roots that nobody walks")]
mod tests {
    use super::*;
    use crate::{SecondStage16K, SecondStage64K};

    type SecondStage4K = SecondStage<12, 9>;

    fn numbers(levels: LevelSet) -> Vec<u8> {
        levels.iter().map(Level::number).collect()
    }

    #[test]
    fn starts_are_those_that_the_output_size_allows() {
        // Linux: 4 KiB with 40 and 42 bits starts at architectural level 1, with 44 and more at 0; 16 KiB with 40
        // bits at level 2 with 16 tables, with 48 at level 1 with two.
        type Row<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);
        let rows: [Row<'_>; 6] = [
            (32, &[2], &[1, 2], &[1]),
            (36, &[2, 3], &[1, 2], &[1, 2]),
            (40, &[2, 3], &[1, 2], &[1, 2]),
            (42, &[2, 3], &[1, 2, 3], &[1, 2]),
            (44, &[2, 3, 4], &[1, 2, 3], &[1, 2]),
            (48, &[2, 3, 4], &[1, 2, 3], &[1, 2, 3]),
        ];
        for (bits, small, middle, large) in rows {
            assert_eq!(numbers(SecondStage4K::levels(bits)), small, "4 KiB, {bits}");
            assert_eq!(
                numbers(SecondStage16K::levels(bits)),
                middle,
                "16 KiB, {bits}"
            );
            assert_eq!(
                numbers(SecondStage64K::levels(bits)),
                large,
                "64 KiB, {bits}"
            );
        }
    }

    #[test]
    fn an_entry_says_what_the_root_is() {
        let root = |level| {
            // SAFETY: nobody walks there.
            unsafe { RootPointer::from_raw(PhysAddr::new(0x8000_0000), Level::new(level).unwrap()) }
        };
        let fields = |fields: Option<RootFields>| {
            fields.map(|fields| (fields.granule, fields.start_level, fields.t0sz))
        };
        // QEMU's entry of 39 bits from level 1: T0SZ 25, SL0 1, TG 0.
        assert_eq!(
            fields(SecondStage4K::root_fields(root(3), 44)),
            Some((0, 1, 25))
        );
        assert_eq!(
            fields(SecondStage4K::root_fields(root(4), 44)),
            Some((0, 2, 20))
        );
        assert_eq!(
            fields(SecondStage4K::root_fields(root(4), 64)),
            Some((0, 2, 16))
        );
        assert_eq!(
            fields(SecondStage4K::root_fields(root(2), 44)),
            Some((0, 0, 34))
        );
        assert_eq!(
            fields(SecondStage16K::root_fields(root(3), 48)),
            Some((2, 2, 17))
        );
        assert_eq!(
            fields(SecondStage64K::root_fields(root(3), 48)),
            Some((1, 2, 16))
        );
        assert_eq!(
            fields(SecondStage64K::root_fields(root(2), 40)),
            Some((1, 1, 24))
        );
        let base = SecondStage4K::root_fields(root(3), 44).map(|fields| fields.base);
        assert_eq!(base, Some(PhysAddr::new(0x8000_0000)));
        // A level that resolves nothing, that the granule has not, of which there are too few addresses.
        assert_eq!(SecondStage4K::root_fields(root(4), 39), None);
        assert_eq!(SecondStage4K::root_fields(root(1), 44), None);
        assert_eq!(SecondStage4K::root_fields(root(5), 48), None);
        assert_eq!(SecondStage16K::root_fields(root(1), 24), None);
    }
}
