//! Models of a table that is detached with all that it maps: against reclaimers, lookups and devices.

use hv_core::{IovaRange, PageSize};

use crate::explore::{models, must_fail, saw};
use crate::hardware::{Notes, Reads};
use crate::world::{Setup, Stage, World, frame, pages};

/// A whole attempt and one step more.
const ATTEMPT: usize = 6;

/// Unmaps all of `range`, waits for the grace period, and redeems it if it passes. No device is there. Whether
/// the range is free again.
fn unmap_and_redeem(world: &World, range: IovaRange) -> bool {
    if !world.table.unmap(&world.pin(), range).tables {
        saw("the attempt is faster");
        return true;
    }
    let epoch = world.quiescence.retire_epoch();
    if !(0..3).any(|_| world.quiescence.has_passed(epoch)) {
        saw("what is pending is forgotten");
        return false;
    }
    assert!(world.redeem(range, frame(0)).unwrap() > 0);
    saw("the owner frees the table");
    true
}

/// The owner of all addresses of an empty table takes it while an attempt is about to.
fn empty_table(levels: u8, stage: Stage) {
    let tables = usize::from(levels) - 1;
    let setup = Setup {
        levels,
        ..Setup::two([tables + 1, tables, 0])
    };
    let world = setup.build();
    world.leave_empty_table(0);
    world.bring_to(stage);
    let range = pages(0, 1 << tables);
    let owner = world.on_cpu(1, move |world| {
        let free = unmap_and_redeem(world, range);
        if free {
            world.map(0, frame(0)).unwrap();
        }
        free
    });
    world.reclaim_alone(ATTEMPT);
    if owner.join().unwrap() {
        assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
        world.end(&[frame(0)]);
    } else {
        world.end(&[]);
    }
}

/// The owner fills the table and takes it out again, while an attempt may have frozen it.
fn full_table(stage: Stage) {
    let world = Setup::two([2, 1, 0]).build();
    world.leave_empty_table(0);
    world.bring_to(stage);
    let owner = world.on_cpu(1, |world| {
        world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
        let unmapped = world.table.unmap(&world.pin(), pages(0, 2));
        assert!(unmapped.tables, "a table with pages is there");
        let epoch = world.quiescence.retire_epoch();
        let passed = (0..3).any(|_| world.quiescence.has_passed(epoch));
        if passed {
            saw("the owner frees the table");
            assert_eq!(world.redeem(pages(0, 2), frame(0)), Ok(1));
        }
        passed
    });
    world.reclaim_alone(ATTEMPT);
    match owner.join().unwrap() {
        true => world.end(&[]),
        false => world.end(&[frame(0), frame(1)]),
    }
}

/// A lookup in a table that is detached, freed and used again.
fn against_lookup(waits: bool) {
    let world = Setup::two([2, 0, 0]).build();
    world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
    let other = world.on_cpu(1, |world| {
        for _ in 0..2 {
            assert!(world.translate(1).is_none_or(|to| to == frame(1)));
        }
    });
    assert!(world.table.unmap(&world.pin(), pages(0, 2)).tables);
    let epoch = world.quiescence.retire_epoch();
    let passed = (0..3).any(|_| world.quiescence.has_passed(epoch));
    if passed || !waits {
        saw("the owner frees the table");
        assert_eq!(world.redeem(pages(0, 2), frame(0)), Ok(1));
        world.map(2, frame(2)).unwrap();
        other.join().unwrap();
        world.end(&[frame(2)]);
    } else {
        other.join().unwrap();
        world.end(&[frame(0), frame(1)]);
    }
}

/// A device that has the table and its leaves cached; page and frames are used again.
fn against_device(reads: Reads, notes: Notes, receipt: fn(&World) -> bool) {
    let setup = Setup {
        reads,
        ..Setup::two([2, 0, 0])
    };
    let world = setup.build();
    world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
    let device = world.on_cpu(2, move |world| {
        let mut walker = world.walker(reads).with_iotlb().that_notes(notes);
        world.access(&mut walker, 0, &[frame(0)]);
        if !world.serve(0, &mut walker) {
            world.access(&mut walker, 1, &[frame(1)]);
        }
        world.access(&mut walker, 0, &[frame(0)]);
        world.access(&mut walker, 2, &[frame(0)]);
    });
    assert!(world.table.unmap(&world.pin(), pages(0, 2)).tables);
    let epoch = world.quiescence.retire_epoch();
    world.ask(0);
    let redeemed = receipt(&world) && (0..3).any(|_| world.quiescence.has_passed(epoch));
    if redeemed {
        saw("the owner frees the table");
        assert_eq!(world.redeem(pages(0, 2), frame(0)), Ok(1));
        // This writes the frame: nothing may reach it by the old mapping any more.
        world.map(2, frame(0)).unwrap();
        world.tell(1 << 2);
    }
    device.join().unwrap();
    match redeemed {
        true => world.end(&[frame(0)]),
        false => world.end(&[frame(0), frame(1)]),
    }
}

models! {
    /// An owner takes an empty table that nobody has frozen yet.
    /// Shows: bc02.
    detach_against_attempt: Two(2),
        sees ["the attempt is faster", "the owner frees the table", "what is pending is forgotten"],
        || empty_table(2, Stage::Linked);

    /// An owner takes a table behind a frozen link.
    detach_against_frozen_link: Two(2),
        sees ["the attempt is faster", "the owner frees the table", "what is pending is forgotten"],
        || empty_table(2, Stage::Frozen);

    /// An owner takes a table that a tombstone names, or comes too late.
    detach_against_tombstone: Two(2),
        sees ["the attempt is faster", "the owner frees the table", "what is pending is forgotten"],
        || empty_table(2, Stage::Unlinked);

    /// An owner takes the table above the one that an attempt is about to freeze.
    detach_of_sub_tree_against_attempt: Two(2),
        sees ["the owner frees the table", "what is pending is forgotten"],
        || empty_table(3, Stage::Linked);

    /// An owner takes the table above the one that an attempt has frozen.
    detach_of_sub_tree_against_frozen_link: Two(2),
        sees ["the owner frees the table", "what is pending is forgotten"],
        || empty_table(3, Stage::Frozen);

    /// An owner takes the table above a tombstone.
    detach_of_sub_tree_against_tombstone: Two(2),
        sees ["the owner frees the table", "what is pending is forgotten"],
        || empty_table(3, Stage::Unlinked);

    /// An owner fills a table and takes it while an attempt may have frozen it.
    map_and_detach_against_attempt: Two(2), sees ["the owner frees the table"], || {
        full_table(Stage::Linked);
    };

    /// The same with a link that is frozen already.
    map_and_detach_against_frozen_link: Two(2), sees ["the owner frees the table"], || {
        full_table(Stage::Frozen);
    };

    /// A detached table outlives the lookups that are in it.
    /// Shows: bc02.
    detach_against_lookup: Two(3), sees ["the owner frees the table"], || against_lookup(true);

    /// A detached table and its frames wait for the device.
    /// Shows: bc02.
    detach_against_device: Two(3), sees ["the owner frees the table"], || {
        against_device(Reads::Snooping, Notes::Nothing, |world| world.has_receipt(0, 2));
    };

    /// The same with a device that sets accessed bits in links.
    detach_against_noting_device: Two(3), sees ["the owner frees the table"], || {
        let receipt = |world: &World| world.has_receipt(0, 2);
        against_device(Reads::Snooping, Notes::AccessedAndDirty, receipt);
    };

    /// The same with a device that does not snoop.
    detach_against_memory_device: Two(3), sees ["the owner frees the table"], || {
        against_device(Reads::Memory, Notes::Nothing, |world| world.has_receipt(0, 2));
    };
}

must_fail! {
    /// A detached table is freed under a lookup.
    no_grace_period_for_a_detached_table: Two(3), || against_lookup(false);

    /// A detached table is freed under a device.
    no_receipt_for_a_detached_table: Two(3), || {
        against_device(Reads::Snooping, Notes::Nothing, |_| true);
    };
}
