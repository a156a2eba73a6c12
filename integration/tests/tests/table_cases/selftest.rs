//! After the self-test of Linux's io-pgtable-arm.

use hv_core::{Iova, PageSize, Perms, PhysAddr};
use hv_iommu::table::{Geometry, TableError};

use super::bench::{Bench, SIZES, bytes, geometries};

const GIB: u64 = 1 << 30;
const PROBES: [u64; 3] = [42, GIB + 42, 2 * GIB + 42];
const ALL: Perms = Perms::ReadWrite;

#[test]
fn an_empty_table_translates_nothing() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        for at in PROBES {
            assert_eq!(bench.to(at), None);
        }
        assert_eq!(bench.leaves(), []);
        assert_eq!(bench.end(), 0);
    }
}

/// Each size at steps of 1 GiB: maps, translates, refuses an overlap, unmaps, maps again.
#[test]
fn distinct_mappings_of_each_size_come_and_go() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        for round in 0..2 {
            for (index, (size, _)) in SIZES.into_iter().enumerate() {
                let at = index as u64 * GIB;
                bench.map(bytes(at, size.bytes()), at, ALL, size).unwrap();
                // Something else over it, of any size.
                for (other, _) in SIZES {
                    let refused = bench.map(bytes(at, other.bytes()), at + GIB, ALL, other);
                    let occupied = TableError::Occupied { at: Iova::new(at) };
                    assert_eq!(refused, Err(occupied), "{other} over {size}");
                }
                assert_eq!(bench.to(at + 42), Some(at + 42));
            }
            assert_eq!(bench.leaves().len(), 3);
            for (index, (size, _)) in SIZES.into_iter().enumerate() {
                let at = index as u64 * GIB;
                bench.free(bytes(at, size.bytes()), at);
                assert_eq!(bench.to(at + 42), None);
                bench.map(bytes(at, size.bytes()), at, ALL, size).unwrap();
                assert_eq!(bench.to(at + 42), Some(at + 42), "in round {round}");
                bench.free(bytes(at, size.bytes()), at);
            }
            assert_eq!(bench.leaves(), []);
        }
        assert_eq!(bench.end(), 0);
    }
}

/// After an explicit split, one small page of a large one goes elsewhere.
#[test]
fn one_page_of_a_large_one_is_unmapped_and_mapped_elsewhere_after_a_split() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        for (size, level) in SIZES.into_iter().filter(|(_, level)| *level > 1) {
            let at = 4 * GIB + u64::from(level) * GIB;
            let whole = bytes(at, size.bytes());
            bench.map(whole, 2 * GIB, ALL, size).unwrap();
            for (part, _) in SIZES[1..level as usize].iter().rev() {
                let split = bench.table.split(&bench.guard(), Iova::new(at), *part);
                bench.arena.check_order(geometry.coherent);
                assert_eq!(split, Ok(()), "{part} of {size}");
            }
            let middle = at + 0x1000;
            assert_eq!(bench.walk(middle).unwrap().level, 1);
            bench.free(bytes(middle, 0x1000), 2 * GIB + 0x1000);
            assert_eq!(bench.to(middle), None);
            bench
                .map(bytes(middle, 0x1000), 42 * GIB, ALL, PageSize::Size4K)
                .unwrap();
            assert_eq!(bench.to(middle + 42), Some(42 * GIB + 42));
            for beside in [at + 42, at + 0x2042, at + size.bytes() - 42] {
                assert_eq!(bench.to(beside), Some(beside - at + 2 * GIB));
            }
            // What no longer is one run does not go back into one page.
            let merged = bench
                .table
                .merge(&bench.guard(), Iova::new(at), PageSize::Size2M);
            let broken = TableError::NotContiguous {
                at: Iova::new(middle),
                expected: PhysAddr::new(2 * GIB + 0x1000),
                found: PhysAddr::new(42 * GIB),
            };
            assert_eq!(merged, Err(broken));
            bench.free(bytes(middle, 0x1000), 42 * GIB);
            bench
                .map(
                    bytes(middle, 0x1000),
                    2 * GIB + 0x1000,
                    ALL,
                    PageSize::Size4K,
                )
                .unwrap();
            let sizes = SIZES[1..level as usize].iter();
            for (part, _) in sizes {
                let merged = bench.table.merge(&bench.guard(), Iova::new(at), *part);
                bench.arena.check_order(geometry.coherent);
                assert_eq!(merged, Ok(()), "{part} of {size}");
            }
            assert_eq!(bench.leaves(), [(at, 2 * GIB, level)]);
            bench.free(whole, 2 * GIB);
        }
        bench.reclaim();
        assert_eq!(bench.table.table_pages(), 1);
        assert_eq!(bench.end(), 0);
    }
}

#[test]
fn walkers_that_cannot_follow_are_asked_for_nothing_of_the_kind() {
    for geometry in geometries() {
        let bench = Bench::new(Geometry {
            live_resize: false,
            ..geometry
        });
        let at = Iova::new(GIB);
        bench
            .map(bytes(GIB, GIB), GIB, ALL, PageSize::Size1G)
            .unwrap();
        let breaks = Err(TableError::Breaks { at });
        assert_eq!(
            bench.table.split(&bench.guard(), at, PageSize::Size1G),
            breaks
        );
        assert_eq!(
            bench.table.merge(&bench.guard(), at, PageSize::Size1G),
            breaks
        );
        assert_eq!(bench.leaves(), [(GIB, GIB, 3)]);
        bench.free(bytes(GIB, GIB), GIB);
        assert_eq!(bench.end(), 0);
    }
}
