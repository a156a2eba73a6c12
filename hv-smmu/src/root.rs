//! Roots of tables: which ones a unit can walk, and what a stream table entry or a context descriptor says about one.

use hv_core::PhysAddr;
use hv_iommu::{Level, LevelSet, RootPointer, RootTables};

use crate::Vmsa;
use crate::spec::context::Half;
use crate::spec::first_stage::INPUT_BITS_LEAST;
use crate::spec::granule::Granule;
use crate::spec::second_stage::{MAX_ROOT_TABLES_LOG2, address_bits, granule, start_level, t0sz};

/// The fields of a stream table entry that say where walks start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootFields {
    /// S2TG, 2 bits.
    pub granule: u8,
    /// S2SL0, 2 bits.
    pub start_level: u8,
    /// S2T0SZ, 6 bits.
    pub t0sz: u8,
    /// S2TTB: aligned to the size of all tables of the root, which is more than the 64 bytes of units with 52 bits (IHI 0070,
    /// 5.2).
    pub base: PhysAddr,
}

impl<const PAGE_SHIFT: u32, const INDEX_BITS: u32> Vmsa<PAGE_SHIFT, INDEX_BITS> {
    /// Address bits that a root translates.
    const fn bits(level: Level, tables: RootTables) -> u32 {
        PAGE_SHIFT + INDEX_BITS * level.number() as u32 + tables.log2() as u32
    }

    /// The levels at which a second stage's tables may start, on a unit with so many output bits. One more level where 16 tables of the
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

    /// The levels at which a first stage's tables may start, on a unit that translates so many input bits: those whose
    /// addresses a descriptor can say the size of. The size alone tells where walks start.
    pub fn first_levels(input_bits: u8) -> LevelSet {
        (1..=Level::MAX.number())
            .filter_map(Level::new)
            .filter(|level| Self::first_bits(*level, input_bits).is_some())
            .fold(LevelSet::EMPTY, LevelSet::with)
    }

    /// How many address bits a first stage with such a root translates; `None` where walks would not start there.
    fn first_bits(level: Level, input_bits: u8) -> Option<u8> {
        let bits = u8::try_from(Self::bits(level, RootTables::ONE)).ok()?;
        let bits = bits.min(input_bits).min(address_bits(PAGE_SHIFT) as u8);
        let below = Self::bits(level, RootTables::ONE) - INDEX_BITS;
        (bits >= INPUT_BITS_LEAST && u32::from(bits) > below).then_some(bits)
    }

    /// What a context descriptor says about a first stage's root of this format, for the lower half of the addresses, on
    /// a unit that translates so many input bits. `None` where walks would not start at such a root.
    pub fn lower_half(root: RootPointer, input_bits: u8) -> Option<Half> {
        if root.tables() != RootTables::ONE {
            return None;
        }
        let bits = Self::first_bits(root.level(), input_bits)?;
        let granule = Granule::from_tg0(granule(PAGE_SHIFT)?)?;
        let whole_tables = root.page().as_u64().is_multiple_of(granule.bytes());
        whole_tables.then(|| Half::new(granule, bits, root.page()))?
    }

    /// How many tables may stand side by side as a second stage's root: at every level.
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
        let bits = u32::from(input_bits).min(address_bits(PAGE_SHIFT));
        let bits = bits.min(Self::bits(root.level(), root.tables()));
        // At least one bit is left for the start level.
        let below = PAGE_SHIFT + INDEX_BITS * (u32::from(root.level().number()) - 1);
        let start_level = start_level(PAGE_SHIFT, root.level().number())?;
        (bits > below).then_some(())?;
        Some(RootFields {
            granule: granule(PAGE_SHIFT)?,
            start_level,
            t0sz: t0sz(PAGE_SHIFT, u8::try_from(bits).ok()?)?,
            base: root.page(),
        })
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "names roots that nobody walks")]
mod tests {
    use super::*;
    use crate::{Vmsa16K, Vmsa64K};

    type Vmsa4K = Vmsa<12, 9>;

    fn numbers(levels: LevelSet) -> Vec<u8> {
        levels.iter().map(Level::number).collect()
    }

    #[test]
    fn starts_are_those_that_the_output_size_allows() {
        // Linux: 4 KiB with 40 and 42 bits starts at architectural level 1, with 44 and more at 0; 16 KiB with 40
        // bits at level 2 with 16 tables, with 48 at level 1 with two.
        type Row<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);
        let rows: [Row<'_>; 7] = [
            (32, &[2], &[1, 2], &[1]),
            (36, &[2, 3], &[1, 2], &[1, 2]),
            (40, &[2, 3], &[1, 2], &[1, 2]),
            (42, &[2, 3], &[1, 2, 3], &[1, 2]),
            (44, &[2, 3, 4], &[1, 2, 3], &[1, 2]),
            (48, &[2, 3, 4], &[1, 2, 3], &[1, 2, 3]),
            (52, &[2, 3, 4], &[1, 2, 3], &[1, 2, 3]),
        ];
        for (bits, small, middle, large) in rows {
            assert_eq!(numbers(Vmsa4K::levels(bits)), small, "4 KiB, {bits}");
            assert_eq!(numbers(Vmsa16K::levels(bits)), middle, "16 KiB, {bits}");
            assert_eq!(numbers(Vmsa64K::levels(bits)), large, "64 KiB, {bits}");
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
        assert_eq!(fields(Vmsa4K::root_fields(root(3), 44)), Some((0, 1, 25)));
        assert_eq!(fields(Vmsa4K::root_fields(root(4), 44)), Some((0, 2, 20)));
        assert_eq!(fields(Vmsa4K::root_fields(root(4), 64)), Some((0, 2, 16)));
        assert_eq!(fields(Vmsa4K::root_fields(root(2), 44)), Some((0, 0, 34)));
        assert_eq!(fields(Vmsa16K::root_fields(root(3), 48)), Some((2, 2, 17)));
        assert_eq!(fields(Vmsa64K::root_fields(root(3), 48)), Some((1, 2, 16)));
        assert_eq!(fields(Vmsa64K::root_fields(root(2), 40)), Some((1, 1, 24)));
        // Ten bits at level 1; the others end at 48.
        assert_eq!(fields(Vmsa64K::root_fields(root(3), 52)), Some((1, 2, 12)));
        assert_eq!(fields(Vmsa64K::root_fields(root(3), 50)), Some((1, 2, 14)));
        assert_eq!(fields(Vmsa4K::root_fields(root(4), 52)), Some((0, 2, 16)));
        assert_eq!(fields(Vmsa16K::root_fields(root(3), 52)), Some((2, 2, 17)));
        let base = Vmsa4K::root_fields(root(3), 44).map(|fields| fields.base);
        assert_eq!(base, Some(PhysAddr::new(0x8000_0000)));
        // A level that resolves nothing, that the granule has not, of which there are too few addresses.
        assert_eq!(Vmsa4K::root_fields(root(4), 39), None);
        assert_eq!(Vmsa4K::root_fields(root(1), 44), None);
        assert_eq!(Vmsa4K::root_fields(root(5), 48), None);
        assert_eq!(Vmsa16K::root_fields(root(1), 24), None);
    }

    #[test]
    fn a_first_stage_starts_where_its_size_says() {
        let [small, middle, large] = [39, 44, 48].map(|bits| {
            [
                numbers(Vmsa4K::first_levels(bits)),
                numbers(Vmsa16K::first_levels(bits)),
                numbers(Vmsa64K::first_levels(bits)),
            ]
        });
        assert_eq!(small, [vec![2, 3], vec![1, 2, 3], vec![1, 2]]);
        assert_eq!(middle, [vec![2, 3, 4], vec![1, 2, 3], vec![1, 2, 3]]);
        // 16 KiB tables of architectural level 0 have two entries then.
        assert_eq!(large, [vec![2, 3, 4], vec![1, 2, 3, 4], vec![1, 2, 3]]);
    }

    #[test]
    fn a_descriptor_says_what_the_root_is() {
        let at = |level, page| {
            let level = Level::new(level).unwrap();
            // SAFETY: nobody walks there.
            unsafe { RootPointer::from_raw(PhysAddr::new(page), level) }
        };
        let root = |level| at(level, 0x8000_0000);
        let half = |granule, bits| Half::new(granule, bits, PhysAddr::new(0x8000_0000));
        let (small, middle) = (Granule::Size4K, Granule::Size16K);
        assert_eq!(Vmsa4K::lower_half(root(3), 48), half(small, 39));
        assert_eq!(Vmsa4K::lower_half(root(4), 48), half(small, 48));
        assert_eq!(Vmsa4K::lower_half(root(4), 44), half(small, 44));
        assert_eq!(Vmsa4K::lower_half(root(2), 48), half(small, 30));
        assert_eq!(Vmsa16K::lower_half(root(4), 48), half(middle, 48));
        assert_eq!(Vmsa64K::lower_half(root(3), 48), half(Granule::Size64K, 48));
        assert_eq!(Vmsa64K::lower_half(root(3), 52), half(Granule::Size64K, 52));
        assert_eq!(Vmsa4K::lower_half(root(4), 52), half(small, 48));
        assert_eq!(Vmsa16K::lower_half(root(4), 52), half(middle, 48));
        // Sizes by which walks would start at another level, or which are too small to be said.
        assert_eq!(Vmsa4K::lower_half(root(4), 39), None);
        assert_eq!(Vmsa4K::lower_half(root(1), 48), None);
        assert_eq!(Vmsa4K::lower_half(root(5), 48), None);
        assert_eq!(Vmsa16K::lower_half(root(4), 47), None);
        // A page that is no table of the granule.
        assert_eq!(Vmsa16K::lower_half(at(3, 0x8000_1000), 48), None);
    }
}
