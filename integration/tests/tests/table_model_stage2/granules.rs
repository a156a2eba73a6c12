//! Tables of each granule, in every depth and with every number of root tables: random operations beside a map of what
//! is mapped, and the independent walker.

#![expect(
    unsafe_code,
    reason = "redeeming without a flush and draining a closed table are unsafe"
)]

use std::collections::BTreeMap;

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::Quiescence;
use hv_iommu::table::{Drain, DrainStep, Geometry, ReclaimStep, Table, TableError};
use hv_iommu::{Level, RootTables};
use hv_smmu::{MemoryType, Vmsa, Vmsa16K, Vmsa64K};
use hv_tests::slab::Slab;
use hv_tests::vmsa_walker::{Stage, Walker};
use hv_tests::walker::Found;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::random::config;

/// A root: its level counted from the leaves, and log2 of its tables.
type Root = (u8, u8);

/// What is mapped, in pages of the granule: how many, to which page, how, and whether it is unmapped and waits.
#[derive(Clone, Copy, Debug)]
struct Region {
    pages: u64,
    to: u64,
    perms: Perms,
    pending: bool,
}

#[derive(Clone, Debug)]
enum Op {
    /// Where (0 to 3, and how far behind), how many pages, how far the target is off, the largest page.
    Map(u64, u64, u64, u64, bool, Perms),
    Unmap(Index),
    Redeem(Index),
    Reclaim,
}

struct Bench<'m, const SHIFT: u32, const BITS: u32> {
    slab: &'m Slab,
    table: Table<Vmsa<SHIFT, BITS>, &'m Slab>,
    quiescence: Quiescence,
    root: Root,
    coherent: bool,
    regions: BTreeMap<u64, Region>,
    maps: u64,
}

fn geometry((level, tables): Root, coherent: bool) -> Geometry {
    let level = Level::new(level).unwrap();
    Geometry {
        root: level,
        root_tables: RootTables::new(tables).unwrap(),
        largest_leaf: level.min(Level::new(2).unwrap()),
        coherent,
        live_resize: true,
        dirty: false,
    }
}

impl<'m, const SHIFT: u32, const BITS: u32> Bench<'m, SHIFT, BITS> {
    /// Frames of a table.
    const FRAMES: usize = 1 << (BITS - 9);

    fn new(slab: &'m Slab, root: Root, coherent: bool) -> Self {
        let format = Vmsa::second(MemoryType::ForcedWriteBack, coherent);
        // SAFETY: all guards and all of reclaim are of this value's one quiescence, on its one CPU.
        let table = unsafe { Table::new(format, geometry(root, coherent), slab) }.unwrap();
        Self {
            slab,
            table,
            quiescence: Quiescence::new(1).unwrap(),
            root,
            coherent,
            regions: BTreeMap::new(),
            maps: 0,
        }
    }

    /// Log2 of the pages that the tables translate, of which hardware takes 48 bits of address.
    fn page_bits(&self) -> u32 {
        (BITS * u32::from(self.root.0) + u32::from(self.root.1)).min(48 - SHIFT)
    }

    fn range(&self, first: u64, pages: u64) -> IovaRange {
        let pages = PageCount::new(pages << (SHIFT - 12)).unwrap();
        IovaRange::new(Iova::new(first << SHIFT), pages).unwrap()
    }

    fn walker(&self) -> Walker<impl Fn(u64, usize) -> u64> {
        let root = self.table.root().unwrap();
        let fields = Vmsa::<SHIFT, BITS>::root_fields(root, 48).unwrap();
        Walker {
            stage: Stage::Second,
            read: |at, index| self.slab.read(at, index, self.coherent),
            root: fields.base.as_u64(),
            granule: fields.granule,
            start: fields.start_level,
            size: fields.t0sz,
            output_bits: 48,
            attributes: if self.coherent { 0x318 } else { 0x218 },
            notes_writes: false,
        }
    }

    fn map(&mut self, place: u64, offset: u64, pages: u64, skew: u64, large: bool, perms: Perms) {
        let top = 1_u64 << self.page_bits();
        let table = (1 << (BITS * u32::from(self.root.0))).min(top);
        // At the start, where two tables of the root meet, at the end; in the second table of pages.
        let block = 1 << BITS;
        let base = [0, table - 2, top - 5, block][place as usize];
        let first = base + offset;
        if first + pages > top {
            return;
        }
        self.maps += 1;
        let to = self.maps * (block * 4) + first % block + skew;
        let largest = [PageSize::Size4K, PageSize::Size1G][usize::from(large)];
        let (range, target) = (self.range(first, pages), PhysAddr::new(to << SHIFT));
        let guard = self.quiescence.pin(self.slab);
        let mapped = self.table.map(&guard, range, target, perms, largest);
        let before = self.regions.range(..first + pages).next_back();
        let taken = before.filter(|(at, region)| *at + region.pages > first);
        match taken {
            Some(_) => assert!(
                matches!(mapped, Err(TableError::Occupied { .. })),
                "{mapped:?}"
            ),
            None => {
                mapped.unwrap();
                let region = Region {
                    pages,
                    to,
                    perms,
                    pending: false,
                };
                self.regions.insert(first, region);
            }
        }
    }

    fn unmap(&mut self, first: u64) {
        let range = self.range(first, self.regions[&first].pages);
        let _ = self.table.unmap(&self.quiescence.pin(self.slab), range);
        self.regions.get_mut(&first).unwrap().pending = true;
    }

    fn redeem(&mut self, first: u64) {
        let Region {
            pages, to, pending, ..
        } = self.regions[&first];
        let (range, to) = (self.range(first, pages), PhysAddr::new(to << SHIFT));
        let guard = self.quiescence.pin(self.slab);
        // SAFETY: the walker of this test keeps nothing, and one thread has no other guard.
        let redeemed = unsafe { self.table.redeem(&guard, range, to, |_, _| {}) };
        drop(guard);
        match pending {
            true => {
                redeemed.unwrap();
                self.regions.remove(&first);
            }
            false => assert!(matches!(redeemed, Err(TableError::NotMapped { .. }))),
        }
    }

    /// Takes every empty table out.
    fn reclaim(&mut self) {
        let mut step = self.table.reclaim(&self.quiescence, self.slab);
        for _ in 0..10_000 {
            step = match step {
                ReclaimStep::Done => return,
                ReclaimStep::Flush { attempt, .. } => {
                    // SAFETY: the walker keeps nothing.
                    unsafe {
                        self.table
                            .reclaim_flushed(&self.quiescence, self.slab, attempt)
                    }
                }
                _ => self.table.reclaim(&self.quiescence, self.slab),
            };
        }
        panic!("reclaim does not end");
    }

    /// Model, engine and walker agree at the edges of all that is mapped, and on the tables that there are.
    fn compare(&self) {
        for (first, region) in &self.regions {
            let end = first + region.pages;
            for page in [first.wrapping_sub(1), *first, end - 1, end] {
                self.compare_page(page);
            }
        }
        let mut linked = 0;
        self.walker().tables(|_, _| linked += 1).unwrap();
        let tables = self.table.table_pages() as usize;
        assert!(linked <= tables);
        assert_eq!(self.slab.taken(), tables * Self::FRAMES);
    }

    fn compare_page(&self, page: u64) {
        let at = (page << SHIFT) + 0x123;
        let below = self.regions.range(..=page).next_back();
        let region =
            below.filter(|(first, region)| page < *first + region.pages && !region.pending);
        let expected = region.map(|(first, region)| {
            let to = ((region.to + page - first) << SHIFT) + 0x123;
            (to, region.perms.readable(), region.perms.writable())
        });
        let walked = self.walker().walk(at).unwrap();
        let parts = |found: Found| (found.to, found.readable, found.writable);
        assert_eq!(walked.map(parts), expected, "the walk of {at:#x}");
        let guard = self.quiescence.pin(self.slab);
        let found = self.table.translate(&guard, Iova::new(at));
        let levels = (
            found.map(|found| found.level.number().into()),
            walked.map(|found| found.level),
        );
        assert_eq!(levels.0, levels.1);
        let found = found.map(|found| {
            (
                found.to.as_u64(),
                found.perms.readable(),
                found.perms.writable(),
            )
        });
        assert_eq!(found, expected, "the translation of {at:#x}");
    }

    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let keys: Vec<_> = self.regions.keys().copied().collect();
            match (op, keys.is_empty()) {
                (Op::Map(place, offset, pages, skew, large, perms), _) => {
                    let pages = [1, 3, 1 << BITS, (1 << BITS) + 1, 3 << BITS][*pages as usize];
                    self.map(*place, *offset, pages, *skew, *large, *perms);
                }
                (Op::Reclaim, _) => self.reclaim(),
                (_, true) => {}
                (Op::Unmap(index), _) => {
                    let first = *index.get(&keys);
                    if !self.regions[&first].pending {
                        self.unmap(first);
                    }
                }
                (Op::Redeem(index), _) => self.redeem(*index.get(&keys)),
            }
            self.compare();
        }
    }

    /// Ends the table, which gives every frame back.
    fn end(self) {
        let root = self.table.close().unwrap();
        // SAFETY: the table was closed, no guard is held, and the walker reads when told to.
        let mut drain = unsafe { Drain::new(root) };
        let mut pages = 0;
        loop {
            match drain.step(&self.table, 1 << 14) {
                DrainStep::Frames(run) => pages += run.pages().get(),
                DrainStep::More => {}
                DrainStep::Done => break,
            }
        }
        let mapped: u64 = self.regions.values().map(|region| region.pages).sum();
        assert_eq!(pages, mapped << (SHIFT - 12), "pages that were handed out");
        assert_eq!(self.slab.taken(), 0, "tables leaked");
    }
}

fn op() -> impl Strategy<Value = Op> {
    let perms = prop_oneof![
        Just(Perms::Read),
        Just(Perms::Write),
        Just(Perms::ReadWrite)
    ];
    let map = (
        0..4_u64,
        0..4_u64,
        0..5_u64,
        prop_oneof![3 => Just(0_u64), 1 => Just(1)],
        any::<bool>(),
        perms,
    );
    prop_oneof![
        6 => map.prop_map(|(place, offset, pages, skew, large, perms)| {
            let offset = if pages == 2 && place == 3 { 0 } else { offset };
            Op::Map(place, offset, pages, skew, large, perms)
        }),
        4 => any::<Index>().prop_map(Op::Unmap),
        4 => any::<Index>().prop_map(Op::Redeem),
        1 => Just(Op::Reclaim),
    ]
}

fn run<const SHIFT: u32, const BITS: u32>(root: Root, coherent: bool, ops: &[Op]) {
    let slab = Slab::new(64 << (BITS - 9));
    let mut bench = Bench::<SHIFT, BITS>::new(&slab, root, coherent);
    bench.run(ops);
    bench.end();
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn tables_of_16_kib_pages_agree_with_the_model(
        // Level 3 to level 1 of the architecture; two tables of that are 48 bits.
        root in prop_oneof![(Just(1_u8), 0..=4_u8), (Just(2_u8), 0..=4_u8), (Just(3_u8), 0..=1_u8)],
        coherent in any::<bool>(),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        run::<14, 11>(root, coherent, &ops);
    }

    #[test]
    fn tables_of_64_kib_pages_agree_with_the_model(
        root in prop_oneof![(Just(1_u8), 0..=4_u8), (Just(2_u8), 0..=4_u8), (Just(3_u8), 0..=0_u8)],
        coherent in any::<bool>(),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        run::<16, 13>(root, coherent, &ops);
    }
}

#[test]
fn a_block_is_one_leaf_in_each_granule() {
    fn check<const SHIFT: u32, const BITS: u32>(name: &str) {
        let slab = Slab::new(64 << (BITS - 9));
        let mut bench = Bench::<SHIFT, BITS>::new(&slab, (2, 1), true);
        bench.map(3, 0, 1 << BITS, 0, true, Perms::Read);
        let walked = bench.walker().walk(1 << (SHIFT + BITS)).unwrap();
        assert_eq!(walked.map(|found| found.level), Some(2), "{name}");
        bench.map(0, 0, 1, 0, true, Perms::Read);
        assert_eq!(
            bench.table.table_pages(),
            3,
            "two of the root and one of pages"
        );
        bench.compare();
        bench.end();
    }
    check::<14, 11>("32 MiB");
    check::<16, 13>("512 MiB");
}

#[test]
fn part_of_a_page_is_refused_by_name() {
    fn check<const SHIFT: u32, const BITS: u32>(bytes: u64) {
        let slab = Slab::new(64 << (BITS - 9));
        let bench = Bench::<SHIFT, BITS>::new(&slab, (2, 0), true);
        let guard = bench.quiescence.pin(&slab);
        let one = |at| IovaRange::new(Iova::new(at), PageCount::new(bytes >> 12).unwrap()).unwrap();
        let short = IovaRange::new(Iova::new(0), PageCount::ONE).unwrap();
        let cuts = |at| TableError::CutsPage {
            at: Iova::new(at),
            bytes,
        };
        for (range, to) in [
            (short, 0),
            (one(0x1000), 0x1000),
            (one(0), 0x1000),
            (one(0x1000), 0),
        ] {
            let to = PhysAddr::new(to);
            let mapped = bench
                .table
                .map(&guard, range, to, Perms::Read, PageSize::Size1G);
            assert_eq!(mapped, Err(cuts(range.start().as_u64())));
            assert!(bench.table.is_vacant(&guard, range));
        }
        // Sizes that are not this table's, of a shared page or one that is to be split.
        for size in PageSize::ALL {
            if Level::mapping::<Vmsa<SHIFT, BITS>>(size).is_some() {
                continue;
            }
            let at = Iova::new(0);
            let other = TableError::NoSuchPage {
                at,
                size,
                smallest: bytes,
            };
            let shared = bench
                .table
                .map_shared(&guard, at, PhysAddr::new(0), Perms::Read, size);
            assert_eq!(shared, Err(other));
            assert_eq!(bench.table.unmap_shared(&guard, at, size), Err(other));
            assert_eq!(bench.table.split(&guard, at, size), Err(other));
            assert_eq!(bench.table.merge(&guard, at, size), Err(other));
        }
        // What is mapped stays as it is under an unmap that cuts it.
        let (range, to) = (one(0), PhysAddr::new(0));
        bench
            .table
            .map(&guard, range, to, Perms::Read, PageSize::Size4K)
            .unwrap();
        // Also where the table of pages is there already.
        let beside = IovaRange::new(Iova::new(bytes), PageCount::ONE).unwrap();
        // SAFETY: nothing is mapped there.
        let placed = unsafe { bench.table.map_page(&guard, beside, to, Perms::Read) };
        assert_eq!(placed, Err(cuts(bytes)), "by its place");
        let _ = bench.table.unmap(&guard, short);
        assert!(bench.table.translate(&guard, Iova::new(0)).is_some());
        // SAFETY: nothing is redeemed: it is refused.
        let redeemed = unsafe { bench.table.redeem(&guard, short, to, |_, _| {}) };
        assert!(
            matches!(redeemed, Err(TableError::NotMapped { .. })),
            "{redeemed:?}"
        );
    }
    check::<14, 11>(0x4000);
    check::<16, 13>(0x1_0000);
}

#[test]
fn a_root_that_cannot_be_had_is_an_error_and_takes_nothing() {
    let format = Vmsa64K::second(MemoryType::AsSent, true);
    let new = |slab: &Slab, root| {
        // SAFETY: no guard is made for it.
        unsafe { Table::new(format, geometry(root, true), slab) }.map(drop)
    };
    // A run of twice the size would be taken for a moment; half of one is not enough for anything.
    for (frames, missing) in [(8, 1), (15, 1)] {
        let slab = Slab::new(frames);
        assert_eq!(new(&slab, (2, 0)), Err(TableError::OutOfFrames { missing }));
        assert_eq!(slab.taken(), 0);
    }
    let slab = Slab::new(100);
    assert_eq!(
        new(&slab, (2, 4)),
        Err(TableError::OutOfFrames { missing: 16 })
    );
    assert_eq!(slab.taken(), 0);
    for root in [(2, 0), (2, 1)] {
        let slab = Slab::apart(100);
        assert_eq!(
            new(&slab, root),
            Err(TableError::FramesApart { frames: 16 })
        );
        assert_eq!(slab.taken(), 0);
    }
    let slab = Slab::new(100);
    assert!(matches!(
        new(&slab, (4, 0)),
        Err(TableError::TooWide { bits: 68, .. })
    ));
    // Frames that are handed in make as many whole tables as there are among them.
    let format = Vmsa16K::second(MemoryType::AsSent, true);
    // SAFETY: no guard is made for it.
    let table = unsafe { Table::new(format, geometry((2, 0), true), &slab) }.unwrap();
    let before = slab.taken();
    let mut spares = table.spares();
    let run = hv_core::platform::FrameSource::alloc_frames(
        &slab,
        PageCount::new(14).unwrap(),
        PageSize::Size4K,
    );
    spares.add(run.unwrap());
    let tables = spares.count() as usize;
    assert!((2..=3).contains(&tables), "{tables}");
    assert_eq!(
        slab.taken(),
        before + 4 * tables,
        "what makes no table went back"
    );
    drop(spares);
    assert_eq!(slab.taken(), before);
    table.discard();
    assert_eq!(slab.taken(), 0);
}
