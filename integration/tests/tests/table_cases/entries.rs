//! What single entries say: where they lead, and what a device may do.

use hv_core::{Iova, PageSize};
use hv_iommu::table::{Changed, TableError};

use super::bench::{Bench, HOST_WIDTH, PERMS, SIZES, bytes, geometries};

const GIB: u64 = 1 << 30;

/// After the cases `max_va` and `table_radix` of Linux generic_pt's KUnit suite.
#[test]
fn every_bit_of_an_address_counts_and_no_other() {
    for geometry in geometries() {
        let bits = 12 + 9 * u32::from(geometry.root.number());
        let bench = Bench::new(geometry);
        let places: Vec<u64> = (12..bits)
            .map(|bit| 1 << bit)
            .chain([0, (1 << bits) - 0x1000])
            .collect();
        for (number, at) in places.iter().enumerate() {
            let to = (number as u64 + 1) << 20;
            bench
                .map(bytes(*at, 0x1000), to, PERMS[2], PageSize::Size4K)
                .unwrap();
        }
        for (number, at) in places.iter().enumerate() {
            let to = (number as u64 + 1) << 20;
            assert_eq!(bench.to(at + 0xfff), Some(to + 0xfff), "{at:#x}");
        }
        assert_eq!(bench.leaves().len(), places.len());
        // One bit more than there are leads nowhere, and to no other page.
        for at in [1 << bits, (1 << bits) + 0x3000, 1 << 63] {
            assert_eq!(bench.to(at), None);
            let refused = bench.map(bytes(at, 0x1000), 0, PERMS[0], PageSize::Size4K);
            let last = Iova::new(at + 0xfff);
            assert_eq!(refused, Err(TableError::TooWide { last, bits }));
        }
        assert_eq!(bench.end(), places.len());
    }
}

/// After the case `entry_oa` of Linux generic_pt's KUnit suite.
#[test]
fn an_address_comes_back_from_every_level_as_it_went_in() {
    for geometry in geometries() {
        for (size, level) in SIZES {
            let mask = !(size.bytes() - 1);
            let last = (1 << HOST_WIDTH) - size.bytes();
            for to in [
                0,
                0x2a5a_5a5a_5000 & mask,
                0x1555_5555_5000 & mask,
                size.bytes(),
                last,
            ] {
                let bench = Bench::new(geometry);
                let range = bytes(6 * GIB, size.bytes());
                bench.map(range, to, PERMS[2], size).unwrap();
                assert_eq!(bench.leaves(), [(6 * GIB, to, level)]);
                for offset in [0, 0xfff, size.bytes() / 2, size.bytes() - 1] {
                    assert_eq!(bench.to(6 * GIB + offset), Some(to + offset));
                }
                bench.free(range, to);
                assert_eq!(bench.end(), 0);
            }
        }
    }
}

/// After the case `attr_from_entry` of Linux generic_pt's KUnit suite.
#[test]
fn permissions_make_the_same_entry_however_they_came_about() {
    for geometry in geometries() {
        for (size, _) in SIZES {
            let range = bytes(6 * GIB, size.bytes());
            let mut words = vec![];
            for perms in PERMS {
                let bench = Bench::new(geometry);
                bench.map(range, 9 * GIB, perms, size).unwrap();
                let found = bench.walk(6 * GIB + 5).unwrap();
                assert_eq!(
                    (found.readable, found.writable),
                    (perms.readable(), perms.writable())
                );
                words.push(bench.leaf_word(6 * GIB).1);
                bench.end();
            }
            for (from, before) in PERMS.into_iter().enumerate() {
                for (to, after) in PERMS.into_iter().enumerate() {
                    let bench = Bench::new(geometry);
                    bench.map(range, 9 * GIB, before, size).unwrap();
                    let changed = bench.table.protect(&bench.guard(), range, after);
                    bench.arena.check_order(geometry.coherent);
                    let lost = (before.readable() && !after.readable())
                        || (before.writable() && !after.writable());
                    let any = from != to;
                    assert_eq!(changed, Ok(Changed { lost, any }));
                    assert_eq!(bench.leaf_word(6 * GIB).1, words[to]);
                    assert_eq!(bench.to(6 * GIB + 7), Some(9 * GIB + 7));
                    bench.free(range, 9 * GIB);
                    bench.end();
                }
            }
        }
    }
}

/// After the case `table_ptr` of Linux generic_pt's KUnit suite.
#[test]
fn a_second_mapping_goes_through_the_tables_of_the_first() {
    for geometry in geometries() {
        let bench = Bench::new(geometry);
        let map = |at| bench.map(bytes(at, 0x1000), 0, PERMS[0], PageSize::Size4K);
        map(0x5000).unwrap();
        let (taken, tables) = (bench.arena.taken(), bench.tables());
        for at in [0x6000, 0x7000] {
            map(at).unwrap();
        }
        assert_eq!((bench.arena.taken(), bench.tables()), (taken, tables));
        assert!(
            bench
                .table
                .is_leaf_boundary(&bench.guard(), Iova::new(0x6000))
        );
        assert_eq!(bench.end(), 3);
    }
}
