//! Tables of large granules, case by case.

#![expect(
    unsafe_code,
    reason = "redeeming without a flush is unsafe, and so is reaching words as hardware does"
)]

use std::sync::atomic::Ordering;

use hv_core::platform::PhysMemory;
use hv_core::{Iova, IovaRange, PageCount, PageSize, Perms, PhysAddr};
use hv_iommu::quiesce::Quiescence;
use hv_iommu::table::{Geometry, Table, TableError};
use hv_smmu::{MemoryType, Vmsa, Vmsa16K, Vmsa64K};
use hv_tests::slab::Slab;
use hv_tests::vmsa_walker::{Stage, Walker};

use crate::granules::{Bench, Shape, geometry};

#[test]
fn a_block_is_one_leaf_in_each_granule() {
    fn check<const SHIFT: u32, const BITS: u32>(name: &str) {
        let slab = Slab::new(64 << (BITS - 9));
        let mut bench = Bench::<SHIFT, BITS>::new(&slab, Shape::plain((2, 1)));
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
        let bench = Bench::<SHIFT, BITS>::new(&slab, Shape::plain((2, 0)));
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
        assert_eq!(
            bench.table.check_boundary(Iova::new(0x1000)),
            Err(cuts(0x1000))
        );
        assert_eq!(bench.table.check_boundary(Iova::new(bytes)), Ok(()));
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
        unsafe { Table::new(format, geometry(Shape::plain(root)), slab) }.map(drop)
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
    let table = unsafe { Table::new(format, geometry(Shape::plain((2, 0))), &slab) }.unwrap();
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

/// Shared pages, splits and merges are of a granule's own sizes; of others, whatever stands there, by name.
#[test]
fn sizes_of_other_granules_are_refused_by_name() {
    fn check<const SHIFT: u32, const BITS: u32>(own: &[PageSize]) {
        let slab = Slab::new(64 << (BITS - 9));
        let mut bench = Bench::<SHIFT, BITS>::new(&slab, Shape::plain((2, 0)));
        bench.map(3, 0, 1 << BITS, 0, true, Perms::ReadWrite);
        assert_eq!([1, 2].map(Bench::<SHIFT, BITS>::size), own[..2]);
        let (at, to) = (Iova::new(1 << (SHIFT + BITS)), PhysAddr::new(0));
        let (table, guard) = (&bench.table, bench.quiescence.pin(&slab));
        for size in PageSize::ALL {
            let expected = TableError::NoSuchPage {
                at,
                size,
                smallest: 1 << SHIFT,
            };
            if !own.contains(&size) {
                let shared = table.map_shared(&guard, at, to, Perms::Read, size);
                assert_eq!(shared, Err(expected));
                assert_eq!(table.unmap_shared(&guard, at, size), Err(expected));
                assert_eq!(table.redeem_shared(&guard, at, to, size), Err(expected));
                assert_eq!(table.split(&guard, at, size), Err(expected));
                assert_eq!(table.merge(&guard, at, size), Err(expected));
            }
        }
        // The smallest is not split, and nothing was changed.
        assert_eq!(
            table.split(&guard, at, own[0]),
            Err(TableError::NotMapped { at })
        );
        drop(guard);
        assert_eq!(bench.level_of(1 << BITS), Some(2));
        bench.compare();
        bench.end();
    }
    check::<12, 9>(&[PageSize::Size4K, PageSize::Size2M, PageSize::Size1G]);
    check::<14, 11>(&[PageSize::Size16K, PageSize::Size32M]);
    check::<16, 13>(&[PageSize::Size64K, PageSize::Size512M, PageSize::Size4T]);
}

/// A root may be below the level of a shared page that fits into its addresses.
#[test]
fn a_shared_page_that_is_larger_than_the_roots_is_refused() {
    fn check<const SHIFT: u32, const BITS: u32>(level: u8) {
        let slab = Slab::new(64 << (BITS - 9));
        let bench = Bench::<SHIFT, BITS>::new(&slab, Shape::plain((level - 1, 4)));
        let (at, to, size) = (
            Iova::new(0),
            PhysAddr::new(0),
            Bench::<SHIFT, BITS>::size(level),
        );
        let guard = bench.quiescence.pin(&slab);
        let shared = bench
            .table
            .map_shared(&guard, at, to, Perms::ReadWrite, size);
        assert!(
            matches!(shared, Err(TableError::NoSuchPage { .. })),
            "{shared:?}"
        );
        assert!(bench.table.translate(&guard, at).is_none());
        drop(guard);
        bench.end();
    }
    check::<12, 9>(3);
    check::<14, 11>(2);
    check::<16, 13>(2);
}

/// A domain that notes writes has leaves in which that is done; with others nothing would ever be told.
#[test]
fn writes_are_noted_in_leaves_that_were_made_for_it() {
    let slab = Slab::new(4);
    let geometry = Geometry {
        dirty: true,
        ..geometry(Shape::plain((2, 0)))
    };
    type Small = Vmsa<12, 9>;
    let new = |format: Small| {
        // SAFETY: no guard is made for it.
        unsafe { Table::new(format, geometry, &slab) }
    };
    for format in [Small::second(MemoryType::AsSent, true), Small::first(true)] {
        assert_eq!(new(format).map(drop), Err(TableError::NotesNothing));
        assert_eq!(slab.taken(), 0);
    }
    let noting = new(Small::second_that_notes(MemoryType::AsSent)).unwrap();
    assert!(noting.geometry().dirty);
    noting.discard();
}

/// What hardware noted of a block holds for each of its pages, and what it noted of one of these for the block.
#[test]
fn a_split_block_and_a_merged_table_tell_what_was_written() {
    fn check<const SHIFT: u32, const BITS: u32>() {
        let slab = Slab::new(64 << (BITS - 9));
        let format = Vmsa::<SHIFT, BITS>::second_that_notes(MemoryType::AsSent);
        let geometry = Geometry {
            dirty: true,
            ..geometry(Shape::plain((2, 0)))
        };
        let quiescence = Quiescence::new(1).unwrap();
        // SAFETY: all guards are of the one quiescence, on its one CPU.
        let table = unsafe { Table::new(format, geometry, &slab) }.unwrap();
        let (bytes, size) = (1_u64 << (SHIFT + BITS), Bench::<SHIFT, BITS>::size(2));
        let at = Iova::new(bytes);
        let range = IovaRange::new(at, PageCount::of(size)).unwrap();
        let guard = quiescence.pin(&slab);
        let to = PhysAddr::new(4 * bytes);
        table
            .map(&guard, range, to, Perms::ReadWrite, size)
            .unwrap();
        let write = |at: u64| {
            let root = table.root().unwrap();
            let fields = Vmsa::<SHIFT, BITS>::root_fields(root, 48).unwrap();
            let walker = Walker {
                stage: Stage::Second,
                read: |at, index| slab.read(at, index, true),
                root: fields.base.as_u64(),
                granule: fields.granule,
                start: fields.start_level,
                size: fields.t0sz,
                output_bits: 48,
                attributes: 0x33c,
                notes_writes: true,
            };
            let (frame, index) = *walker.path(at).unwrap().last().unwrap();
            // SAFETY: the frame is one of the table, which is not freed meanwhile.
            let cells = unsafe { slab.cells(PhysAddr::new(frame)) };
            // ORDERING: AcqRel, as hardware's exchange.
            cells[index].fetch_or(1 << 7, Ordering::AcqRel);
        };
        let written = || {
            let mut found = Vec::new();
            table.dirty_and_clear(&guard, range, |at, level| {
                found.push((at.as_u64(), level.number()));
            });
            found
        };
        write(bytes + 0x1234);
        table.split(&guard, at, size).unwrap();
        let pages = 1_u64 << BITS;
        let all: Vec<_> = (0..pages)
            .map(|page| (bytes + (page << SHIFT), 1))
            .collect();
        assert_eq!(written(), all);
        write(bytes + (7 << SHIFT));
        assert_eq!(written(), [(bytes + (7 << SHIFT), 1)]);
        write(bytes + ((pages - 1) << SHIFT));
        table.merge(&guard, at, size).unwrap();
        assert_eq!(written(), [(bytes, 2)]);
        drop(guard);
        table.discard();
        assert_eq!(slab.taken(), 0);
    }
    check::<14, 11>();
    check::<16, 13>();
}

/// Blocks of 4 TiB come with addresses of 52 bits, and what they become of and are split into too.
#[test]
fn a_block_of_the_third_level_is_one_leaf() {
    type Large = Bench<'static, 16, 13>;
    let slab = Slab::high(64 << 4);
    let slab: &'static Slab = Box::leak(Box::new(slab));
    let shape = Shape {
        long: true,
        ..Shape::plain((3, 0))
    };
    let bench = Large::new(slab, shape);
    assert_eq!(Large::size(3), PageSize::Size4T);
    let (size, at) = (PageSize::Size4T, Iova::new(3 << 42));
    let range = IovaRange::new(at, PageCount::of(size)).unwrap();
    let (table, guard) = (&bench.table, bench.quiescence.pin(slab));
    let to = PhysAddr::new(0x000d_2800_0000_0000);
    let found = |at: u64| {
        let found = bench.walker().walk(at).unwrap();
        found.map(|found| (found.to, found.level))
    };
    for largest in [size, PageSize::Size512M] {
        table
            .map(&guard, range, to, Perms::ReadWrite, largest)
            .unwrap();
        let level = if largest == size { 3 } else { 2 };
        for offset in [0, 0x1234_5678_9abc, (1 << 42) - 1] {
            let offset = offset & ((1 << 42) - 1);
            let expected = (to.as_u64() + offset, level);
            assert_eq!(found((3 << 42) + offset), Some(expected));
        }
        if largest == size {
            table.split(&guard, at, size).unwrap();
            assert_eq!(found((3 << 42) + 5), Some((to.as_u64() + 5, 2)));
            table.split(&guard, at, PageSize::Size512M).unwrap();
            assert_eq!(found((3 << 42) + 5), Some((to.as_u64() + 5, 1)));
            table.merge(&guard, at, PageSize::Size512M).unwrap();
        }
        table.merge(&guard, at, size).unwrap();
        assert_eq!(found((3 << 42) + 5), Some((to.as_u64() + 5, 3)));
        let _ = table.unmap(&guard, range);
        assert_eq!(found(3 << 42), None);
        // SAFETY: nobody else walks, and the one guard keeps no table that was detached.
        unsafe { table.redeem(&guard, range, to, |_, _| {}) }.unwrap();
    }
    table.map_shared(&guard, at, to, Perms::Read, size).unwrap();
    assert_eq!(found(3 << 42), Some((to.as_u64(), 3)));
    assert_eq!(table.unmap_shared(&guard, at, size), Ok(to));
    assert_eq!(table.redeem_shared(&guard, at, to, size), Ok(false));
    drop(guard);
    bench.end();
}

/// Frames whose addresses the words of a table cannot tell are no tables: they go back.
#[test]
fn tables_are_where_words_can_tell() {
    fn check<const SHIFT: u32, const BITS: u32>() {
        let slab = Slab::high(256);
        let format = Vmsa::<SHIFT, BITS>::second(MemoryType::AsSent, true);
        for tables in [0, 1] {
            let shape = Shape::plain((2, tables));
            // SAFETY: no guard is made for it.
            let new = unsafe { Table::new(format, geometry(shape), &slab) };
            let missing = 1 << tables;
            assert_eq!(new.map(drop), Err(TableError::OutOfFrames { missing }));
            assert_eq!(slab.taken(), 0);
        }
    }
    check::<12, 9>();
    check::<14, 11>();
    // Those that are handed in, too; where they can be told, they are.
    let slab = Slab::high(256);
    let format = Vmsa64K::second(MemoryType::AsSent, true);
    // SAFETY: no guard is made for it.
    let table = unsafe { Table::new(format, geometry(Shape::plain((2, 0))), &slab) }.unwrap();
    assert_eq!(slab.taken(), 16);
    table.discard();
    assert_eq!(slab.taken(), 0);
}
