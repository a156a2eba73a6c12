//! Models of mappers: against each other, against walkers, against an unmapper.

use hv_core::{PageSize, Perms};
use hv_iommu::table::TableError;

use crate::explore::models;
use crate::hardware::Reads;
use crate::world::{World, frame, iova, pages};

/// Two CPUs map two pages below one empty slot while hardware walks both.
fn two_mappers(levels: u8, reads: Reads) {
    let tables = usize::from(levels) - 1;
    let world = World::new(levels, reads, [tables + 1, tables, 0]);
    let device = world.on_cpu(2, move |world| {
        let mut walker = world.walker(reads);
        world.access(&mut walker, 0, &[frame(0)]);
        world.access(&mut walker, 1, &[frame(1)]);
    });
    let other = world.on_cpu(1, |world| {
        world.map(1, frame(1)).unwrap();
        world.tell(1 << 1);
    });
    world.map(0, frame(0)).unwrap();
    world.tell(1 << 0);
    other.join().unwrap();
    device.join().unwrap();
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    assert_eq!(world.translate(1), Some(frame(1)), "a mapping was lost");
    world.end(&[frame(0), frame(1)]);
}

/// One CPU maps a page of an empty table while hardware walks to it.
fn one_mapper(reads: Reads) {
    let world = World::new(2, reads, [2, 0, 0]);
    let device = world.on_cpu(2, move |world| {
        let mut walker = world.walker(reads);
        world.access(&mut walker, 0, &[frame(0)]);
        world.access(&mut walker, 0, &[frame(0)]);
    });
    world.map(0, frame(0)).unwrap();
    world.tell(1 << 0);
    device.join().unwrap();
    world.end(&[frame(0)]);
}

fn lookup_against_mapper() {
    let world = World::new(2, Reads::Snooping, [2, 0, 0]);
    let other = world.on_cpu(1, |world| {
        let first = world.translate(0);
        let again = world.translate(0);
        assert!(first.is_none() || first == again, "a mapping went away");
        assert!(again.is_none_or(|to| to == frame(0)));
    });
    world.map(0, frame(0)).unwrap();
    other.join().unwrap();
    world.end(&[frame(0)]);
}

fn mapper_against_unmapper() {
    let world = World::new(2, Reads::Snooping, [2, 1, 0]);
    world.map(0, frame(0)).unwrap();
    let device = world.on_cpu(2, |world| {
        let mut walker = world.walker(Reads::Snooping);
        world.access(&mut walker, 0, &[frame(0), frame(2)]);
        world.access(&mut walker, 1, &[frame(1)]);
        world.access(&mut walker, 0, &[frame(0), frame(2)]);
    });
    let mapper = world.on_cpu(1, |world| {
        assert_eq!(world.map(1, frame(1)), Ok(0), "the table was there");
        world.tell(1 << 1);
    });
    // The walker keeps no leaves and the frame is not used again, so no flush is needed.
    let _ = world.table.unmap(&world.pin(), pages(0, 1));
    assert_eq!(world.redeem(pages(0, 1), frame(0)), Ok(0));
    world.map(0, frame(2)).unwrap();
    world.tell(1 << 0);
    mapper.join().unwrap();
    device.join().unwrap();
    assert_eq!(world.translate(0), Some(frame(2)));
    assert_eq!(world.translate(1), Some(frame(1)));
    world.end(&[frame(1), frame(2)]);
}

/// Maps page 0 as one of several that share it; whether it did.
fn map_shared(world: &World, number: u64) -> bool {
    let (guard, perms, size) = (world.pin(), Perms::ReadWrite, PageSize::Size4K);
    world.content(frame(number)).have_alone();
    match world
        .table
        .map_shared(&guard, iova(0), frame(number), perms, size)
    {
        Ok(_) => {
            world.tell(1 << 0);
            true
        }
        Err(TableError::Occupied { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn two_sharers(reads: Reads) {
    let world = World::new(2, reads, [2, 1, 0]);
    let device = world.on_cpu(2, move |world| {
        let mut walker = world.walker(reads);
        world.access(&mut walker, 0, &[frame(0), frame(1)]);
    });
    let other = world.on_cpu(1, |world| map_shared(world, 1));
    let mine = map_shared(&world, 0);
    let other = other.join().unwrap();
    device.join().unwrap();
    let winner = match (mine, other) {
        (true, false) => frame(0),
        (false, true) => frame(1),
        _ => panic!("one of two must win, but the first: {mine}, the second: {other}"),
    };
    assert_eq!(world.translate(0), Some(winner));
    world.end(&[winner]);
}

models! {
    /// Both install in one slot: one table is linked, the other reused or freed.
    two_mappers_and_a_walker: Two(2), sees [], || two_mappers(2, Reads::Snooping);

    /// The same with two tables missing.
    two_mappers_of_two_levels_and_a_walker: Two(2), sees [], || two_mappers(3, Reads::Snooping);

    /// Hardware walks while a table is linked.
    a_mapper_and_a_walker: Exhaustive, sees [], || one_mapper(Reads::Snooping);

    /// Memory never has a link to a table that it does not have.
    /// Shows: bc04.
    a_link_reaches_memory_after_its_table: Two(2), sees [], || two_mappers(2, Reads::Memory);

    /// The same for a cache that writes links back as soon as it can.
    a_link_reaches_memory_after_its_table_evictions: Two(3), sees [], || {
        one_mapper(Reads::MemoryAfterEviction);
    };

    /// A table that is linked under a lookup gives the mapping or nothing.
    /// Shows: bc04.
    a_lookup_sees_whole_tables: Exhaustive, sees [], lookup_against_mapper;

    /// Each word of a table as its owner left it.
    mapper_against_unmapper_of_one_table: Two(2), sees [], mapper_against_unmapper;

    /// Of two CPUs that want a page of a shared range, one gets it.
    shared_range_gives_a_page_to_one_mapper: Two(2), sees [], || two_sharers(Reads::Snooping);

    /// The same for a walker that does not snoop.
    shared_range_gives_a_page_to_one_mapper_memory: Two(2), sees [], || two_sharers(Reads::Memory);
}
