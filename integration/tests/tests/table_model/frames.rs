//! Running out of frames at every allocation, and inputs at the edges.

use hv_core::{Iova, PageSize, Perms, PhysAddr};
use hv_iommu::table::TableError;
use proptest::prelude::*;

use crate::random::{Draw, config, draws, shape};
use crate::subject::{Job, Shape, State, Subject, pages_of, range};

/// A table with the mappings of `draws` that fit, and the number of the next draw.
fn prepared(shape: Shape, draws: &[Draw]) -> Subject {
    let mut subject = Subject::new(shape);
    for (number, draw) in draws.iter().enumerate() {
        subject.map(&draw.job(shape, number as u64));
    }
    subject
}

proptest! {
    #![proptest_config(config(256))]

    #[cfg_attr(not(hv_fault), test)]
    fn a_map_that_runs_out_of_frames_says_how_many_are_missing(
        shape in shape(),
        draws in draws(5),
    ) {
        let (last, before) = draws.split_last().unwrap();
        let mut job = last.job(shape, before.len() as u64);
        job.spares = 0;
        let subject = prepared(shape, before);
        let Some(leaves) = subject.possible(&job) else { return Ok(()) };
        let needed = subject.try_map(&job).unwrap();
        for granted in 0..needed {
            let mut subject = prepared(shape, before);
            let tables = subject.arena.taken() as u64;
            subject.arena.set_budget(granted as usize);
            let missing = needed - granted;
            prop_assert_eq!(subject.try_map(&job), Err(TableError::OutOfFrames { missing }));
            // Nothing was taken, linked or mapped.
            prop_assert_eq!(subject.arena.taken() as u64, tables);
            subject.look_for_tables();
            subject.compare_all();
            for (page, level) in &leaves {
                subject.compare(page << 12);
                subject.compare(((page + pages_of(*level)) << 12) - 1);
            }
            // With the missing frames, from the platform or handed in.
            subject.arena.set_budget(needed as usize);
            let handed_in = granted.is_multiple_of(2);
            let job = Job { spares: if handed_in { missing } else { 0 }, ..job };
            let tables = subject.try_map(&job);
            prop_assert_eq!(tables, Ok(needed), "with the missing frames");
            prop_assert_eq!(subject.arena.budget(), 0);
            subject.mapped(&job, needed, leaves.clone());
            subject.compare_all();
            subject.end();
        }
    }
}

#[cfg_attr(not(hv_fault), test)]
fn a_table_needs_a_frame_for_its_root() {
    let shape = SHAPES[0];
    let subject = Subject::new(shape);
    subject.arena.set_budget(0);
    let table = subject.another_table();
    assert!(matches!(table, Err(TableError::OutOfFrames { missing: 1 })));
    subject.end();
}

const SHAPES: [Shape; 4] = [
    Shape::plain(3, 3, true),
    Shape::plain(3, 2, false),
    Shape::plain(4, 3, false),
    Shape::plain(4, 1, true),
];

/// One page mapped at `first`.
fn page(first: u64, number: u64) -> Job {
    Job {
        first,
        pages: 1,
        to: (number + 1) << 20,
        perms: Perms::ReadWrite,
        largest: PageSize::Size4K,
        shared: false,
        spares: 0,
    }
}

#[cfg_attr(not(hv_fault), test)]
fn addresses_beyond_the_table_lead_to_nobody() {
    for shape in SHAPES {
        let top = 1_u64 << shape.page_bits();
        let mut subject = Subject::new(shape);
        for first in [0, 1, top - 1] {
            subject.map(&page(first, first & 7));
        }
        // The same words, if the upper bits were dropped.
        for first in [top, top + 1, 2 * top - 1] {
            subject.map(&page(first, 9));
            let _ = subject.table.unmap(&subject.guard(), range(first, 1));
            let redeemed = subject.try_redeem(range(first, 1), PhysAddr::new(0));
            assert!(
                matches!(redeemed, Err(TableError::TooWide { .. })),
                "{redeemed:?}"
            );
            let at = Iova::new(first << 12);
            let unmapped = subject
                .table
                .unmap_shared(&subject.guard(), at, PageSize::Size4K);
            assert!(
                matches!(unmapped, Err(TableError::TooWide { .. })),
                "{unmapped:?}"
            );
            subject.compare(first << 12);
        }
        // A range that only ends beyond it.
        let _ = subject.table.unmap(&subject.guard(), range(top - 1, 2));
        subject.compare_all();
        subject.end();
    }
}

#[cfg_attr(not(hv_fault), test)]
fn a_range_is_redeemed_only_as_the_one_run_that_it_was_mapped_as() {
    for shape in SHAPES {
        let mut subject = Subject::new(shape);
        subject.map(&page(100, 0));
        subject.map(&page(101, 1));
        subject.map(&page(103, 2));
        for first in [100, 101, 103] {
            subject.unmap(first);
        }
        let redeem = |first, pages, number: u64| {
            let to = PhysAddr::new((number + 1) << 32);
            subject.try_redeem(range(first, pages), to)
        };
        let at = |page: u64| Iova::new(page << 12);
        let broken = redeem(100, 2, 0);
        let found = PhysAddr::new(2 << 32);
        let expected = PhysAddr::new((1 << 32) + 0x1000);
        assert_eq!(
            broken,
            Err(TableError::NotContiguous {
                at: at(101),
                expected,
                found
            })
        );
        assert_eq!(
            redeem(102, 2, 2),
            Err(TableError::NotMapped { at: at(102) })
        );
        assert_eq!(
            redeem(103, 2, 2),
            Err(TableError::NotMapped { at: at(104) })
        );
        // Nothing was changed by the refusals.
        for first in [100, 101, 103] {
            subject.redeem(first);
        }
        subject.end();
    }
}

#[cfg_attr(not(hv_fault), test)]
fn a_part_of_a_large_page_is_neither_unmapped_nor_redeemed() {
    let shape = SHAPES[0];
    let mut subject = Subject::new(shape);
    let job = Job {
        pages: 512,
        largest: PageSize::Size2M,
        ..page(512, 0)
    };
    subject.map(&job);
    let _ = subject.table.unmap(&subject.guard(), range(512, 511));
    subject.compare_all();
    subject.unmap(512);
    let redeemed = subject.try_redeem(range(513, 511), PhysAddr::new((1 << 32) + 0x1000));
    assert_eq!(
        redeemed,
        Err(TableError::NotMapped {
            at: Iova::new(513 << 12)
        })
    );
    subject.redeem(512);
    subject.end();
}

#[cfg_attr(not(hv_fault), test)]
fn what_is_forgotten_stays_named_until_the_end() {
    for shape in SHAPES {
        let mut subject = Subject::new(shape);
        let job = Job {
            pages: 600,
            largest: PageSize::Size2M,
            ..page(512, 0)
        };
        subject.map(&job);
        subject.unmap(512);
        subject.regions.get_mut(&512).unwrap().state = State::Forgotten;
        for first in [512, 700, 1023, 1024, 1111] {
            subject.map(&page(first, 1));
            subject.map(&Job {
                shared: true,
                ..page(first, 2)
            });
        }
        assert_eq!(subject.regions.len(), 1, "something was mapped over it");
        // The end hands its frames out: see there.
        subject.end();
    }
}
