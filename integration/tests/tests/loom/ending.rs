//! Models of the end of a table: every page is freed exactly once, whoever held it.

use hv_core::{PageSize, PhysAddr};

use crate::explore::{models, saw};
use crate::world::{Setup, Stage, World, frame, iova, pages};

/// What the table is like when it ends, while nobody else runs. Gives the frames that it still names.
type Prepare = fn(&World) -> Vec<PhysAddr>;

fn frozen(world: &World) -> Vec<PhysAddr> {
    world.leave_empty_table(0);
    world.bring_to(Stage::Frozen);
    vec![]
}

fn unlinked(world: &World) -> Vec<PhysAddr> {
    world.leave_empty_table(0);
    world.bring_to(Stage::Unlinked);
    vec![]
}

fn retired(world: &World) -> Vec<PhysAddr> {
    world.leave_empty_table(0);
    let attempt = world.bring_to(Stage::Unlinked).unwrap();
    world.reclaim_flushed(attempt);
    vec![]
}

fn pending_leaf(world: &World) -> Vec<PhysAddr> {
    world.map(0, frame(0)).unwrap();
    let _ = world.table.unmap(&world.pin(), pages(0, 1));
    vec![frame(0)]
}

fn pending_table(world: &World) -> Vec<PhysAddr> {
    world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
    assert!(world.table.unmap(&world.pin(), pages(0, 2)).tables);
    vec![frame(0), frame(1)]
}

fn pending_tombstone(world: &World) -> Vec<PhysAddr> {
    unlinked(world);
    assert!(world.table.unmap(&world.pin(), pages(0, 2)).tables);
    vec![]
}

fn merged(world: &World) -> Vec<PhysAddr> {
    world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
    let merged = world.table.merge(&world.pin(), iova(0), PageSize::Size2M);
    merged.unwrap();
    vec![frame(0), frame(1)]
}

fn merged_and_covered(world: &World) -> Vec<PhysAddr> {
    let frames = merged(world);
    world.reclaim_to_flush(1).expect("a table waits");
    frames
}

fn merged_and_retired(world: &World) -> Vec<PhysAddr> {
    let frames = merged(world);
    let attempt = world.reclaim_to_flush(1).expect("a table waits");
    world.reclaim_flushed(attempt);
    frames
}

const ALL: [Prepare; 9] = [
    frozen,
    unlinked,
    retired,
    pending_leaf,
    pending_table,
    pending_tombstone,
    merged,
    merged_and_covered,
    merged_and_retired,
];

/// The table ends in each of these states.
fn alone() {
    for prepare in ALL {
        let world = Setup::two([2, 0, 0]).build();
        let frames = prepare(&world);
        world.end(&frames);
    }
}

/// The table ends while another CPU goes on with an attempt.
fn against_attempt(prepare: Prepare) {
    let world = Setup::two([2, 1, 0]).build();
    let frames = prepare(&world);
    let other = world.on_cpu(1, |world| world.reclaim_alone(4));
    let root = world.table.close().expect("ended twice");
    let epoch = world.quiescence.retire_epoch();
    let passed = (0..3).any(|_| world.quiescence.has_passed(epoch));
    let early = passed.then(|| {
        saw("the table ends while the attempt runs");
        world.drain(root)
    });
    other.join().unwrap();
    let named = early.unwrap_or_else(|| world.drain(root));
    world.check_drained(&named, &frames);
}

/// The table ends while another CPU merges pages of it.
fn against_merge() {
    let world = Setup::two([2, 1, 0]).build();
    world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
    let other = world.on_cpu(1, |world| {
        world
            .table
            .merge(&world.pin(), iova(0), PageSize::Size2M)
            .is_ok()
    });
    let root = world.table.close().expect("ended twice");
    let epoch = world.quiescence.retire_epoch();
    let passed = (0..3).any(|_| world.quiescence.has_passed(epoch));
    let early = passed.then(|| {
        saw("the table ends while the other CPU runs");
        world.drain(root)
    });
    if other.join().unwrap() {
        saw("the pages are merged first");
    }
    let named = early.unwrap_or_else(|| world.drain(root));
    world.check_drained(&named, &[frame(0), frame(1)]);
}

models! {
    /// Every page is freed once: frozen, tombstoned, retired, pending, merged.
    the_end_finds_every_page: Exhaustive, sees [], alone;

    /// An attempt that has frozen a link meets the end.
    the_end_against_frozen_link: Two(3), sees ["the table ends while the attempt runs"], || {
        against_attempt(frozen);
    };

    /// An attempt that owes a flush meets the end.
    the_end_against_tombstone: Two(3),
        sees ["the table ends while the attempt runs", "a table is freed"], || {
            against_attempt(unlinked);
        };

    /// An attempt that waits for the last grace period meets the end.
    the_end_against_retired_table: Two(3),
        sees ["the table ends while the attempt runs", "a table is freed"], || {
            against_attempt(retired);
        };

    /// An attempt that holds a merged table meets the end.
    the_end_against_merged_table: Two(3),
        sees ["the table ends while the attempt runs", "a table is freed"], || {
            against_attempt(merged);
        };

    /// A merge meets the end.
    the_end_against_merge: Two(3),
        sees ["the table ends while the other CPU runs", "the pages are merged first"],
        against_merge;
}
