//! Maps that fail half way, for what is in the way or for want of frames: nothing is left of them.

use hv_core::{Iova, PageSize, Perms, PhysAddr};
use hv_iommu::table::TableError;

use super::bench::{Bench, SIZES, bytes, geometries};

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// After the case `basic` of Linux's iommufd `mock_domain` tests.
#[test]
fn a_map_that_meets_something_half_way_leaves_nothing() {
    for geometry in geometries() {
        for obstacle in [0, 1, 7, 511, 512, 513, 1023, 1024, 1500] {
            let bench = Bench::new(geometry);
            let first = 2 * MIB - 100 * PAGE;
            let at = first + obstacle * PAGE;
            bench
                .map(bytes(at, PAGE), GIB, Perms::Read, PageSize::Size4K)
                .unwrap();
            let before = (bench.tables(), bench.leaves(), bench.arena.taken());
            let range = bytes(first, 1501 * PAGE);
            let refused = bench.map(range, 4 * GIB, Perms::ReadWrite, PageSize::Size2M);
            assert_eq!(refused, Err(TableError::Occupied { at: Iova::new(at) }));
            let after = (bench.tables(), bench.leaves(), bench.arena.taken());
            assert_eq!(before, after, "something {obstacle} pages in");
            // With it gone, the same map succeeds.
            bench.free(bytes(at, PAGE), GIB);
            bench
                .map(range, 4 * GIB, Perms::ReadWrite, PageSize::Size2M)
                .unwrap();
            bench.free(range, 4 * GIB);
            assert_eq!(bench.end(), 0);
        }
    }
}

/// After the idea of Linux's `iommufd_fail_nth`: each allocation of each operation fails once.
#[test]
fn a_shared_page_without_a_table_for_it_says_what_is_missing_and_takes_nothing() {
    for geometry in geometries() {
        for (size, level) in SIZES {
            let needed = u64::from(geometry.root.number()) - u64::from(level);
            for granted in 0..needed {
                let bench = Bench::new(geometry);
                let (at, to) = (Iova::new(5 * GIB), PhysAddr::new(9 * GIB));
                bench.arena.set_budget(granted as usize);
                let map = || {
                    let mapped = bench
                        .table
                        .map_shared(&bench.guard(), at, to, Perms::Read, size);
                    bench.arena.check_order(geometry.coherent);
                    mapped.map(|mapped| mapped.tables)
                };
                let missing = needed - granted;
                assert_eq!(map(), Err(TableError::OutOfFrames { missing }));
                assert_eq!((bench.arena.taken(), bench.tables().len()), (1, 1));
                bench.arena.set_budget(needed as usize);
                assert_eq!(map(), Ok(needed));
                assert_eq!(bench.arena.budget(), 0);
                assert_eq!(bench.to(5 * GIB + 7), Some(9 * GIB + 7));
                assert_eq!(bench.end(), 1);
            }
        }
    }
}

#[test]
fn a_split_without_a_frame_changes_nothing_and_a_merge_needs_none() {
    for geometry in geometries() {
        for (size, level) in SIZES.into_iter().filter(|(_, level)| *level > 1) {
            let bench = Bench::new(geometry);
            let at = Iova::new(5 * GIB);
            bench
                .map(bytes(5 * GIB, size.bytes()), 9 * GIB, Perms::Read, size)
                .unwrap();
            let before = (bench.tables(), bench.leaves(), bench.arena.taken());
            bench.arena.set_budget(0);
            let split = bench.table.split(&bench.guard(), at, size);
            assert_eq!(split, Err(TableError::OutOfFrames { missing: 1 }));
            let after = (bench.tables(), bench.leaves(), bench.arena.taken());
            assert_eq!(before, after);
            bench.arena.set_budget(1);
            assert_eq!(bench.table.split(&bench.guard(), at, size), Ok(()));
            bench.arena.check_order(geometry.coherent);
            assert_eq!(bench.leaves().len(), 512);
            assert_eq!(bench.arena.budget(), 0);
            assert_eq!(bench.table.merge(&bench.guard(), at, size), Ok(()));
            bench.arena.check_order(geometry.coherent);
            assert_eq!(bench.leaves(), [(5 * GIB, 9 * GIB, level)]);
            bench.free(bytes(5 * GIB, size.bytes()), 9 * GIB);
            bench.reclaim();
            assert_eq!(bench.end(), 0);
        }
    }
}

/// Below one empty word, and below two of a table that is there already.
#[test]
fn frames_that_are_handed_in_are_enough_or_what_is_missing_is_told() {
    for geometry in geometries() {
        let levels = u64::from(geometry.root.number());
        for (middle, pages, needed) in [(2 * MIB, 514, levels + 1), (GIB, 2, 4)] {
            let range = bytes(middle - PAGE, pages * PAGE);
            for handed_in in 0..=needed + 2 {
                let bench = Bench::new(geometry);
                let far = bytes(10 * GIB, PAGE);
                if middle == GIB {
                    bench.map(far, GIB, Perms::Read, PageSize::Size4K).unwrap();
                }
                let before = (bench.arena.taken(), bench.leaves());
                let mut spares = bench.table.spares();
                spares.reserve(handed_in).unwrap();
                bench.arena.set_budget(0);
                let outcome = {
                    let (guard, to) = (bench.guard(), PhysAddr::new(GIB));
                    let (perms, largest) = (Perms::Read, PageSize::Size4K);
                    bench
                        .table
                        .map_from(&guard, range, to, perms, largest, &mut spares)
                };
                let missing = needed.saturating_sub(handed_in);
                if missing > 0 {
                    assert_eq!(outcome, Err(TableError::OutOfFrames { missing }));
                    assert_eq!(spares.count(), handed_in, "they are still there");
                    drop(spares);
                    assert_eq!((bench.arena.taken(), bench.leaves()), before);
                } else {
                    assert_eq!(outcome.map(|mapped| mapped.tables), Ok(needed));
                    assert_eq!(spares.count(), handed_in - needed);
                    drop(spares);
                    bench.arena.check_order(geometry.coherent);
                    assert_eq!(bench.leaves().len(), before.1.len() + pages as usize);
                }
                bench.end();
            }
        }
    }
}
