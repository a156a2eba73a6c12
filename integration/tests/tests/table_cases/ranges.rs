//! A thousand random ranges against a map of intervals, after the case `random_map` of Linux generic_pt's
//! KUnit suite; and its case `exit`.

use std::collections::BTreeMap;

use hv_core::{PageSize, Perms};
use hv_iommu::table::{ReclaimStep, TableError};

use super::bench::{Bench, bytes, geometries};

const RANGES: u64 = 1000;

fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

/// First page of each mapping, how many, and the first page that it leads to.
type Shadow = BTreeMap<u64, (u64, u64)>;

/// The first mapping that has one of these pages.
fn collision(shadow: &Shadow, first: u64, pages: u64) -> Option<(u64, u64, u64)> {
    let before = shadow.range(..first).next_back();
    let inside = shadow.range(first..first + pages).next();
    let meets = |(at, (count, _)): &(&u64, &(u64, u64))| **at + *count > first;
    let found = before.into_iter().chain(inside).find(meets);
    found.map(|(at, (count, to))| (*at, *count, *to))
}

#[test]
fn a_thousand_random_ranges_are_what_a_map_of_intervals_says() {
    for (number, geometry) in geometries().enumerate() {
        let mut seed = 0x9e37_79b9_7f4a_7c15 + number as u64;
        let bench = Bench::new(geometry);
        let (mut shadow, mut refused) = (Shadow::new(), 0);
        for round in 0..RANGES {
            // Mostly short, some over many tables, in 8 GiB; half of them with room for large pages.
            let pages = match next(&mut seed) % 8 {
                0..4 => 1 + next(&mut seed) % 16,
                4..7 => 1 + next(&mut seed) % 1500,
                _ => 512 * (1 + next(&mut seed) % 700),
            };
            let large = pages >= 512 * 16 || next(&mut seed).is_multiple_of(2);
            let mask = if large { !511 } else { !0 };
            let first = (next(&mut seed) % (1 << 21)) & mask;
            let to = (round << 19) + (first & 0x3ffff);
            let pages = if large {
                pages.next_multiple_of(512)
            } else {
                pages
            };
            let range = bytes(first << 12, pages << 12);
            loop {
                let mapped = bench.map(range, to << 12, Perms::ReadWrite, PageSize::Size1G);
                let Some((at, count, old)) = collision(&shadow, first, pages) else {
                    assert_eq!(mapped, Ok(()), "{range} in round {round}");
                    break;
                };
                let at_most = hv_core::Iova::new(at.max(first) << 12);
                assert_eq!(mapped, Err(TableError::Occupied { at: at_most }));
                refused += 1;
                bench.free(bytes(at << 12, count << 12), old << 12);
                shadow.remove(&at);
            }
            shadow.insert(first, (pages, to));
            for page in [0, pages / 2, pages - 1, next(&mut seed) % pages] {
                let at = (first + page) << 12 | 0x123;
                assert_eq!(bench.to(at), Some((to + page) << 12 | 0x123));
            }
            let probe = next(&mut seed) % (1 << 21);
            let expected = collision(&shadow, probe, 1).map(|(at, _, to)| (to + probe - at) << 12);
            assert_eq!(bench.to(probe << 12), expected);
            if round.is_multiple_of(100) {
                bench.reclaim();
            }
        }
        assert!(refused > 50, "{refused} collisions");
        // Every page once more, then nothing is left.
        for (first, (pages, to)) in &shadow {
            let step = (pages / 600).max(1) as usize;
            for page in (0..*pages).step_by(step) {
                assert_eq!(bench.to((first + page) << 12), Some((to + page) << 12));
            }
            bench.free(bytes(first << 12, pages << 12), to << 12);
        }
        assert_eq!(bench.leaves(), []);
        bench.reclaim();
        assert_eq!(bench.table.table_pages(), 1);
        assert_eq!(bench.end(), 0);
    }
}

/// After the case `exit` of Linux generic_pt's KUnit suite: whatever state it is left in.
#[test]
fn no_table_page_outlives_its_table() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let gib = 1 << 30;
        let map = |at, length, size| bench.map(bytes(at, length), at, Perms::Read, size).unwrap();
        map(0, 0x5000, PageSize::Size4K);
        map(gib, gib + 0x20_3000, PageSize::Size2M);
        map(5 * gib, 2 * gib, PageSize::Size1G);
        // Pending leaves, pending tables, a replaced table, a marked link, a tombstone.
        bench.unmap(bytes(0, 0x5000));
        bench.unmap(bytes(gib, gib + 0x20_3000));
        let at = hv_core::Iova::new(5 * gib);
        bench
            .table
            .split(&bench.guard(), at, PageSize::Size1G)
            .unwrap();
        bench
            .table
            .merge(&bench.guard(), at, PageSize::Size1G)
            .unwrap();
        for step in 0..3 {
            map((8 + step) * gib, 0x1000, PageSize::Size4K);
            bench.free(bytes((8 + step) * gib, 0x1000), (8 + step) * gib);
            for _ in 0..=step {
                let _ = bench.table.reclaim(&bench.quiescence, &*bench.arena);
            }
        }
        assert_eq!(bench.end(), 5 + 512 + 1 + 3 + 2);
    }
}

/// A flush that failed for one caller must not look to the next like a table with nothing to give back.
#[test]
fn a_cancelled_attempt_leaves_its_tables_to_the_next_caller() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        for page in 0..10 {
            let range = bytes(page << 21, 0x1000);
            bench.map(range, 0, Perms::Read, PageSize::Size4K).unwrap();
            bench.free(range, 0);
        }
        let step = || bench.table.reclaim(&bench.quiescence, &*bench.arena);
        let attempt = (0..10).find_map(|_| match step() {
            ReclaimStep::Flush { attempt, .. } => Some(attempt),
            _ => None,
        });
        let cancelled =
            bench
                .table
                .reclaim_cancel(&bench.quiescence, &*bench.arena, attempt.unwrap());
        assert!(cancelled);
        bench.steps();
        assert_eq!(bench.table.table_pages(), 1, "done, but not all came back");
        assert_eq!(bench.end(), 0);
    }
}
