//! Models of an attempt to reclaim tables: against mappers, lookups, unmappers and other reclaimers.

use std::sync::Arc;

use hv_core::{PageSize, Perms, PhysAddr};

use crate::explore::{models, must_fail, saw};
use crate::hardware::{Notes, Reads};
use crate::world::{Setup, Stage, World, frame, iova, pages};

/// A whole attempt and one step more.
const ATTEMPT: usize = 6;

/// A world with an empty table at page 0, and an attempt at this stage.
fn begin(setup: Setup, stage: Stage) -> Arc<World> {
    let world = setup.build();
    world.leave_empty_table(0);
    world.bring_to(stage);
    world
}

/// Uses a page that was freed for another table, if there is one.
fn reuse(world: &World) {
    if world.map(2, frame(2)).is_ok() {
        saw("a freed page is a table again");
    }
}

/// Ends a world in which page 0 leads to `frame(0)`, and perhaps page 2 to `frame(2)`.
fn end_with(world: &World, mut mapped: Vec<PhysAddr>) {
    if world.translate(2).is_some() {
        mapped.push(frame(2));
    }
    world.end(&mapped);
}

/// A mapper into the table that an attempt is about.
fn against_mapper(stage: Stage, shared: bool) {
    let world = begin(Setup::two([2, 1, 0]), stage);
    let mapper = world.on_cpu(1, move |world| {
        let guard = world.pin();
        let (to, perms, size) = (frame(0), Perms::ReadWrite, PageSize::Size4K);
        let outcome = match shared {
            true => world.table.map_shared(&guard, iova(0), to, perms, size),
            false => world.table.map(&guard, pages(0, 1), to, perms, size),
        };
        outcome.unwrap().tables
    });
    let freed = world.reclaim_alone(ATTEMPT);
    reuse(&world);
    match mapper.join().unwrap() {
        0 if freed == 0 => saw("the mapper keeps the table"),
        1 => saw("the mapper links its own table"),
        _ => {}
    }
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    end_with(&world, vec![frame(0)]);
}

/// A page that is mapped in a shared range and taken out again, whatever a mark has come to stand on the way to it.
fn against_shared_owner() {
    // The short way down is for three levels and more.
    let setup = Setup {
        levels: 3,
        ..Setup::two([3, 2, 0])
    };
    let world = begin(setup, Stage::Linked);
    let owner = world.on_cpu(1, move |world| {
        let (at, to, size) = (iova(0), frame(0), PageSize::Size4K);
        let guard = world.pin();
        let mapped = world
            .table
            .map_shared(&guard, at, to, Perms::ReadWrite, size);
        mapped.unwrap();
        drop(guard);
        let guard = world.pin();
        assert_eq!(
            world.table.unmap_shared(&guard, at, size),
            Ok(to),
            "a leaf stays"
        );
        world.table.redeem_shared(&guard, at, to, size).unwrap();
    });
    world.reclaim_alone(ATTEMPT);
    owner.join().unwrap();
    assert_eq!(world.translate(0), None);
    end_with(&world, vec![]);
}

/// Two pages mapped one after the other.
fn against_mapper_twice() {
    let world = begin(Setup::two([2, 2, 0]), Stage::Linked);
    let mapper = world.on_cpu(1, |world| {
        world.map(0, frame(0)).unwrap();
        world.map(1, frame(1)).unwrap();
    });
    world.reclaim_alone(ATTEMPT);
    mapper.join().unwrap();
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    assert_eq!(world.translate(1), Some(frame(1)), "a mapping was lost");
    world.end(&[frame(0), frame(1)]);
}

/// Two CPUs map two pages of the table.
fn against_two_mappers(stage: Stage) {
    let setup = Setup {
        cpus: 3,
        ..Setup::two([2, 1, 1])
    };
    let world = begin(setup, stage);
    let mappers = [1, 2].map(|cpu| {
        world.on_cpu(cpu, move |world| {
            let page = u64::from(cpu) - 1;
            world.map(page, frame(page)).unwrap();
        })
    });
    world.reclaim_alone(ATTEMPT);
    for mapper in mappers {
        mapper.join().unwrap();
    }
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    assert_eq!(world.translate(1), Some(frame(1)), "a mapping was lost");
    world.end(&[frame(0), frame(1)]);
}

/// A lookup in the table, whose page is used again as soon as it is free.
fn against_lookup(stage: Stage) {
    let world = begin(Setup::two([2, 0, 0]), stage);
    let other = world.on_cpu(1, |world| {
        for _ in 0..2 {
            assert_eq!(world.translate(0), None);
        }
    });
    world.reclaim_alone(ATTEMPT);
    reuse(&world);
    other.join().unwrap();
    end_with(&world, vec![]);
}

/// A mapper whose page comes and goes, so that a link that was thawed is frozen once more.
fn against_comer_and_goer() {
    let world = begin(Setup::two([2, 2, 0]), Stage::Frozen);
    let mapper = world.on_cpu(1, |world| {
        world.map(0, frame(0)).unwrap();
        let _ = world.table.unmap(&world.pin(), pages(0, 1));
        assert_eq!(world.redeem(pages(0, 1), frame(0)), Ok(0));
        world.map(1, frame(1)).unwrap();
    });
    world.reclaim_rounds(2 * ATTEMPT, true);
    mapper.join().unwrap();
    assert_eq!(world.translate(1), Some(frame(1)), "a mapping was lost");
    world.end(&[frame(1)]);
}

/// Two CPUs run the steps of whatever attempt there is, against a mapper.
fn two_reclaimers(stage: Stage) {
    let setup = Setup {
        cpus: 3,
        ..Setup::two([2, 1, 0])
    };
    let world = begin(setup, stage);
    let mapper = world.on_cpu(1, |world| world.map(0, frame(0)).unwrap());
    let other = world.on_cpu(2, |world| world.reclaim_alone(3));
    world.reclaim_alone(4);
    mapper.join().unwrap();
    other.join().unwrap();
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    world.end(&[frame(0)]);
}

/// The attempt is given up, and another one follows.
fn cancelled() {
    let world = Setup::two([2, 1, 0]).build();
    world.leave_empty_table(0);
    let attempt = world.bring_to(Stage::Unlinked).unwrap();
    let mapper = world.on_cpu(1, |world| world.map(0, frame(0)).unwrap());
    assert!(
        world
            .table
            .reclaim_cancel(&world.quiescence, &*world.arena, attempt)
    );
    world.reclaim_rounds(ATTEMPT + 1, true);
    if mapper.join().unwrap() == 1 {
        saw("the mapper comes after the second attempt");
    }
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    world.end(&[frame(0)]);
}

/// The receipt of an attempt that was cancelled comes late, when a device has cached the table that was
/// linked again.
fn late_receipt() {
    let world = Setup::two([2, 0, 0]).build();
    world.leave_empty_table(0);
    let first = world.bring_to(Stage::Unlinked).unwrap();
    world.ask(0);
    let device = world.on_cpu(2, |world| {
        let mut walker = world.walker(Reads::Snooping);
        world.serve(0, &mut walker);
        assert_eq!(walker.walk(0), None);
        world.arena.pause();
        assert_eq!(walker.walk(0), None);
    });
    world
        .table
        .reclaim_cancel(&world.quiescence, &*world.arena, first);
    let second = world.reclaim_to_flush(4).expect("nobody is in the way");
    assert_ne!(first, second);
    if world.has_receipt(0, 1) {
        saw("the receipt comes late");
        world.reclaim_flushed(first);
        for _ in 0..3 {
            world.reclaim();
        }
    }
    device.join().unwrap();
    world.end(&[]);
}

/// Two tables in one attempt, both of which a mapper comes to.
fn batch_of_two(stage: Stage) {
    let world = Setup::two([3, 2, 0]).build();
    world.leave_empty_table(0);
    world.leave_empty_table(2);
    world.bring_to(stage);
    let mapper = world.on_cpu(1, |world| {
        world.map(0, frame(0)).unwrap();
        world.map(2, frame(2)).unwrap();
    });
    if world.reclaim_alone(ATTEMPT) == 2 {
        saw("two tables are freed at once");
    }
    mapper.join().unwrap();
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    assert_eq!(world.translate(2), Some(frame(2)), "a mapping was lost");
    world.end(&[frame(0), frame(2)]);
}

/// An empty table of an empty table: the upper one is taken out by the attempt after.
fn cascade(stage: Stage) {
    let setup = Setup {
        levels: 3,
        ..Setup::two([3, 2, 0])
    };
    let world = begin(setup, stage);
    let mapper = world.on_cpu(1, |world| world.map(0, frame(0)).unwrap());
    if world.reclaim_rounds(2 * ATTEMPT, true) == 2 {
        saw("the upper table is freed as well");
    }
    if mapper.join().unwrap() == 1 {
        saw("the mapper keeps the upper table");
    }
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    world.end(&[frame(0)]);
}

/// The owner of the table's one page unmaps and redeems it; no device is there.
fn against_unmapper(to: PhysAddr, again: bool) {
    let world = Setup::two([2, 1, 0]).build();
    let map = move |world: &World| {
        let guard = world.pin();
        let (perms, size) = (Perms::ReadWrite, PageSize::Size4K);
        world.table.map(&guard, pages(0, 1), to, perms, size)
    };
    map(&world).unwrap();
    let owner = world.on_cpu(1, move |world| {
        let _ = world.table.unmap(&world.pin(), pages(0, 1));
        assert_eq!(world.redeem(pages(0, 1), to), Ok(0), "pending is content");
        if again {
            map(world).unwrap();
        }
    });
    world.reclaim_alone(ATTEMPT);
    owner.join().unwrap();
    match again {
        true => {
            assert_eq!(world.translate(0), Some(to), "a mapping was lost");
            world.end(&[to]);
        }
        false => world.end(&[]),
    }
}

/// An owner maps a page into an empty table, and unmaps and redeems it where it stands, without a guard.
fn against_owner_at_place(stage: Stage) {
    let world = Setup::two([2, 1, 0]).build();
    world.leave_empty_table(0);
    world.bring_to(stage);
    let owner = world.on_cpu(1, |world| {
        let place = world.map_page(0, frame(0));
        assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
        world.unmap_page(place);
        world.redeem_page(place, frame(0));
    });
    world.reclaim_alone(ATTEMPT);
    owner.join().unwrap();
    world.end(&[]);
}

/// The same with a page that was there before the attempt.
fn against_owner_of_mapped_place() {
    let world = Setup::two([2, 0, 0]).build();
    let place = world.map_page(0, frame(0));
    let owner = world.on_cpu(1, move |world| {
        world.unmap_page(place);
        world.redeem_page(place, frame(0));
    });
    world.reclaim_alone(ATTEMPT);
    owner.join().unwrap();
    world.end(&[]);
}

/// A mapper and a device that has the table in its walk cache.
fn against_device(stage: Stage, reads: Reads, notes: Notes, waits: bool) {
    let setup = Setup {
        reads,
        ..Setup::two([2, 1, 0])
    };
    let world = setup.build();
    world.leave_empty_table(0);
    let mut walker = world.walker(reads);
    assert_eq!(walker.walk(0), None);
    let cache = walker.into_cache();
    world.bring_to(stage);
    let device = world.on_cpu(2, move |world| {
        let walker = world.walker(reads).with_cache(cache);
        let mut walker = walker.that_notes(notes);
        world.access(&mut walker, 0, &[frame(0)]);
        if world.serve(0, &mut walker) {
            world.access(&mut walker, 0, &[frame(0)]);
        }
        world.access(&mut walker, 0, &[frame(0)]);
    });
    let mapper = world.on_cpu(1, |world| {
        let tables = world.map(0, frame(0)).unwrap();
        world.tell(1 << 0);
        tables
    });
    if let Some(attempt) = world.reclaim_to_flush(3) {
        world.ask(0);
        if world.has_receipt(0, 2) || !waits {
            world.reclaim_flushed(attempt);
            let freed = world.reclaim_alone(3);
            if freed != 0 {
                saw("the table is freed while the device runs");
            }
            reuse(&world);
        } else {
            saw("no receipt in time");
        }
    }
    match mapper.join().unwrap() {
        0 => saw("the mapper keeps the table"),
        _ => saw("the mapper links its own table"),
    }
    device.join().unwrap();
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    end_with(&world, vec![frame(0)]);
}

models! {
    /// A mapper meets the whole attempt.
    mapper_against_attempt: Two(3),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || against_mapper(Stage::Linked, false);

    /// A mapper meets a frozen link or what becomes of it.
    mapper_against_frozen_link: Two(3),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || against_mapper(Stage::Frozen, false);

    /// A mapper meets a tombstone or what becomes of it; the page is used again.
    /// Shows: bc02.
    mapper_against_tombstone: Two(3),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table",
            "a freed page is a table again"],
        || against_mapper(Stage::Unlinked, false);

    /// The same in a shared range.
    shared_mapper_against_tombstone: Two(3),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || against_mapper(Stage::Unlinked, true);

    /// The same in a shared range, from the first freeze on.
    shared_mapper_against_attempt: Two(2),
        sees ["a table is freed", "the mapper keeps the table", "the mapper links its own table"],
        || against_mapper(Stage::Linked, true);

    /// What a shared range maps is taken out through a link that was marked meanwhile.
    /// Shows: bc02.
    shared_owner_against_attempt: Two(2), sees [], against_shared_owner;

    /// A mapper comes twice.
    mapper_twice_against_attempt: Two(2), sees ["a table is freed"], against_mapper_twice;

    /// Two CPUs want the same frozen link.
    two_mappers_against_frozen_link: Three(1), sees [], || against_two_mappers(Stage::Frozen);

    /// Two CPUs want the same tombstone.
    two_mappers_against_tombstone: Three(2), sees [], || against_two_mappers(Stage::Unlinked);

    /// A table outlives the lookups that are in it.
    lookup_against_attempt: Two(2), sees ["a table is freed", "a freed page is a table again"],
        || against_lookup(Stage::Linked);

    /// The same from the tombstone on.
    lookup_against_tombstone: Two(3), sees ["a table is freed", "a freed page is a table again"],
        || against_lookup(Stage::Unlinked);

    /// The word looks the same after a thaw and another freeze, and is not taken for the first.
    a_second_freeze_is_not_the_first: Two(2), sees ["a table is freed"], against_comer_and_goer;

    /// Two reclaimers share one attempt.
    /// Shows: bc16.
    two_reclaimers_against_mapper: Three(2), sees ["a table is unlinked"], || {
        two_reclaimers(Stage::Linked);
    };

    /// The same from the tombstone on.
    two_reclaimers_against_mapper_at_tombstone: Three(2),
        sees ["a table is unlinked", "a table is freed"], || two_reclaimers(Stage::Unlinked);

    /// An attempt whose flush failed links the table again.
    a_cancelled_attempt_links_again: Two(3),
        sees ["a table is freed", "the mapper comes after the second attempt"], cancelled;

    /// The receipt of one attempt does not serve for the next.
    /// Shows: bc01, bc02.
    a_late_receipt_opens_nothing: Two(3), sees ["the receipt comes late"], late_receipt;

    /// Two tables in one attempt.
    a_batch_of_two_against_mapper: Two(2),
        sees ["a table is freed", "two tables are freed at once"], || batch_of_two(Stage::Linked);

    /// The same from the tombstones on.
    a_batch_of_two_tombstones_against_mapper: Two(2),
        sees ["a table is freed", "two tables are freed at once"], || {
            batch_of_two(Stage::Unlinked);
        };

    /// The upper table follows when the lower one is gone.
    upper_table_follows_lower: Two(2),
        sees ["the upper table is freed as well", "the mapper keeps the upper table"],
        || cascade(Stage::Unlinked);

    /// A pending page keeps its table until it is redeemed.
    a_pending_page_keeps_its_table: Two(3), sees ["a table is freed"], || {
        against_unmapper(frame(0), false);
    };

    /// Also one at address 0, whose word has no other bits.
    a_pending_page_at_address_0_keeps_its_table: Two(3), sees ["a table is freed"], || {
        against_unmapper(PhysAddr::new(0), false);
    };

    /// So does one whose owner finds it by its place, without a guard.
    a_page_at_its_place_keeps_its_table: Two(3), sees ["a table is freed"], || {
        against_owner_of_mapped_place();
    };

    /// Also where an attempt had begun before the page was mapped.
    owner_at_place_against_frozen_link: Two(2), sees ["a table is freed"], || {
        against_owner_at_place(Stage::Frozen);
    };

    /// Also where the page was mapped into a tombstone's table, or one that follows it.
    owner_at_place_against_tombstone: Two(2), sees ["a table is freed"], || {
        against_owner_at_place(Stage::Unlinked);
    };

    /// Redeemed and mapped again while the table is looked at.
    redeem_and_map_against_attempt: Two(2), sees ["a table is freed"], || {
        against_unmapper(frame(0), true);
    };

    /// Neither a frozen table nor a tombstone makes a device with a stale walk cache fault.
    device_and_mapper_against_frozen_link: Two(2), sees ["no receipt in time"], || {
        against_device(Stage::Frozen, Reads::Snooping, Notes::Nothing, true);
    };

    /// The same from the tombstone on: it is linked again before its flush, or after it is gone.
    /// Shows: bc02.
    device_and_mapper_against_tombstone: Two(2),
        sees ["the table is freed while the device runs", "the mapper keeps the table",
            "the mapper links its own table"],
        || against_device(Stage::Unlinked, Reads::Snooping, Notes::Nothing, true);

    /// The same with a device that sets accessed bits in links.
    noting_device_and_mapper_against_frozen_link: Two(2), sees ["no receipt in time"], || {
        against_device(Stage::Frozen, Reads::Snooping, Notes::AccessedAndDirty, true);
    };

    /// The same with a device that does not snoop.
    memory_device_and_mapper_against_frozen_link: Two(2), sees ["no receipt in time"], || {
        against_device(Stage::Frozen, Reads::Memory, Notes::Nothing, true);
    };

    /// The same from the tombstone on.
    memory_device_and_mapper_against_tombstone: Two(2),
        sees ["the table is freed while the device runs", "the mapper keeps the table",
            "the mapper links its own table"],
        || against_device(Stage::Unlinked, Reads::Memory, Notes::Nothing, true);
}

must_fail! {
    /// Tables are taken out for good before the device forgot them.
    no_receipt_for_a_tombstone: Two(3), || {
        against_device(Stage::Unlinked, Reads::Snooping, Notes::Nothing, false);
    };
}
