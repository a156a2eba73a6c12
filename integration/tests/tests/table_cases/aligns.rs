//! Every start and every length, after the cases `all_aligns` and `area` of Linux's iommufd tests.

use hv_core::{Iova, PageSize, Perms};
use hv_iommu::table::TableError;

use super::bench::{Bench, bytes, geometries};

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// After the case `all_aligns` of Linux's iommufd tests.
#[test]
fn every_start_and_length_in_a_window_maps_just_its_pages() {
    // The end of a last table, of a table above it, and the first addresses.
    for (window, pages) in [(2 * MIB - 6 * PAGE, 12), (GIB - 4 * PAGE, 8), (0, 8)] {
        for geometry in geometries() {
            let bench = Bench::new(geometry);
            for start in 0..pages {
                for length in 1..=pages - start {
                    let (at, to) = (window + start * PAGE, 7 * GIB + length * PAGE);
                    let range = bytes(at, length * PAGE);
                    bench
                        .map(range, to, Perms::ReadWrite, PageSize::Size1G)
                        .unwrap();
                    for page in 0..pages {
                        let inside = page >= start && page < start + length;
                        let expected = inside.then(|| to + (page - start) * PAGE + 9);
                        assert_eq!(bench.to(window + page * PAGE + 9), expected);
                    }
                    bench.free(range, to);
                }
            }
            assert_eq!(bench.leaves(), []);
            bench.reclaim();
            assert_eq!(bench.table.table_pages(), 1);
            assert_eq!(bench.end(), 0);
        }
    }
}

/// The same for large pages, whose tables come and go with the ranges.
#[test]
fn every_start_and_length_of_large_pages_maps_just_its_pages() {
    const LARGE: u64 = 2 * MIB;
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let window = GIB - 4 * LARGE;
        for start in 0..8 {
            for length in 1..=8 - start {
                for largest in [PageSize::Size4K, PageSize::Size2M] {
                    let (at, to) = (window + start * LARGE, 7 * GIB);
                    let range = bytes(at, length * LARGE);
                    bench.map(range, to, Perms::ReadWrite, largest).unwrap();
                    for page in 0..8 {
                        let inside = page >= start && page < start + length;
                        let expected = inside.then(|| to + (page - start) * LARGE + 9);
                        assert_eq!(bench.to(window + page * LARGE + 9), expected);
                    }
                    bench.free(range, to);
                }
            }
        }
        assert_eq!(bench.leaves(), []);
        assert_eq!(bench.end(), 0);
    }
}

/// After the case `area` of Linux's iommufd tests.
#[test]
fn nothing_maps_over_something_in_any_way() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let taken = bytes(16 * PAGE, 4 * PAGE);
        bench
            .map(taken, GIB, Perms::Read, PageSize::Size4K)
            .unwrap();
        let (tables, leaves) = (bench.tables(), bench.leaves());
        for (from, length, first) in [
            (16, 4, 16),
            (17, 2, 17),
            (15, 2, 16),
            (19, 2, 19),
            (15, 6, 16),
            (16, 1, 16),
            (19, 1, 19),
            (0, 1024, 16),
        ] {
            let range = bytes(from * PAGE, length * PAGE);
            let refused = bench.map(range, 2 * GIB, Perms::Read, PageSize::Size1G);
            let at = Iova::new(first * PAGE);
            assert_eq!(refused, Err(TableError::Occupied { at }), "{range}");
            assert!(!bench.table.is_vacant(&bench.guard(), range));
            assert_eq!(
                (bench.tables(), bench.leaves()),
                (tables.clone(), leaves.clone())
            );
        }
        for beside in [15, 20] {
            assert!(
                bench
                    .table
                    .is_vacant(&bench.guard(), bytes(beside * PAGE, PAGE))
            );
        }
        // Unmapping nothing changes nothing, and there is nothing to redeem.
        let nothing = bytes(64 * PAGE, 4 * PAGE);
        bench.unmap(nothing);
        let at = nothing.start();
        assert_eq!(
            bench.redeem(nothing, GIB),
            Err(TableError::NotMapped { at })
        );
        assert_eq!((bench.tables(), bench.leaves()), (tables, leaves));
        bench.free(taken, GIB);
        assert_eq!(bench.end(), 0);
    }
}

/// After the case `unmap_fully_contained_areas` of Linux's iommufd tests.
#[test]
fn a_range_that_cuts_a_page_leaves_it_and_one_of_whole_pages_takes_all() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let large = bytes(GIB, 2 * MIB);
        bench
            .map(large, 3 * GIB, Perms::Read, PageSize::Size2M)
            .unwrap();
        for (from, length) in [
            (GIB, PAGE),
            (GIB + PAGE, 2 * MIB - PAGE),
            (GIB + MIB, 2 * MIB),
        ] {
            let part = bytes(from, length);
            bench.unmap(part);
            assert_eq!(bench.leaves(), [(GIB, 3 * GIB, 2)], "{part}");
            assert!(bench.redeem(part, 3 * GIB).is_err());
            let protected = bench.table.protect(&bench.guard(), part, Perms::Write);
            assert!(protected.is_err(), "{part}");
        }
        // Mappings that lie side by side and lead to one run are one to their owner.
        let rest = bytes(GIB + 2 * MIB, 5 * PAGE);
        bench
            .map(rest, 3 * GIB + 2 * MIB, Perms::Read, PageSize::Size4K)
            .unwrap();
        bench.free(bytes(GIB, 2 * MIB + 5 * PAGE), 3 * GIB);
        assert_eq!(bench.leaves(), []);
        assert_eq!(bench.end(), 0);
    }
}
