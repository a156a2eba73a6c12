//! Rows whose walkers do not snoop: what is written is written back and fenced.

use super::lanes::{Ready, Window};
use super::{BLANK, Job, Row, Scale};
use crate::engine::Engine;
use crate::lane::Lane;
use crate::order::{Order, Shuffled};
use crate::window::PAGES_2M;

use hv_core::PageSize;

/// The engine in memory whose walkers read memory.
type Unsnooped = Engine<false>;

/// Pages of 64 KiB.
const PAGES_64K: u64 = 16;

/// The window of whole ranges.
fn window(scale: &Scale) -> Window {
    Window {
        pages: scale.pages,
        size: PageSize::Size4K,
    }
}

/// The window of single pages, each of which costs a hundred times as much as one that is snooped.
fn small(scale: &Scale) -> Window {
    Window {
        pages: scale.pages / 8,
        ..window(scale)
    }
}

fn map_singles(scale: &Scale) -> Vec<Lane> {
    let window = small(scale);
    let order = Shuffled::new(window.pages);
    let (first, second, third) = (order.clone(), order.clone(), order);
    let mut lanes = vec![window.floor(Ready::Vacant, window.pages, move |floor| {
        floor.map_cas_back(first.pages());
    })];
    lanes.extend(window.engines(
        Ready::Vacant,
        window.pages,
        move |engine: &Unsnooped| engine.map_shared::<_, false>(&second),
        move |engine: &Unsnooped| engine.map_shared::<_, true>(&third),
    ));
    lanes
}

fn unmap_singles(scale: &Scale) -> Vec<Lane> {
    let window = small(scale);
    let order = Shuffled::new(window.pages);
    let (first, second, third) = (order.clone(), order.clone(), order);
    let mut lanes = vec![window.floor(Ready::Filled, window.pages, move |floor| {
        floor.unmap_swap_back(first.pages());
    })];
    lanes.extend(window.engines(
        Ready::Filled,
        window.pages,
        move |engine: &Unsnooped| engine.unmap_shared::<_, false>(&second),
        move |engine: &Unsnooped| engine.unmap_shared::<_, true>(&third),
    ));
    lanes
}

fn map_ranges(scale: &Scale, ready: Ready, step: u64, block: u64) -> Vec<Lane> {
    let (window, pages) = (window(scale), scale.pages);
    let mut lanes = vec![window.floor(ready, pages, move |floor| {
        if block == PAGES_2M {
            floor.map_blocks_back::<true>(pages, block);
        } else {
            floor.map_blocks_back::<false>(pages, block);
        }
    })];
    lanes.extend(window.engines(
        ready,
        pages,
        move |engine: &Unsnooped| engine.map_ranges::<false>(step),
        move |engine: &Unsnooped| engine.map_ranges::<true>(step),
    ));
    lanes
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-N1",
        part: "map",
        workload: "map 4K at random, shared, walkers do not snoop",
        floor: "walk, compare-and-swap, clwb, sfence",
        gate: Some(1.3),
        goal: Some(1.07),
        stretch: Some(1.02),
        job: Job::Unsnooped(map_singles),
        ..BLANK
    },
    Row {
        id: "B-N1",
        part: "unmap",
        workload: "unmap 4K at random, shared, walkers do not snoop",
        floor: "walk, swap, clwb, sfence",
        gate: Some(1.3),
        goal: Some(1.07),
        stretch: Some(1.02),
        job: Job::Unsnooped(unmap_singles),
        ..BLANK
    },
    Row {
        id: "B-N2",
        workload: "map 1 GiB as 4K, owned, walkers do not snoop",
        floor: "release stores, clwb per line, sfence per table",
        gate: Some(1.6),
        goal: Some(1.2),
        stretch: Some(1.05),
        job: Job::Unsnooped(|scale| map_ranges(scale, Ready::Cold, scale.pages, PAGES_2M)),
        ..BLANK
    },
    Row {
        id: "B-N3",
        workload: "map ranges of 64 KiB, owned, walkers do not snoop",
        floor: "walk, 16 release stores, 2 clwb, sfence",
        gate: Some(1.4),
        goal: Some(1.15),
        stretch: Some(1.05),
        job: Job::Unsnooped(|scale| map_ranges(scale, Ready::Vacant, PAGES_64K, PAGES_64K)),
        ..BLANK
    },
];
