//! Models of pages that are split and merged under devices, lookups and reclaimers: no moment without a
//! translation, never a third address.

use hv_core::PageSize;
use hv_iommu::table::TableError;

use crate::explore::{models, must_fail, saw};
use crate::hardware::{Notes, Reads, Walker};
use crate::world::{Setup, Stage, World, frame, iova, pages};

/// A whole attempt and one step more.
const ATTEMPT: usize = 6;
/// Pages 0 and 1 are mapped and stay so.
const BOTH: u64 = 0b11;

/// A world in which pages 0 and 1 lead to frames 0 and 1, by one leaf or by two.
fn begin(setup: Setup, size: PageSize) -> std::sync::Arc<World> {
    let world = setup.build();
    world.map_run(0, 2, frame(0), size).unwrap();
    world.tell(BOTH);
    world
}

/// A device that goes through both pages, again and again, and serves a flush in between.
fn device(world: &World, reads: Reads, notes: Notes, iotlb: bool) {
    let walker = world.walker(reads).that_notes(notes);
    let mut walker = if iotlb { walker.with_iotlb() } else { walker };
    world.access(&mut walker, 0, &[frame(0)]);
    world.access(&mut walker, 1, &[frame(1)]);
    world.serve(0, &mut walker);
    world.access(&mut walker, 0, &[frame(0)]);
    world.access(&mut walker, 1, &[frame(1)]);
}

fn check_both(world: &World) {
    assert_eq!(world.translate(0), Some(frame(0)), "a mapping was lost");
    assert_eq!(world.translate(1), Some(frame(1)), "a mapping was lost");
}

fn split_under_device(reads: Reads, notes: Notes, iotlb: bool) {
    let setup = Setup {
        reads,
        dirty: notes != Notes::Nothing,
        ..Setup::two([2, 0, 0])
    };
    let world = begin(setup, PageSize::Size2M);
    let device = world.on_cpu(2, move |world| device(world, reads, notes, iotlb));
    let split = world.table.split(&world.pin(), iova(0), PageSize::Size2M);
    split.unwrap();
    device.join().unwrap();
    check_both(&world);
    world.end(&[frame(0), frame(1)]);
}

fn merge_under_device(reads: Reads, notes: Notes, iotlb: bool, waits: bool) {
    let setup = Setup {
        reads,
        dirty: notes != Notes::Nothing,
        ..Setup::two([2, 0, 0])
    };
    let world = begin(setup, PageSize::Size4K);
    let device = world.on_cpu(2, move |world| device(world, reads, notes, iotlb));
    let merged = world.table.merge(&world.pin(), iova(0), PageSize::Size2M);
    merged.unwrap();
    let attempt = world.reclaim_to_flush(1).expect("a table waits");
    world.ask(0);
    if world.has_receipt(0, 2) || !waits {
        world.reclaim_flushed(attempt);
        if world.reclaim_alone(3) != 0 {
            saw("the table is freed while the device runs");
            world.map(2, frame(2)).unwrap();
        }
    }
    device.join().unwrap();
    check_both(&world);
    match world.translate(2) {
        Some(_) => world.end(&[frame(0), frame(1), frame(2)]),
        None => world.end(&[frame(0), frame(1)]),
    }
}

fn resize_under_lookup(size: PageSize) {
    let world = begin(Setup::two([2, 0, 0]), size);
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
    world.reclaim_alone(ATTEMPT);
    other.join().unwrap();
    check_both(&world);
    world.end(&[frame(0), frame(1)]);
}

/// The owner fills a table that an attempt is about, merges it and splits the leaf again.
fn resize_under_attempt(stage: Stage, splits: bool) {
    let world = Setup::two([2, 2, 0]).build();
    world.leave_empty_table(0);
    world.bring_to(stage);
    let owner = world.on_cpu(1, move |world| {
        world.map_run(0, 2, frame(0), PageSize::Size4K).unwrap();
        match world.table.merge(&world.pin(), iova(0), PageSize::Size2M) {
            Ok(()) if splits => {
                saw("the table is merged while the attempt runs");
                let split = world.table.split(&world.pin(), iova(0), PageSize::Size2M);
                split.unwrap();
            }
            Ok(()) => saw("the table is merged while the attempt runs"),
            Err(TableError::ReclaimPending { .. }) => saw("a step is in the way"),
            Err(error) => panic!("{error}"),
        }
    });
    world.reclaim_alone(ATTEMPT);
    owner.join().unwrap();
    check_both(&world);
    world.end(&[frame(0), frame(1)]);
}

/// A table is merged while the flush for another one is under way: that one's receipt is none for it.
fn merge_while_a_flush_is_owed() {
    let world = begin(Setup::two([3, 0, 0]), PageSize::Size4K);
    world.map(2, frame(2)).unwrap();
    let _ = world.table.unmap(&world.pin(), pages(2, 1));
    assert_eq!(world.redeem(pages(2, 1), frame(2)), Ok(0));
    let attempt = world.bring_to(Stage::Unlinked).unwrap();
    world.ask(0);
    let device = world.on_cpu(2, |world| {
        let mut walker = world.walker(Reads::Snooping);
        world.serve(0, &mut walker);
        world.access(&mut walker, 0, &[frame(0)]);
        world.access(&mut walker, 1, &[frame(1)]);
    });
    let merged = world.table.merge(&world.pin(), iova(0), PageSize::Size2M);
    merged.unwrap();
    if world.has_receipt(0, 2) {
        world.reclaim_flushed(attempt);
        for _ in 0..3 {
            world.reclaim();
        }
        saw("the other table is freed");
    }
    device.join().unwrap();
    check_both(&world);
    world.end(&[frame(0), frame(1)]);
}

/// A page of what was split, or all of what was merged, is unmapped; its frame is used again after a flush of
/// this kind.
fn resize_and_unmap(size: PageSize, forget: fn(&mut Walker<'_>)) {
    let world = begin(Setup::two([3, 0, 0]), size);
    let device = world.on_cpu(2, move |world| {
        let walker = world.walker(Reads::Snooping);
        let mut walker = match size {
            PageSize::Size4K => walker,
            _ => walker.with_iotlb(),
        };
        let reach = |walker: &mut Walker<'_>, page| {
            if let Some(to) = walker.walk(page) {
                assert_eq!(to, frame(page));
                world.content(to).reach();
            }
        };
        reach(&mut walker, 0);
        world.serve_by(0, &mut walker, forget);
        reach(&mut walker, 0);
        world.access(&mut walker, 2, &[frame(0)]);
    });
    let guard = world.pin();
    let (resized, range) = match size {
        PageSize::Size4K => (
            world.table.merge(&guard, iova(0), PageSize::Size2M),
            pages(0, 2),
        ),
        _ => (world.table.split(&guard, iova(0), size), pages(0, 1)),
    };
    resized.unwrap();
    assert!(!world.table.unmap(&guard, range).tables, "leaves only");
    drop(guard);
    world.ask(0);
    let redeemed = world.has_receipt(0, 2);
    if redeemed {
        saw("the frame is used again");
        assert_eq!(world.redeem(range, frame(0)), Ok(0));
        world.map(2, frame(0)).unwrap();
        world.tell(1 << 2);
    }
    device.join().unwrap();
    match (redeemed, size) {
        (true, PageSize::Size4K) => world.end(&[frame(0)]),
        _ => world.end(&[frame(0), frame(1)]),
    }
}

models! {
    /// A large page is split while a device walks it.
    /// Shows: bc09.
    split_under_walker: Exhaustive, sees [], || {
        split_under_device(Reads::Snooping, Notes::Nothing, false);
    };

    /// The same for a device with an IOTLB.
    split_under_walker_with_iotlb: Exhaustive, sees [], || {
        split_under_device(Reads::Snooping, Notes::Nothing, true);
    };

    /// The same for one that writes accessed bits: the exchange fails, and is made again.
    split_under_noting_walker: Exhaustive, sees [], || {
        split_under_device(Reads::Snooping, Notes::AccessedAndDirty, false);
    };

    /// The same for one that does not snoop.
    split_under_memory_walker: Exhaustive, sees [], || {
        split_under_device(Reads::Memory, Notes::Nothing, false);
    };

    /// Pages are merged while a device walks them; their table is freed after a receipt.
    merge_under_walker: Two(3), sees ["the table is freed while the device runs"], || {
        merge_under_device(Reads::Snooping, Notes::Nothing, false, true);
    };

    /// The same for a device with an IOTLB.
    /// Shows: bc09.
    merge_under_walker_with_iotlb: Two(3), sees ["the table is freed while the device runs"], || {
        merge_under_device(Reads::Snooping, Notes::Nothing, true, true);
    };

    /// The same for one that writes accessed bits into whatever it has cached.
    merge_under_noting_walker: Two(3), sees ["the table is freed while the device runs"], || {
        merge_under_device(Reads::Snooping, Notes::AccessedAndDirty, false, true);
    };

    /// The same for one that does not snoop.
    merge_under_memory_walker: Two(3), sees ["the table is freed while the device runs"], || {
        merge_under_device(Reads::Memory, Notes::Nothing, false, true);
    };

    /// A lookup finds both pages while they are split.
    split_under_lookup: Two(3), sees [], || resize_under_lookup(PageSize::Size2M);

    /// A lookup finds both pages while they are merged, and their table is freed behind it.
    merge_under_lookup: Two(2), sees ["a table is freed"], || {
        resize_under_lookup(PageSize::Size4K);
    };

    /// A table is merged that an attempt may have frozen.
    merge_under_attempt: Two(2),
        sees ["the table is merged while the attempt runs", "a step is in the way"],
        || resize_under_attempt(Stage::Linked, false);

    /// A table behind a frozen link is merged, and the leaf split again.
    merge_and_split_under_attempt: Two(2),
        sees ["the table is merged while the attempt runs", "a step is in the way"],
        || resize_under_attempt(Stage::Frozen, true);

    /// A merged table waits for a flush of its own.
    /// Shows: bc09.
    a_merge_waits_for_its_own_flush: Two(3), sees ["the other table is freed"],
        merge_while_a_flush_is_owed;

    /// A page of a split one is free after a flush of all of it.
    /// Shows: bc09.
    split_and_unmap: Two(3), sees ["the frame is used again"], || {
        resize_and_unmap(PageSize::Size2M, |walker| walker.invalidate());
    };

    /// A merged page is free after a flush that reaches walk caches.
    /// Shows: bc09.
    merge_and_unmap: Two(3), sees ["the frame is used again"], || {
        resize_and_unmap(PageSize::Size4K, |walker| walker.invalidate());
    };
}

must_fail! {
    /// A merged table is freed without a receipt.
    no_receipt_for_a_merged_table: Two(3), || {
        merge_under_device(Reads::Snooping, Notes::Nothing, false, false);
    };

    /// After a split, a flush of one page leaves the large one in the IOTLB.
    split_and_flush_of_one_page: Two(3), || {
        resize_and_unmap(PageSize::Size2M, |walker| walker.invalidate_page(0));
    };

    /// After a merge, a flush of leaves leaves the table in the walk cache.
    merge_and_flush_of_leaves: Two(3), || {
        resize_and_unmap(PageSize::Size4K, |walker| walker.invalidate_leaves());
    };
}
