//! Models of what ends: a shared page that two CPUs unmap, a frame that is used again, the table.

use hv_core::PageSize;
use hv_iommu::quiesce::RetireEpoch;
use hv_iommu::table::TableError;

use crate::explore::{models, must_fail, saw};
use crate::hardware::Reads;
use crate::world::{World, frame, iova, pages};

/// Two CPUs unmap and redeem one page.
fn two_unmappers() {
    let unmap = |world: &World| {
        let (guard, size) = (world.pin(), PageSize::Size4K);
        match world.table.unmap_shared(&guard, iova(0), size) {
            Ok(to) => {
                assert_eq!(to, frame(0));
                world
                    .table
                    .redeem_shared(&guard, iova(0), to, size)
                    .unwrap();
                true
            }
            Err(TableError::NotMapped { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    };
    let world = World::new(2, Reads::Snooping, [2, 1, 0]);
    world.map(0, frame(0)).unwrap();
    let other = world.on_cpu(1, move |world| unmap(world));
    let mine = unmap(&world);
    assert_ne!(mine, other.join().unwrap(), "one of them unmapped it");
    assert_eq!(world.translate(0), None);
    world.end(&[]);
}

/// One CPU ends the table while another walks and maps under guards.
fn end_against_walk(waits: impl Fn(&World, RetireEpoch) -> bool) {
    let world = World::new(2, Reads::Snooping, [2, 1, 0]);
    world.map(0, frame(0)).unwrap();
    let other = world.on_cpu(1, |world| {
        let found = world.translate(0);
        assert!(found.is_none_or(|to| to == frame(0)));
        match world.map(2, frame(2)) {
            Ok(_) => true,
            Err(TableError::Ended) => false,
            Err(error) => panic!("{error}"),
        }
    });
    let root = world.table.close().expect("ended twice");
    let epoch = world.quiescence.retire_epoch();
    let early = waits(&world, epoch).then(|| world.drain(root));
    let mapped = other.join().unwrap();
    let named = early.unwrap_or_else(|| world.drain(root));
    let expected = [frame(0), frame(2)];
    world.check_drained(&named, &expected[..if mapped { 2 } else { 1 }]);
    assert_eq!(world.map(1, frame(1)), Err(TableError::Ended));
}

fn wait(world: &World, epoch: RetireEpoch) -> bool {
    let passed = (0..3).any(|_| world.quiescence.has_passed(epoch));
    if passed {
        saw("the table ends while the other CPU runs");
    }
    passed
}

/// Unmaps a page and uses its frame for something else, against a device that keeps what it read.
fn unmap_flush_reuse(reads: Reads, waits: bool, at_place: bool) {
    let world = World::new(2, reads, [3, 0, 0]);
    let place = match at_place {
        true => Some(world.map_page(0, frame(0))),
        false => {
            world.map(0, frame(0)).unwrap();
            None
        }
    };
    let device = world.on_cpu(2, move |world| {
        let mut walker = world.walker(reads);
        let access = |kept| {
            if let Some(to) = kept {
                assert_eq!(to, frame(0));
                world.arena.pause();
                world.content(to).reach();
            }
        };
        let mut kept = walker.walk(0);
        access(kept);
        if world.serve(0, &mut walker) {
            kept = walker.walk(0);
        }
        access(kept);
        world.access(&mut walker, 3, &[frame(0)]);
    });
    match place {
        Some(place) => world.unmap_page(place),
        None => {
            let _ = world.table.unmap(&world.pin(), pages(0, 1));
        }
    }
    world.ask(0);
    let receipt = world.has_receipt(0, 2);
    if receipt {
        saw("there is a receipt");
    }
    if receipt || !waits {
        match place {
            Some(place) => world.redeem_page(place, frame(0)),
            None => assert_eq!(world.redeem(pages(0, 1), frame(0)), Ok(0)),
        }
        // This writes the frame: nothing may reach it by the old mapping any more.
        world.map(3, frame(0)).unwrap();
        world.tell(1 << 3);
    }
    device.join().unwrap();
    world.end(&[frame(0)]);
}

models! {
    /// Of two CPUs that unmap one page of a shared range, one gets the frame.
    /// Shows: bc17.
    a_shared_page_is_unmapped_and_redeemed_once: Exhaustive, sees [], two_unmappers;

    /// No table is freed under a walk.
    /// Shows: bc18.
    the_end_waits_for_walkers: Two(3), sees ["the table ends while the other CPU runs"], || {
        end_against_walk(wait);
    };

    /// A frame is used again only when the device forgot it.
    /// Shows: bc02.
    no_translation_survives_its_receipt: Two(3), sees ["there is a receipt"], || {
        unmap_flush_reuse(Reads::Snooping, true, false);
    };

    /// The same for a walker that does not snoop.
    no_translation_survives_its_receipt_memory: Two(3), sees ["there is a receipt"], || {
        unmap_flush_reuse(Reads::Memory, true, false);
    };

    /// The same for a page whose owner finds it by its place, without a guard.
    no_translation_at_its_place_survives_its_receipt: Two(3), sees ["there is a receipt"], || {
        unmap_flush_reuse(Reads::Snooping, true, true);
    };

    /// The same for a walker that does not snoop.
    no_translation_at_its_place_survives_its_receipt_memory: Two(3), sees ["there is a receipt"], || {
        unmap_flush_reuse(Reads::Memory, true, true);
    };
}

must_fail! {
    /// The table's end does not wait for the grace period.
    the_end_does_not_wait: Two(3), || end_against_walk(|_, _| true);

    /// A frame is used again without a receipt.
    no_receipt: Two(3), || unmap_flush_reuse(Reads::Snooping, false, false);
}
