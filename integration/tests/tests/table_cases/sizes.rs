//! Which page sizes a mapping is made of.

use hv_core::{PageSize, Perms};

use super::bench::{Bench, SIZES, bytes, geometries};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The sizes that a search from the largest down finds: aligned on both sides, and no longer than the rest.
fn by_search(mut at: u64, mut length: u64, mut to: u64, largest: u32) -> Vec<(u64, u64, u32)> {
    let mut leaves = vec![];
    while length > 0 {
        let fits = |(size, level): &&(PageSize, u32)| {
            let size = size.bytes();
            *level <= largest && (at | to).is_multiple_of(size) && size <= length
        };
        let (size, level) = SIZES.iter().rev().find(fits).unwrap();
        leaves.push((at, to, *level));
        (at, to, length) = (at + size.bytes(), to + size.bytes(), length - size.bytes());
    }
    leaves
}

/// After the case `best_pgsize` of Linux generic_pt's KUnit suite.
#[test]
fn every_leaf_has_the_size_that_a_search_finds() {
    let starts = [
        0,
        0x1000,
        2 * MIB - 0x1000,
        2 * MIB,
        GIB - 2 * MIB,
        GIB - 0x1000,
        GIB,
    ];
    let lengths = [
        0x1000,
        0x3000,
        2 * MIB,
        2 * MIB + 0x1000,
        6 * MIB,
        GIB,
        GIB + 4 * MIB,
    ];
    let shifts = [0, 0x1000, 2 * MIB];
    let mut count = 0;
    for geometry in geometries() {
        for (largest, level) in SIZES {
            for start in starts {
                for length in lengths {
                    for shift in shifts {
                        // As many words as small leaves of 1 GiB say nothing more.
                        let small = level == 1 || !shift.is_multiple_of(2 * MIB);
                        if (small || !start.is_multiple_of(2 * MIB)) && length >= GIB {
                            continue;
                        }
                        let (at, to) = (GIB + start, 5 * GIB + start + shift);
                        let bench = Bench::new(geometry);
                        let range = bytes(at, length);
                        bench.map(range, to, Perms::Read, largest).unwrap();
                        let expected = by_search(at, length, to, level);
                        assert_eq!(bench.leaves(), expected, "{range} to {to:#x}");
                        assert_eq!(bench.end(), expected.len());
                        count += 1;
                    }
                }
            }
        }
    }
    assert!(count > 1000, "{count} combinations");
}

/// After the case `map_simple` of Linux generic_pt's KUnit suite.
#[test]
fn every_page_size_maps_once_and_leaves_nothing() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        for (size, level) in SIZES {
            let range = bytes(3 * GIB, size.bytes());
            bench.map(range, 7 * GIB, Perms::ReadWrite, size).unwrap();
            assert_eq!(bench.leaves(), [(3 * GIB, 7 * GIB, level)]);
            bench.free(range, 7 * GIB);
            assert_eq!(bench.leaves(), []);
            bench.reclaim();
            assert_eq!(bench.tables().len(), 1, "the root");
        }
        assert_eq!(bench.end(), 0);
    }
}

/// After the case `map_table_to_oa` of Linux generic_pt's KUnit suite.
#[test]
fn where_small_pages_were_a_large_one_fits() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        for (size, level) in SIZES.into_iter().filter(|(_, level)| *level > 1) {
            let whole = bytes(4 * GIB, size.bytes());
            let below = SIZES[level as usize - 2].0;
            // Taken away by one owner of all of it: the table goes as well.
            bench.map(whole, 8 * GIB, Perms::Read, below).unwrap();
            assert_eq!(bench.leaves().len(), 512);
            bench.free(whole, 8 * GIB);
            bench.map(whole, 8 * GIB, Perms::Read, size).unwrap();
            assert_eq!(bench.leaves(), [(4 * GIB, 8 * GIB, level)]);
            bench.free(whole, 8 * GIB);
            // Taken away bit by bit: the empty table is filled, until it was reclaimed.
            for part in [0, 511] {
                let part = bytes(4 * GIB + part * below.bytes(), below.bytes());
                bench.map(part, 8 * GIB, Perms::Read, below).unwrap();
                bench.free(part, 8 * GIB);
            }
            bench.map(whole, 8 * GIB, Perms::Read, size).unwrap();
            assert_eq!(bench.leaves().len(), 512);
            bench.free(whole, 8 * GIB);
            let part = bytes(4 * GIB, below.bytes());
            bench.map(part, 8 * GIB, Perms::Read, below).unwrap();
            bench.free(part, 8 * GIB);
            bench.reclaim();
            bench.map(whole, 8 * GIB, Perms::Read, size).unwrap();
            assert_eq!(bench.leaves(), [(4 * GIB, 8 * GIB, level)]);
            bench.free(whole, 8 * GIB);
        }
        assert_eq!(bench.end(), 0);
    }
}

/// After the case `pgsize_boundary` of Linux generic_pt's KUnit suite, a regression.
#[test]
fn a_run_that_is_aligned_on_neither_side_crosses_a_large_page_in_small_ones() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (at, length, to) = (0xfef8_0000, 0x2_0000, 0x20_8b95_d000);
        let range = bytes(at, length);
        bench
            .map(range, to, Perms::ReadWrite, PageSize::Size1G)
            .unwrap();
        for offset in (0..length).step_by(0x1000) {
            assert_eq!(bench.to(at + offset), Some(to + offset));
        }
        assert_eq!(bench.to(at - 1), None);
        assert_eq!(bench.to(at + length), None);
        bench.free(range, to);
        assert_eq!(bench.end(), 0);
    }
}

/// After the case `mixed` of Linux generic_pt's KUnit suite.
#[test]
fn an_identity_map_has_large_pages_with_smaller_ones_at_its_ends() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let (first, end) = (0x3fe400 << 12, 0x4c0600 << 12);
        let range = bytes(first, end - first);
        bench
            .map(range, first, Perms::ReadWrite, PageSize::Size1G)
            .unwrap();
        let leaves = bench.leaves();
        let levels: Vec<_> = leaves.iter().map(|leaf| leaf.2).collect();
        let expected = [vec![2; 14], vec![3; 3], vec![2; 3]].concat();
        assert_eq!((leaves.len(), levels), (20, expected));
        assert!(leaves.iter().all(|(at, to, _)| at == to));
        bench.free(range, first);
        assert_eq!(bench.end(), 0);
    }
}
