//! Rows of whole ranges.

use std::rc::Rc;

use super::lanes::{Ready, Window};
use super::peer::{self, Ranges};
use super::{BLANK, Job, Row, Scale};
use crate::engine::{self, Engine};
use crate::floor::Floor;
use crate::lane::Lane;
use crate::order::Random;
use crate::results::Who;
use crate::window::{PAGES_1G, PAGES_2M};

use hv_core::{IovaRange, PageSize};

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

/// Pages of 64 KiB.
const PAGES_64K: u64 = 16;
/// Pages of the ranges that are redeemed: half a table, so that no table was detached.
const PAGES_HALF: u64 = 256;

/// The window of a row that maps by leaves of `size`: enough of them that a clock can tell.
fn window(scale: &Scale, size: PageSize) -> Window {
    let times = match size {
        PageSize::Size4K => 1,
        PageSize::Size2M => 64,
        _ => 8192,
    };
    let pages = match size {
        PageSize::Size4K => scale.pages,
        // A short run looks at a few ranges only.
        _ if scale.is_short() => 4 * PAGES_1G,
        _ => times * scale.pages,
    };
    Window { pages, size }
}

/// Maps the window in ranges of `step` pages.
fn map(
    scale: &Scale,
    size: PageSize,
    ready: Ready,
    step: u64,
    floor: impl Fn(&Floor, u64) + 'static,
) -> Vec<Lane> {
    let window = window(scale, size);
    let (pages, count) = (window.pages, window.leaves());
    let mut lanes = vec![window.floor(ready, count, move |subject| floor(subject, pages))];
    lanes.extend(window.engines::<true>(
        ready,
        count,
        move |engine| engine.map_ranges::<false>(step),
        move |engine| engine.map_ranges::<true>(step),
    ));
    let leaf = size.pages();
    let how = Ranges { pages, step, leaf };
    lanes.extend(peer::map_ranges(how, ready == Ready::Cold));
    lanes
}

/// Unmaps the window in ranges of `step` pages.
fn unmap(
    scale: &Scale,
    size: PageSize,
    step: u64,
    floor: impl Fn(&Floor, u64) + 'static,
) -> Vec<Lane> {
    let window = window(scale, size);
    let (pages, count) = (window.pages, window.leaves());
    let ready = Ready::Filled;
    let mut lanes = vec![window.floor(ready, count, move |subject| floor(subject, pages))];
    lanes.extend(window.engines::<true>(
        ready,
        count,
        move |engine| engine.unmap_ranges::<false>(step),
        move |engine| engine.unmap_ranges::<true>(step),
    ));
    let leaf = size.pages();
    lanes.extend(peer::unmap_ranges(Ranges { pages, step, leaf }));
    lanes
}

/// Redeems the window in ranges of half a table.
fn redeem(scale: &Scale) -> Vec<Lane> {
    let window = window(scale, PageSize::Size4K);
    let pages = window.pages;
    let mut lanes = vec![window.floor(Ready::Pending, pages, move |floor| {
        floor.unmap_blocks::<1>(pages, PAGES_HALF);
    })];
    lanes.extend(window.engines::<true>(
        Ready::Pending,
        pages,
        |engine| engine.redeem_ranges::<false>(PAGES_HALF),
        |engine| engine.redeem_ranges::<true>(PAGES_HALF),
    ));
    lanes
}

/// Opens 1 GiB whose tables were detached, where walkers note what they wrote: every word is looked at for that.
fn redeem_dirty(scale: &Scale) -> Vec<Lane> {
    let pages = scale.pages;
    let floor = Lane::new(
        Who::Floor,
        pages,
        Floor::new(pages, 1),
        |floor| {
            floor.attach_tables();
            floor.fill();
        },
        move |floor| floor.detach_scanned_tables(pages),
    );
    let engine = Lane::new(
        Who::Engine,
        pages,
        Snooped::with_dirty(pages, PageSize::Size4K, true),
        move |engine: &mut Snooped| {
            engine.fill();
            engine.unmap_ranges::<false>(pages);
        },
        move |engine| engine.redeem_ranges::<false>(pages),
    );
    vec![floor, engine]
}

/// Unmaps the window, one table a call.
fn detach(scale: &Scale) -> Vec<Lane> {
    let pages = scale.pages;
    let window = window(scale, PageSize::Size4K);
    let tables = pages / PAGES_2M;
    let mut lanes = vec![window.floor(Ready::Filled, tables, move |floor| {
        floor.detach_tables(pages)
    })];
    lanes.extend(window.engines::<true>(
        Ready::Filled,
        tables,
        |engine| engine.unmap_ranges::<false>(PAGES_2M),
        |engine| engine.unmap_ranges::<true>(PAGES_2M),
    ));
    lanes
}

/// Ranges of 4 KiB to 4 MiB, their lengths spread evenly over the doublings, one behind the other.
fn random_ranges(pages: u64) -> Vec<(u64, u64)> {
    const DOUBLINGS: u64 = 10;
    const STEPS: u64 = 1 << 16;
    let mut random = Random::new();
    let mut ranges = Vec::new();
    let mut next = 0;
    while next < pages {
        let power = random.below(DOUBLINGS * STEPS) as f64 / STEPS as f64;
        let length = (power.exp2() as u64).clamp(1, pages - next);
        ranges.push((next, length));
        next += length;
    }
    ranges
}

fn pair_random_ranges(scale: &Scale) -> Vec<Lane> {
    let pages = scale.pages;
    let ranges: Rc<[(u64, u64)]> = random_ranges(pages).into();
    let floor = {
        let ranges = ranges.clone();
        Lane::new(
            Who::Floor,
            pages,
            Floor::new(pages, 1),
            |floor| {
                floor.attach_tables();
                floor.vacate();
            },
            move |floor| floor.pair_ranges(&ranges),
        )
    };
    let engine = |who| {
        let ranges: Rc<[IovaRange]> = ranges
            .iter()
            .map(|(page, pages)| engine::range(*page, *pages))
            .collect();
        let before = ranges.clone();
        let mut pending = false;
        Lane::new(
            who,
            pages,
            Snooped::new(pages, PageSize::Size4K),
            move |engine: &mut Snooped| {
                if pending {
                    engine.redeem_each(&before);
                } else {
                    engine.vacate();
                }
                pending = true;
            },
            move |engine| match who {
                Who::EnginePinned => engine.pair_ranges::<true>(&ranges),
                _ => engine.pair_ranges::<false>(&ranges),
            },
        )
    };
    vec![floor, engine(Who::Engine), engine(Who::EnginePinned)]
}

const UNROLLED: &str = "release stores, unrolled by cache line";

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-U3",
        part: "range",
        workload: "redeem ranges of 1 MiB after the receipt, owned",
        floor: "a walk per range, load and release store per page",
        gate: Some(2.0),
        goal: Some(1.5),
        stretch: Some(1.2),
        job: Job::Lanes(redeem),
        ..BLANK
    },
    Row {
        id: "B-R1",
        workload: "map 1 GiB as 4K into an empty table, owned",
        floor: UNROLLED,
        gate: Some(2.1),
        goal: Some(1.5),
        stretch: Some(1.15),
        job: Job::Lanes(|scale| {
            map(
                scale,
                PageSize::Size4K,
                Ready::Cold,
                scale.pages,
                |floor, pages| {
                    floor.map_blocks::<1>(pages, PAGES_2M);
                },
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-R2",
        workload: "map ranges of 2 MiB as 4K into an empty table, owned",
        floor: UNROLLED,
        gate: Some(3.1),
        goal: Some(2.1),
        stretch: Some(1.6),
        job: Job::Lanes(|scale| {
            map(
                scale,
                PageSize::Size4K,
                Ready::Cold,
                PAGES_2M,
                |floor, pages| {
                    floor.map_blocks::<1>(pages, PAGES_2M);
                },
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-R3",
        part: "map",
        workload: "map ranges of 64 KiB as 4K, owned",
        floor: "a walk and 16 release stores",
        gate: Some(3.0),
        goal: Some(2.4),
        stretch: Some(1.9),
        job: Job::Lanes(|scale| {
            map(
                scale,
                PageSize::Size4K,
                Ready::Vacant,
                PAGES_64K,
                |floor, pages| {
                    floor.map_blocks::<1>(pages, PAGES_64K);
                },
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-R3",
        part: "unmap",
        workload: "unmap ranges of 64 KiB as 4K, owned",
        floor: "a walk and 16 loads and release stores",
        gate: Some(3.0),
        goal: Some(2.4),
        stretch: Some(1.9),
        job: Job::Lanes(|scale| {
            unmap(scale, PageSize::Size4K, PAGES_64K, |floor, pages| {
                floor.unmap_blocks::<1>(pages, PAGES_64K);
            })
        }),
        ..BLANK
    },
    Row {
        id: "B-R4",
        part: "token",
        workload: "unmap 1 GiB as 4K, whole tables by token",
        floor: "one swap per table",
        gate: Some(12.0),
        goal: Some(2.5),
        stretch: Some(1.5),
        remark: "the engine takes 1 GiB out by one exchange of the word above its 512 tables, so it does less than the floor and the figure is at the clock's limit; B-C1 detach is about one table",
        job: Job::Lanes(|scale| unmap(scale, PageSize::Size4K, scale.pages, Floor::detach_tables)),
        ..BLANK
    },
    Row {
        id: "B-R4",
        part: "scan",
        workload: "redeem 1 GiB of detached tables, looking for dirty bits",
        floor: "a load per word and a swap per table",
        gate: Some(1.55),
        goal: Some(1.1),
        remark: "frames and tables come back in the same call; without dirty tracking the engine does not look at the words of detached tables",
        job: Job::Lanes(redeem_dirty),
        ..BLANK
    },
    Row {
        id: "B-R5",
        part: "map",
        workload: "map 1 GiB as 2M into an empty table, owned",
        floor: UNROLLED,
        unit: "leaf",
        gate: Some(2.4),
        goal: Some(1.6),
        stretch: Some(1.2),
        job: Job::Lanes(|scale| {
            map(
                scale,
                PageSize::Size2M,
                Ready::Cold,
                PAGES_1G,
                |floor, pages| {
                    floor.map_blocks::<2>(pages, PAGES_2M);
                },
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-R5",
        part: "unmap",
        workload: "unmap 1 GiB as 2M, owned",
        floor: "load and release store",
        unit: "leaf",
        gate: Some(1.2),
        goal: Some(1.0),
        remark: "the engine takes the table of the leaves out whole, so it does less than the floor",
        job: Job::Lanes(|scale| {
            unmap(scale, PageSize::Size2M, PAGES_1G, |floor, pages| {
                floor.unmap_blocks::<2>(pages, PAGES_2M);
            })
        }),
        ..BLANK
    },
    Row {
        id: "B-R6",
        part: "map",
        workload: "map one leaf of 1 GiB, owned",
        floor: "a walk and a release store",
        unit: "leaf",
        gate: Some(2.8),
        goal: Some(1.8),
        stretch: Some(1.3),
        job: Job::Lanes(|scale| {
            map(
                scale,
                PageSize::Size1G,
                Ready::Vacant,
                PAGES_1G,
                |floor, pages| {
                    floor.map_blocks::<3>(pages, 1);
                },
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-R6",
        part: "unmap",
        workload: "unmap one leaf of 1 GiB, owned",
        floor: "a walk, load and release store",
        unit: "leaf",
        gate: Some(2.8),
        goal: Some(1.8),
        stretch: Some(1.3),
        job: Job::Lanes(|scale| {
            unmap(scale, PageSize::Size1G, PAGES_1G, |floor, pages| {
                floor.unmap_blocks::<3>(pages, 1);
            })
        }),
        ..BLANK
    },
    Row {
        id: "B-C1",
        part: "detach",
        workload: "unmap 2 MiB as 4K, one table a call",
        floor: "a walk and a swap",
        unit: "table",
        gate: Some(1.3),
        job: Job::Lanes(detach),
        ..BLANK
    },
    Row {
        id: "B-R7",
        workload: "map and unmap ranges of 4 KiB to 4 MiB, owned",
        floor: "the floors of B-R1, B-R3 and B-R4",
        gate: Some(4.0),
        goal: Some(2.5),
        stretch: Some(2.0),
        job: Job::Lanes(pair_random_ranges),
        ..BLANK
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ranges_fill_the_window_with_all_lengths() {
        let ranges = random_ranges(512 * 512);
        let mut next = 0;
        for (page, pages) in &ranges {
            assert_eq!(*page, next);
            next += pages;
        }
        assert_eq!(next, 512 * 512);
        let longest = ranges.iter().map(|(_, pages)| *pages).max();
        assert!(
            longest > Some(PAGES_2M) && longest <= Some(2 * PAGES_2M),
            "{longest:?}"
        );
        let short = ranges.iter().filter(|(_, pages)| *pages < 32).count() * 2;
        let half = ranges.len() as f64;
        assert!(
            (short as f64 / half - 1.0).abs() < 0.2,
            "half of them are below 128 KiB"
        );
    }
}
