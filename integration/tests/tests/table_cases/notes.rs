//! What hardware notes about writes, and that none of it is lost. After the case `dirty` of Linux generic_pt's
//! KUnit suite, and `get_dirty_bitmap` and `get_dirty_bitmap_no_clear` of its iommufd tests.

use hv_core::{Iova, PageSize, Perms, PhysAddr};

use super::bench::{Bench, SIZES, bytes};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// The bit that hardware sets in a leaf that it writes through.
const WRITTEN: u64 = 1 << 9;

fn written(bench: &Bench, clear: bool) -> Vec<u64> {
    let mut found = vec![];
    let (range, guard) = (bytes(0, 512 * GIB), bench.guard());
    let show = |at: Iova, _| found.push(at.as_u64());
    match clear {
        true => bench.table.dirty_and_clear(&guard, range, show),
        false => bench.table.dirty(&guard, range, show),
    }
    found
}

fn write(bench: &Bench, at: u64) {
    let ((table, index), _) = bench.leaf_word(at);
    bench.arena.note(table, index, WRITTEN);
}

#[test]
fn a_page_of_each_size_is_clean_then_written_then_clean() {
    for (size, _) in SIZES {
        let bench = Bench::dirty();
        let range = bytes(GIB, size.bytes());
        bench.map(range, GIB, Perms::ReadWrite, size).unwrap();
        assert_eq!(written(&bench, true), []);
        write(&bench, GIB + size.bytes() - 1);
        for clear in [false, false, true] {
            assert_eq!(written(&bench, clear), [GIB], "{size}");
        }
        assert_eq!(written(&bench, true), []);
        write(&bench, GIB);
        bench.unmap(range);
        assert_eq!(
            written(&bench, true),
            [],
            "what is unmapped tells its owner"
        );
        assert_eq!(bench.redeem(range, GIB), Ok(vec![GIB]));
        assert_eq!(bench.end(), 0);
    }
}

#[test]
fn the_pages_that_were_written_are_told_and_no_others() {
    let bench = Bench::dirty();
    let range = bytes(2 * MIB - 0x8000, 0x10000);
    bench
        .map(range, GIB, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    let expected: Vec<u64> = [0, 3, 7, 8, 15]
        .map(|page| 2 * MIB - 0x8000 + page * 0x1000)
        .into();
    for at in &expected {
        write(&bench, *at);
    }
    assert_eq!(written(&bench, false), expected);
    bench.unmap(range);
    assert_eq!(bench.redeem(range, GIB), Ok(expected));
    bench.end();
}

#[test]
fn a_split_tells_every_part_and_a_merge_the_whole() {
    let bench = Bench::dirty();
    let (at, size) = (Iova::new(GIB), PageSize::Size2M);
    let range = bytes(GIB, 2 * MIB);
    bench.map(range, GIB, Perms::ReadWrite, size).unwrap();
    write(&bench, GIB);
    bench.table.split(&bench.guard(), at, size).unwrap();
    assert_eq!(written(&bench, true).len(), 512);
    write(&bench, GIB + 0x7000);
    bench.table.merge(&bench.guard(), at, size).unwrap();
    assert_eq!(written(&bench, true), [GIB]);
    assert_eq!(bench.leaves(), [(GIB, GIB, 2)]);
    bench.reclaim();
    // What was noted in the table that was replaced, told already, is told of the whole once more.
    assert_eq!(written(&bench, true), [GIB]);
    bench.unmap(range);
    assert_eq!(bench.redeem(range, GIB), Ok(vec![]));
    bench.end();
}

/// Also when its owner is faster than the reclaimer.
#[test]
fn what_is_written_in_a_replaced_table_is_told_to_who_redeems_first() {
    let bench = Bench::dirty();
    let range = bytes(GIB, 2 * MIB);
    bench
        .map(range, GIB, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    let ((table, index), _) = bench.leaf_word(GIB + 0x9000);
    let merged = bench
        .table
        .merge(&bench.guard(), Iova::new(GIB), PageSize::Size2M);
    assert_eq!(merged, Ok(()));
    bench.arena.note(table, index, WRITTEN);
    bench.unmap(range);
    assert_eq!(bench.redeem(range, GIB), Ok(vec![GIB + 0x9000]));
    bench.reclaim();
    bench.end();
}

/// Hardware may go on in the table that a merge replaced, until the reclaimer's flush.
#[test]
fn what_is_written_in_a_replaced_table_is_told_once_that_was_flushed() {
    let bench = Bench::dirty();
    let (at, size) = (Iova::new(GIB), PageSize::Size2M);
    bench
        .map(bytes(GIB, 2 * MIB), GIB, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    let ((table, index), _) = bench.leaf_word(GIB + 0x9000);
    bench.table.merge(&bench.guard(), at, size).unwrap();
    assert_eq!(written(&bench, true), []);
    bench.arena.note(table, index, WRITTEN);
    bench.reclaim();
    assert_eq!(written(&bench, true), [GIB]);
    assert!(!bench.arena.is_taken(table), "and then it came back");
    bench.end();
}

#[test]
fn what_is_written_in_a_detached_table_is_told_with_the_receipt() {
    let bench = Bench::dirty();
    let range = bytes(GIB, 2 * MIB);
    bench
        .map(range, GIB, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    let ((table, index), _) = bench.leaf_word(GIB + 0x9000);
    write(&bench, GIB);
    bench.unmap(range);
    bench.arena.note(table, index, WRITTEN);
    assert_eq!(bench.redeem(range, GIB), Ok(vec![GIB, GIB + 0x9000]));
    bench.end();
}

#[test]
fn a_shared_page_tells_who_redeems_it() {
    for (size, _) in SIZES {
        let bench = Bench::dirty();
        let (at, to, guard) = (Iova::new(GIB), PhysAddr::new(GIB), bench.guard());
        for expected in [false, true] {
            bench
                .table
                .map_shared(&guard, at, to, Perms::ReadWrite, size)
                .unwrap();
            let ((table, index), _) = bench.leaf_word(GIB);
            if expected {
                // At the worst moment: between the look at the word and its exchange.
                bench.arena.note_late(table, index, WRITTEN);
            }
            assert_eq!(bench.table.unmap_shared(&guard, at, size), Ok(to));
            assert!(!expected || bench.arena.was_noted());
            assert_eq!(
                bench.table.redeem_shared(&guard, at, to, size),
                Ok(expected)
            );
        }
        drop(guard);
        bench.end();
    }
}

/// A change of permissions neither loses a note nor makes one.
#[test]
fn permissions_change_round_a_write() {
    let bench = Bench::dirty();
    let range = bytes(GIB, 0x4000);
    bench
        .map(range, GIB, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    write(&bench, GIB + 0x1000);
    let ((table, index), _) = bench.leaf_word(GIB + 0x2000);
    bench.arena.note_late(table, index, WRITTEN);
    bench
        .table
        .protect(&bench.guard(), range, Perms::Read)
        .unwrap();
    assert!(bench.arena.was_noted());
    assert_eq!(written(&bench, true), [GIB + 0x1000, GIB + 0x2000]);
    assert_eq!(written(&bench, true), []);
    bench.end();
}

/// The hardware's update comes between the engine's look at a word and what it makes of it.
#[test]
fn a_write_in_the_middle_of_an_unmap_is_told() {
    for (size, _) in SIZES {
        for pages in [1, 3] {
            let bench = Bench::dirty();
            let range = bytes(2 * GIB, pages * size.bytes());
            bench.map(range, 4 * GIB, Perms::ReadWrite, size).unwrap();
            let last = 2 * GIB + (pages - 1) * size.bytes();
            let ((table, index), _) = bench.leaf_word(last);
            bench.arena.note_late(table, index, WRITTEN);
            bench.unmap(range);
            assert!(bench.arena.was_noted());
            assert_eq!(bench.redeem(range, 4 * GIB), Ok(vec![last]), "{size}");
            bench.end();
        }
    }
}
