//! Models of dirty bits: a write of a device that went through is told, whatever becomes of the leaf.

use std::collections::BTreeSet;
use std::sync::Arc;

use hv_core::{PageSize, Perms};
use hv_iommu::table::MergedBits;
use loom::thread::JoinHandle;

use crate::explore::{models, saw};
use crate::hardware::{Notes, Reads};
use crate::world::{Setup, World, frame, iova, pages};

/// A world in which pages 0 and 1 lead to frames 0 and 1, by one leaf or by two, and writes are noted.
fn begin(size: PageSize) -> Arc<World> {
    let setup = Setup {
        dirty: true,
        ..Setup::two([2, 0, 0])
    };
    let world = setup.build();
    world.map_run(0, 2, frame(0), size).unwrap();
    world
}

/// A device that writes both pages. Gives those that it got at.
fn writer(world: &Arc<World>, notes: Notes) -> JoinHandle<BTreeSet<u64>> {
    world.on_cpu(2, move |world| {
        let walker = world.walker(Reads::Snooping).with_iotlb();
        let mut walker = walker.that_notes(notes);
        // So that the walk cache has the link.
        walker.walk(1);
        let written = [0, 1, 0].into_iter();
        written
            .filter(|page| walker.write(*page).is_some())
            .collect()
    })
}

fn check(written: &BTreeSet<u64>, told: &BTreeSet<u64>) {
    if !written.is_empty() {
        saw("the device writes");
    }
    assert!(
        told.is_superset(written),
        "pages {written:?} were written, and {told:?} told"
    );
}

/// Dirty bits are read and cleared while a device writes.
fn cleared() {
    let world = begin(PageSize::Size4K);
    let device = world.on_cpu(2, |world| {
        let walker = world.walker(Reads::Snooping).with_iotlb();
        let mut walker = walker.that_notes(Notes::Dirty);
        walker.write(0).expect("page 0 is mapped");
        let served = world.serve(0, &mut walker);
        walker.write(0).expect("page 0 is mapped");
        served
    });
    let before = world.dirty(pages(0, 1), true);
    world.ask(0);
    let served = device.join().unwrap();
    let after = world.dirty(pages(0, 1), false);
    assert!(before.contains(&0) || after.contains(&0), "a write is lost");
    if served {
        saw("a write after the flush");
        assert!(after.contains(&0), "a write after the flush is lost");
    }
    world.end(&[frame(0), frame(1)]);
}

fn unmapped(size: PageSize, one: bool, notes: Notes) {
    let world = begin(size);
    let device = writer(&world, notes);
    let range = if one { pages(0, 1) } else { pages(0, 2) };
    let tables = world.table.unmap(&world.pin(), range).tables;
    assert_eq!(tables, size == PageSize::Size4K && !one);
    let mut written = device.join().unwrap();
    // The receipt and the grace period are there.
    let mut told = BTreeSet::new();
    let redeemed = world.redeem_and_harvest(range, frame(0), |page| {
        told.insert(page);
    });
    assert_eq!(redeemed, Ok(u64::from(tables)));
    if one {
        written.remove(&1);
    }
    check(&written, &told);
    match one {
        true => world.end(&[frame(1)]),
        false => world.end(&[]),
    }
}

fn split(notes: Notes) {
    let world = begin(PageSize::Size2M);
    let device = writer(&world, notes);
    let split = world.table.split(&world.pin(), iova(0), PageSize::Size2M);
    split.unwrap();
    let written = device.join().unwrap();
    check(&written, &world.dirty(pages(0, 2), false));
    world.end(&[frame(0), frame(1)]);
}

fn merged(notes: Notes) {
    let world = begin(PageSize::Size4K);
    let device = writer(&world, notes);
    let before = world.dirty(pages(0, 2), false);
    let merged = world.table.merge(&world.pin(), iova(0), PageSize::Size2M);
    merged.unwrap();
    check(&before, &world.dirty(pages(0, 2), false));
    let written = device.join().unwrap();
    if world.dirty(pages(0, 2), false).is_empty() && !written.is_empty() {
        saw("a bit comes late");
    }
    let attempt = world.reclaim_to_flush(1).expect("a table waits");
    world.reclaim_flushed(attempt);
    check(&written, &world.dirty(pages(0, 2), false));
    world.end(&[frame(0), frame(1)]);
}

/// A look at what was written asks for a flush first, and does not wait for an attempt.
fn merged_and_told() {
    let world = begin(PageSize::Size4K);
    let device = writer(&world, Notes::Dirty);
    let merged = world.table.merge(&world.pin(), iova(0), PageSize::Size2M);
    merged.unwrap();
    let asked = world.table.merged_bits(pages(0, 2));
    // The receipt is there.
    let written = device.join().unwrap();
    if world.dirty(pages(0, 2), false).is_empty() && !written.is_empty() {
        saw("a bit comes late");
    }
    if let MergedBits::Waiting { merges, .. } = asked {
        world.take_merged_bits(pages(0, 2), merges);
        assert_eq!(world.table.merged_bits(pages(0, 2)), MergedBits::Told);
    }
    check(&written, &world.dirty(pages(0, 2), true));
    // They are told once.
    let attempt = world.reclaim_to_flush(1).expect("a table waits");
    world.reclaim_flushed(attempt);
    assert_eq!(world.dirty(pages(0, 2), false), BTreeSet::new());
    world.end(&[frame(0), frame(1)]);
}

/// The merged page is unmapped and redeemed before the attempt's receipt.
fn merged_and_unmapped() {
    let world = begin(PageSize::Size4K);
    let device = writer(&world, Notes::Dirty);
    let merged = world.table.merge(&world.pin(), iova(0), PageSize::Size2M);
    merged.unwrap();
    let _ = world.table.unmap(&world.pin(), pages(0, 2));
    let written = device.join().unwrap();
    let mut told = BTreeSet::new();
    let redeemed = world.redeem_and_harvest(pages(0, 2), frame(0), |page| {
        told.insert(page);
    });
    redeemed.unwrap();
    check(&written, &told);
    world.end(&[]);
}

fn protected() {
    let world = begin(PageSize::Size4K);
    let device = writer(&world, Notes::Dirty);
    let changed = world.table.protect(&world.pin(), pages(0, 2), Perms::Read);
    assert!(changed.unwrap().lost);
    let written = device.join().unwrap();
    check(&written, &world.dirty(pages(0, 2), false));
    // What is kept of writes lets nobody write: a walker that knows nothing of before is refused.
    let mut fresh = world.walker(Reads::Snooping).that_notes(Notes::Dirty);
    assert_eq!(fresh.walk(0), Some(frame(0)));
    assert_eq!(fresh.write(0), None, "the page is for reading");
    // It is still told when the page is for writing again, and when it is cleared that goes on.
    let changed = world
        .table
        .protect(&world.pin(), pages(0, 2), Perms::ReadWrite);
    assert!(!changed.unwrap().lost);
    check(&written, &world.dirty(pages(0, 2), true));
    assert_eq!(world.dirty(pages(0, 2), false), BTreeSet::new());
    assert_eq!(fresh.write(0), Some(frame(0)));
    assert!(world.dirty(pages(0, 2), false).contains(&0));
    world.end(&[frame(0), frame(1)]);
}

models! {
    /// Every write is told, before or after the bits are cleared.
    /// Shows: bc03.
    dirty_set_against_clear: Exhaustive, sees ["a write after the flush"], cleared;

    /// A pending word keeps the bit.
    dirty_set_against_unmap: Exhaustive, sees ["the device writes"], || {
        unmapped(PageSize::Size4K, true, Notes::Dirty);
    };

    /// So does that of a large page.
    dirty_set_against_unmap_of_large_page: Exhaustive, sees ["the device writes"], || {
        unmapped(PageSize::Size2M, false, Notes::AccessedAndDirty);
    };

    /// A detached table keeps the bits that come until the receipt.
    dirty_set_against_detach: Exhaustive, sees ["the device writes"], || {
        unmapped(PageSize::Size4K, false, Notes::AccessedAndDirty);
    };

    /// All parts of a split page get the bit.
    dirty_set_against_split: Exhaustive, sees ["the device writes"], || split(Notes::Dirty);

    /// The same with accessed bits.
    noted_against_split: Exhaustive, sees ["the device writes"], || split(Notes::AccessedAndDirty);

    /// A merged page tells of writes through its parts, also those that come late.
    dirty_set_against_merge: Two(3), sees ["the device writes", "a bit comes late"], || {
        merged(Notes::Dirty);
    };

    /// So does a look that asks for its own flush.
    dirty_set_against_merge_and_look: Two(3), sees ["the device writes", "a bit comes late"],
        merged_and_told;

    /// The bits of a merged page are told when it is unmapped.
    dirty_set_against_merge_and_unmap: Two(3), sees ["the device writes"], merged_and_unmapped;

    /// A loss of permission keeps the bit.
    dirty_set_against_protect: Two(3), sees ["the device writes"], protected;
}
