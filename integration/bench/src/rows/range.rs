//! Rows of whole ranges.

use super::peer::cold_ranges;
use super::{Job, Row, Scale};
use crate::engine::Engine;
use crate::floor::Floor;
use crate::lane::Lane;
use crate::results::Who;

use hv_core::PageSize;

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

/// Maps the window of an empty table in ranges of `step` pages.
fn cold_map(scale: &Scale, step: u64) -> Vec<Lane> {
    let pages = scale.pages;
    let mut lanes = cold_ranges(pages, step);
    let floor = Lane::new(
        Who::Floor,
        pages,
        Floor::new(pages, 1),
        |floor| floor.vacate(),
        move |floor| floor.fill_tables(pages),
    );
    let engine = |who| {
        Lane::new(
            who,
            pages,
            Snooped::new(pages, PageSize::Size4K),
            Engine::renew,
            move |engine: &mut Snooped| match who {
                Who::EnginePinned => engine.map_ranges::<true>(step),
                _ => engine.map_ranges::<false>(step),
            },
        )
    };
    lanes.splice(
        0..0,
        [floor, engine(Who::Engine), engine(Who::EnginePinned)],
    );
    lanes
}

const ROW: Row = Row {
    id: "",
    part: "",
    workload: "",
    floor: "release stores unrolled by cache line",
    unit: "page",
    gate: None,
    goal: None,
    stretch: None,
    recorded: None,
    job: Job::Lanes(|_| vec![]),
};

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    id: "B-R1",
    workload: "map 1 GiB as 4K into an empty table, owned",
    gate: Some(2.1),
    goal: Some(1.5),
    stretch: Some(1.15),
    recorded: Some(8.3),
    job: Job::Lanes(|scale| cold_map(scale, scale.pages)),
    ..ROW
}];
