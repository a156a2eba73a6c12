//! Models of the short way down, which is for tables of three levels and more: each word that it goes through is compared
//! at once, and what is not the link that it looks for takes the long way. Others change those words meanwhile: an attempt,
//! an owner that changes page sizes, another of a shared range, one that takes a table out with all that it maps.

use std::sync::Arc;

use hv_core::{PageSize, Perms};
use hv_iommu::table::TableError;

use crate::explore::{models, saw};
use crate::hardware::Reads;
use crate::world::{Setup, Stage, World, frame, iova, pages};

/// A whole attempt and one step more.
const ATTEMPT: usize = 6;
/// That pages 0 and 1 are unmapped, as one actor tells the other.
const UNMAPPED: u64 = 1 << 8;

/// An empty table of three levels.
fn begin(frames: [usize; 3]) -> Arc<World> {
    let setup = Setup {
        levels: 3,
        ..Setup::two(frames)
    };
    setup.build()
}

/// A mapper comes down to a table that an attempt is about.
fn map_against_attempt(stage: Stage) {
    let world = begin([3, 2, 0]);
    world.leave_empty_table(0);
    world.bring_to(stage);
    let mapper = world.on_cpu(1, |world| world.map(0, frame(0)).unwrap());
    let freed = world.reclaim_alone(ATTEMPT);
    match mapper.join().unwrap() {
        0 if freed == 0 => saw("the mapper keeps the table"),
        1.. => saw("the mapper links its own table"),
        _ => {}
    }
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    world.end(&[frame(0)]);
}

/// A lookup comes down while the page size of what it is about changes above the last table.
fn resize_under_lookup(size: PageSize) {
    let world = begin([4, 0, 0]);
    world.map_run(0, 2, frame(0), size).unwrap();
    let other = world.on_cpu(1, |world| {
        for page in [0, 1] {
            assert_eq!(world.translate(page), Some(frame(page)));
        }
    });
    let guard = world.pin();
    match size {
        PageSize::Size4K => world.table.merge(&guard, iova(0), PageSize::Size2M),
        _ => world.table.split(&guard, iova(0), size),
    }
    .unwrap();
    drop(guard);
    if size == PageSize::Size4K {
        world.reclaim_alone(ATTEMPT);
    }
    other.join().unwrap();
    for page in [0, 1] {
        assert_eq!(world.translate(page), Some(frame(page)));
    }
    world.end(&[frame(0), frame(1)]);
}

/// Maps a page of this size in a shared range and takes it out again; whether nothing was in the way. `frame(number)` has
/// it.
fn come_and_go(world: &World, number: u64, size: PageSize) -> bool {
    let (guard, at, to) = (world.pin(), iova(0), frame(number));
    let mapped = world
        .table
        .map_shared(&guard, at, to, Perms::ReadWrite, size);
    match mapped {
        Ok(_) => {
            let unmapped = world.table.unmap_shared(&guard, at, size);
            assert_eq!(unmapped, Ok(to), "a leaf stays, or is another's");
            let redeemed = world.table.redeem_shared(&guard, at, to, size);
            assert_eq!(redeemed, Ok(false));
            true
        }
        Err(TableError::Occupied { .. } | TableError::TableInTheWay { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Two CPUs map pages of a shared range at one place and take them out again: one of them a large page, whose word the
/// other one goes through.
fn shared_sizes() {
    let world = begin([3, 1, 0]);
    // The table above is there.
    let large = PageSize::Size2M;
    assert!(come_and_go(&world, 0, large));
    let other = world.on_cpu(1, move |world| come_and_go(world, 0, large));
    let small = come_and_go(&world, 2, PageSize::Size4K);
    match (small, other.join().unwrap()) {
        (true, true) => saw("one comes after the other"),
        (true, false) => saw("the small one is faster"),
        (false, true) => saw("the large one is faster"),
        (false, false) => panic!("neither was first"),
    }
    assert_eq!(world.translate(0), None);
    world.end(&[]);
}

/// A page of a shared range is mapped by one CPU and taken out by another, while a device walks to it.
fn shared_map_against_unmap() {
    let world = begin([3, 0, 0]);
    world.leave_empty_table(0);
    let device = world.on_cpu(2, |world| {
        let mut walker = world.walker(Reads::Snooping);
        if let Some(to) = walker.walk(0) {
            assert_eq!(to, frame(0));
            world.content(to).reach();
        }
    });
    let other = world.on_cpu(1, |world| {
        let (guard, size) = (world.pin(), PageSize::Size4K);
        match world.table.unmap_shared(&guard, iova(0), size) {
            Ok(to) => {
                assert_eq!(to, frame(0));
                saw("the page is taken out");
                true
            }
            Err(TableError::NotMapped { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    });
    world.content(frame(0)).have_alone();
    let guard = world.pin();
    let (perms, size) = (Perms::ReadWrite, PageSize::Size4K);
    let mapped = world
        .table
        .map_shared(&guard, iova(0), frame(0), perms, size);
    assert_eq!(mapped.unwrap().tables, 0, "the tables were there");
    drop(guard);
    device.join().unwrap();
    match other.join().unwrap() {
        true => assert_eq!(world.translate(0), None),
        false => assert_eq!(world.translate(0), Some(frame(0))),
    }
    // Mapped or pending, the frame is in the table.
    world.end(&[frame(0)]);
}

/// A lookup comes down to a table that is taken out with all that it maps. `count` pages: those of the table, or of the one
/// above.
fn detach_under_lookup(count: u64) {
    let world = begin([4, 0, 0]);
    world.map_run(0, count, frame(0), PageSize::Size4K).unwrap();
    let tables = if count == 2 { 1 } else { 3 };
    let other = world.on_cpu(1, |world| {
        for _ in 0..2 {
            let gone = world.is_told(UNMAPPED);
            match world.translate(1) {
                None => saw("nothing is there"),
                Some(to) => {
                    assert!(!gone, "what is unmapped leads to {to}");
                    assert_eq!(to, frame(1));
                    saw("the page is there");
                }
            }
        }
    });
    let range = pages(0, count);
    assert!(world.table.unmap(&world.pin(), range).tables);
    world.tell(UNMAPPED);
    let epoch = world.quiescence.retire_epoch();
    let passed = (0..3).any(|_| world.quiescence.has_passed(epoch));
    if passed {
        saw("the owner frees the tables");
        assert_eq!(world.redeem(range, frame(0)), Ok(tables));
    }
    other.join().unwrap();
    let mapped = if passed { 0 } else { count };
    world.end(&(0..mapped).map(frame).collect::<Vec<_>>());
}

models! {
    /// A mapper's short way goes through no link that an attempt has marked.
    /// Shows: bc02.
    short_way_of_mapper_against_attempt: Two(2),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || map_against_attempt(Stage::Linked);

    /// The same with a link that is marked already.
    short_way_of_mapper_against_frozen_link: Two(2),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || map_against_attempt(Stage::Frozen);

    /// The same with a tombstone, or what becomes of it.
    short_way_of_mapper_against_tombstone: Two(2),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || map_against_attempt(Stage::Unlinked);

    /// A lookup finds both pages while the leaf that they are becomes a table.
    /// Shows: bc09.
    short_way_of_lookup_against_split: Two(3), sees [], || resize_under_lookup(PageSize::Size2M);

    /// A lookup finds both pages while their table becomes a leaf, and is freed behind it.
    /// Shows: bc09.
    short_way_of_lookup_against_merge: Two(2), sees ["a table is freed"], || {
        resize_under_lookup(PageSize::Size4K);
    };

    /// Of pages of two sizes at one place of a shared range one is there, and nobody goes through the other.
    short_ways_to_pages_of_two_sizes: Two(3),
        sees ["one comes after the other", "the small one is faster", "the large one is faster"],
        shared_sizes;

    /// A page of a shared range is mapped, and perhaps taken out by another CPU at once.
    short_ways_of_map_and_unmap: Two(3), sees ["the page is taken out"], shared_map_against_unmap;

    /// A lookup of what was taken out with its table finds nothing.
    /// Shows: bc02.
    short_way_of_lookup_against_detach: Two(2),
        sees ["nothing is there", "the page is there", "the owner frees the tables"],
        || detach_under_lookup(2);

    /// The same of the table above.
    short_way_of_lookup_against_detach_of_sub_tree: Two(2),
        sees ["nothing is there", "the page is there", "the owner frees the tables"],
        || detach_under_lookup(4);
}
