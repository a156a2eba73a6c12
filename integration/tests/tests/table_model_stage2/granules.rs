//! Tables of each granule, in every depth and with every number of root tables: random operations beside a map of what
//! is mapped, and the independent walker. Ranges of one owner and shared pages, and blocks that become tables and tables
//! that become blocks.

#![expect(
    unsafe_code,
    reason = "redeeming without a flush and draining a closed table are unsafe"
)]

use std::collections::BTreeMap;

use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::Quiescence;
use hv_iommu::table::{Drain, DrainStep, Geometry, ReclaimStep, Table, TableError};
use hv_iommu::{Level, RootTables};
use hv_smmu::{MemoryType, Vmsa};
use hv_tests::slab::Slab;
use hv_tests::vmsa_walker::{Stage, Walker};
use hv_tests::walker::Found;
use proptest::sample::Index;

/// A table's root, whether walkers snoop, whether they follow a change of size, whether addresses have 52 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) root: Root,
    pub(crate) coherent: bool,
    pub(crate) live_resize: bool,
    pub(crate) long: bool,
}

impl Shape {
    /// Of walkers that snoop and follow.
    pub(crate) const fn plain(root: Root) -> Self {
        Self {
            root,
            coherent: true,
            live_resize: true,
            long: false,
        }
    }

    /// Significant bits of an address.
    pub(crate) const fn bits(self) -> u8 {
        if self.long { 52 } else { 48 }
    }
}

/// A root: its level counted from the leaves, and log2 of its tables.
pub(crate) type Root = (u8, u8);

/// What is mapped, in pages of the granule: how many, to which page, how, whether it is unmapped and waits, and whether it
/// is one page that several may want.
#[derive(Clone, Copy, Debug)]
struct Region {
    pages: u64,
    to: u64,
    perms: Perms,
    pending: bool,
    shared: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Where (0 to 3, and how far behind), how many pages, how far the target is off, the largest page.
    Map(u64, u64, u64, u64, bool, Perms),
    /// Where, and whether it is a block.
    Share(u64, u64, bool, Perms),
    /// Of which region, and which block of it.
    Split(Index, u64),
    Merge(Index, u64),
    Protect(Index, Perms),
    Unmap(Index),
    Redeem(Index),
    Reclaim,
}

pub(crate) struct Bench<'m, const SHIFT: u32, const BITS: u32> {
    slab: &'m Slab,
    pub(crate) table: Table<Vmsa<SHIFT, BITS>, &'m Slab>,
    pub(crate) quiescence: Quiescence,
    shape: Shape,
    regions: BTreeMap<u64, Region>,
    maps: u64,
}

pub(crate) fn geometry(shape: Shape) -> Geometry {
    let (level, tables) = shape.root;
    let level = Level::new(level).unwrap();
    let largest = Level::new(if shape.long { 3 } else { 2 }).unwrap();
    Geometry {
        root: level,
        root_tables: RootTables::new(tables).unwrap(),
        largest_leaf: level.min(largest),
        coherent: shape.coherent,
        live_resize: shape.live_resize,
        dirty: false,
    }
}

impl<'m, const SHIFT: u32, const BITS: u32> Bench<'m, SHIFT, BITS> {
    /// Frames of a table.
    const FRAMES: usize = 1 << (BITS - 9);

    pub(crate) fn new(slab: &'m Slab, shape: Shape) -> Self {
        let format = Vmsa::second(MemoryType::ForcedWriteBack, shape.coherent);
        // SAFETY: all guards and all of reclaim are of this value's one quiescence, on its one CPU.
        let table = unsafe { Table::new(format, geometry(shape), slab) }.unwrap();
        Self {
            slab,
            table,
            quiescence: Quiescence::new(1).unwrap(),
            shape,
            regions: BTreeMap::new(),
            maps: 0,
        }
    }

    /// Log2 of the pages that the tables translate, of which hardware takes 48 bits of address, or 52.
    fn page_bits(&self) -> u32 {
        let (level, tables) = self.shape.root;
        let bits = BITS * u32::from(level) + u32::from(tables);
        bits.min(u32::from(self.shape.bits()) - SHIFT)
    }

    /// The page where the next target begins, for a block at 0. Long addresses are told apart where they carry.
    fn next_target(&mut self) -> u64 {
        self.maps += 1;
        match self.shape.long {
            true => ((1 + self.maps % 14) << (48 - SHIFT)) - Self::BLOCK,
            false => self.maps * (Self::BLOCK * 4),
        }
    }

    fn range(&self, first: u64, pages: u64) -> IovaRange {
        let pages = PageCount::new(pages << (SHIFT - 12)).unwrap();
        IovaRange::new(Iova::new(first << SHIFT), pages).unwrap()
    }

    /// The size of the pages of a level.
    pub(crate) fn size(level: u8) -> PageSize {
        let level = Level::new(level).unwrap();
        level.size::<Vmsa<SHIFT, BITS>>().unwrap()
    }

    pub(crate) fn walker(&self) -> Walker<impl Fn(u64, usize) -> u64> {
        let root = self.table.root().unwrap();
        let bits = self.shape.bits();
        let fields = Vmsa::<SHIFT, BITS>::root_fields(root, bits).unwrap();
        Walker {
            stage: Stage::Second,
            read: |at, index| self.slab.read(at, index, self.shape.coherent),
            root: fields.base.as_u64(),
            granule: fields.granule,
            start: fields.start_level,
            size: fields.t0sz,
            output_bits: bits.into(),
            attributes: if self.shape.coherent { 0x318 } else { 0x218 },
            notes_writes: false,
        }
    }

    /// Pages in a block.
    const BLOCK: u64 = 1 << BITS;

    /// A page, and how many there are.
    fn place(&self, place: u64, offset: u64) -> (u64, u64) {
        let top = 1_u64 << self.page_bits();
        let table = (1 << (BITS * u32::from(self.shape.root.0))).min(top);
        // At the start, where two tables of the root meet, at the end; in the second table of pages.
        let base = [0, table - 2, top - 5, Self::BLOCK][place as usize];
        (base + offset, top)
    }

    /// Whether something is mapped or waits there.
    fn is_taken(&self, first: u64, pages: u64) -> bool {
        let before = self.regions.range(..first + pages).next_back();
        before.is_some_and(|(at, region)| *at + region.pages > first)
    }

    pub(crate) fn map(
        &mut self,
        place: u64,
        offset: u64,
        pages: u64,
        skew: u64,
        large: bool,
        perms: Perms,
    ) {
        let (block, (first, top)) = (Self::BLOCK, self.place(place, offset));
        if first + pages > top {
            return;
        }
        let to = self.next_target() + first % block + skew;
        let largest = [PageSize::Size4K, PageSize::LARGEST][usize::from(large)];
        let (range, target) = (self.range(first, pages), PhysAddr::new(to << SHIFT));
        let guard = self.quiescence.pin(self.slab);
        let mapped = self.table.map(&guard, range, target, perms, largest);
        match self.is_taken(first, pages) {
            true => assert!(
                matches!(mapped, Err(TableError::Occupied { .. })),
                "{mapped:?}"
            ),
            false => {
                mapped.unwrap();
                let region = Region {
                    pages,
                    to,
                    perms,
                    pending: false,
                    shared: false,
                };
                self.regions.insert(first, region);
            }
        }
    }

    /// Maps one page or block in words that others may want too.
    pub(crate) fn share(&mut self, place: u64, offset: u64, block: bool, perms: Perms) {
        let (first, top) = self.place(place, offset);
        let (level, pages) = if block { (2, Self::BLOCK) } else { (1, 1) };
        let first = first & !(pages - 1);
        if first + pages > top {
            return;
        }
        let to = self.next_target() + first % Self::BLOCK;
        let mut linked = false;
        let here = first >> BITS;
        self.walker()
            .tables(|level, prefix| linked |= (level, prefix) == (1, here))
            .unwrap();
        let at = Iova::new(first << SHIFT);
        let guard = self.quiescence.pin(self.slab);
        let target = PhysAddr::new(to << SHIFT);
        let size = Self::size(level);
        let shared = self.table.map_shared(&guard, at, target, perms, size);
        match (self.is_taken(first, pages), block && linked) {
            _ if level > self.shape.root.0 => assert!(
                matches!(shared, Err(TableError::NoSuchPage { .. })),
                "{shared:?}"
            ),
            (true, _) => assert!(
                matches!(
                    shared,
                    Err(TableError::Occupied { .. } | TableError::TableInTheWay { .. })
                ),
                "{shared:?}"
            ),
            (false, true) => assert_eq!(shared, Err(TableError::TableInTheWay { at })),
            (false, false) => {
                shared.unwrap();
                let region = Region {
                    pages,
                    to,
                    perms,
                    pending: false,
                    shared: true,
                };
                self.regions.insert(first, region);
            }
        }
    }

    /// A block that lies in a region that is mapped, if one does: one of the first four.
    fn block_of(&self, first: u64, which: u64) -> Option<u64> {
        let region = &self.regions[&first];
        let start = first.next_multiple_of(Self::BLOCK);
        let blocks = ((first + region.pages).saturating_sub(start) >> BITS).min(4);
        let which = which.checked_rem(blocks)?;
        (!region.pending).then_some(start + which * Self::BLOCK)
    }

    /// The level of the leaf that a page goes through.
    pub(crate) fn level_of(&self, page: u64) -> Option<u8> {
        let guard = self.quiescence.pin(self.slab);
        let found = self.table.translate(&guard, Iova::new(page << SHIFT));
        found.map(|found| found.level.number())
    }

    fn split(&mut self, first: u64, which: u64) {
        let Some(block) = self.block_of(first, which) else {
            return;
        };
        let at = Iova::new(block << SHIFT);
        let expected = match (self.shape.live_resize, self.level_of(block)) {
            (false, _) => Err(TableError::Breaks { at }),
            (true, Some(2)) => Ok(()),
            (true, _) => Err(TableError::NotMapped { at }),
        };
        let tables = self.table.table_pages();
        let guard = self.quiescence.pin(self.slab);
        let split = self.table.split(&guard, at, Self::size(2));
        drop(guard);
        assert_eq!(split, expected, "the block at {block:#x}");
        if split.is_ok() {
            assert_eq!(self.level_of(block + Self::BLOCK - 1), Some(1));
            assert_eq!(self.table.table_pages(), tables + 1);
        }
        self.compare_block(block);
    }

    fn merge(&mut self, first: u64, which: u64) {
        let Some(block) = self.block_of(first, which) else {
            return;
        };
        let at = Iova::new(block << SHIFT);
        let to = self.regions[&first].to + (block - first);
        let target = PhysAddr::new(to << SHIFT);
        let expected = match (self.shape.live_resize, self.level_of(block)) {
            (false, _) => Err(TableError::Breaks { at }),
            (true, Some(1)) if self.shape.root.0 == 1 => Err(TableError::NotMapped { at }),
            (true, Some(1)) if !to.is_multiple_of(Self::BLOCK) => Err(TableError::NotContiguous {
                at,
                expected: target,
                found: target,
            }),
            (true, Some(1)) => Ok(()),
            (true, _) => Err(TableError::NotMapped { at }),
        };
        let guard = self.quiescence.pin(self.slab);
        let merged = self.table.merge(&guard, at, Self::size(2));
        drop(guard);
        assert_eq!(merged, expected, "the block at {block:#x}");
        if merged.is_ok() {
            assert_eq!(self.level_of(block + 1), Some(2));
        }
        self.compare_block(block);
    }

    fn compare_block(&self, block: u64) {
        let end = block + Self::BLOCK;
        for page in [block, block + 1, block + Self::BLOCK / 2, end - 1, end] {
            self.compare_page(page);
        }
    }

    fn protect(&mut self, first: u64, perms: Perms) {
        let region = self.regions.get_mut(&first).unwrap();
        if !region.pending {
            region.perms = perms;
            let range = self.range(first, self.regions[&first].pages);
            let guard = self.quiescence.pin(self.slab);
            self.table.protect(&guard, range, perms).unwrap();
        }
    }

    /// As [`unmap`](Self::unmap), for one page of many owners.
    fn unmap_shared(&mut self, first: u64) {
        let Region { pages, to, .. } = self.regions[&first];
        let (at, guard) = (Iova::new(first << SHIFT), self.quiescence.pin(self.slab));
        // A block that was split is none any more, and what became a block is no page.
        let level = self.level_of(first).unwrap();
        let [size, other] = match level {
            1 => [Self::size(1), Self::size(2)],
            _ => [Self::size(2), Self::size(1)],
        };
        if pages > 1 || first.is_multiple_of(Self::BLOCK) {
            let unmapped = self.table.unmap_shared(&guard, at, other);
            assert_eq!(unmapped, Err(TableError::NotMapped { at }));
        }
        if pages == 1 || level == 2 {
            let unmapped = self.table.unmap_shared(&guard, at, size);
            assert_eq!(unmapped, Ok(PhysAddr::new(to << SHIFT)));
            let again = self.table.unmap_shared(&guard, at, size);
            assert_eq!(again, Err(TableError::NotMapped { at }));
            self.regions.get_mut(&first).unwrap().pending = true;
        } else {
            drop(guard);
            // In pieces it is its one owner's.
            self.regions.get_mut(&first).unwrap().shared = false;
        }
    }

    fn redeem_shared(&mut self, first: u64) {
        let Region {
            pages, to, pending, ..
        } = self.regions[&first];
        let (at, size) = (
            Iova::new(first << SHIFT),
            Self::size(if pages == 1 { 1 } else { 2 }),
        );
        let guard = self.quiescence.pin(self.slab);
        let to = PhysAddr::new(to << SHIFT);
        let redeemed = self.table.redeem_shared(&guard, at, to, size);
        drop(guard);
        match pending {
            true => {
                assert_eq!(redeemed, Ok(false));
                self.regions.remove(&first);
            }
            false => assert_eq!(redeemed, Err(TableError::NotMapped { at })),
        }
    }

    pub(crate) fn unmap(&mut self, first: u64) {
        if self.regions[&first].shared {
            return self.unmap_shared(first);
        }
        let range = self.range(first, self.regions[&first].pages);
        let _ = self.table.unmap(&self.quiescence.pin(self.slab), range);
        self.regions.get_mut(&first).unwrap().pending = true;
    }

    pub(crate) fn redeem(&mut self, first: u64) {
        if self.regions[&first].shared {
            return self.redeem_shared(first);
        }
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
    pub(crate) fn reclaim(&mut self) {
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
    pub(crate) fn compare(&self) {
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

    pub(crate) fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let keys: Vec<_> = self.regions.keys().copied().collect();
            match (op, keys.is_empty()) {
                (Op::Map(place, offset, pages, skew, large, perms), _) => {
                    let pages = [1, 3, 1 << BITS, (1 << BITS) + 1, 3 << BITS][*pages as usize];
                    self.map(*place, *offset, pages, *skew, *large, *perms);
                }
                (Op::Share(place, offset, block, perms), _) => {
                    self.share(*place, *offset, *block, *perms);
                }
                (Op::Reclaim, _) => {
                    self.reclaim();
                    let mut linked = 0;
                    self.walker().tables(|_, _| linked += 1).unwrap();
                    if self.regions.values().all(|region| !region.pending) {
                        assert_eq!(self.table.table_pages(), linked, "a table is in no use");
                    }
                }
                (_, true) => {}
                (Op::Split(index, which), _) => self.split(*index.get(&keys), *which),
                (Op::Merge(index, which), _) => self.merge(*index.get(&keys), *which),
                (Op::Protect(index, perms), _) => self.protect(*index.get(&keys), *perms),
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
    pub(crate) fn end(self) {
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
