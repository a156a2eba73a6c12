//! Rows of single 4 KiB pages.

use std::hint::black_box;

use super::lanes::{Ready, Window};
use super::peer::{Act, singles};
use super::{BLANK, Job, Row, Scale};
use crate::engine::Engine;
use crate::floor::Floor;
use crate::lane::Lane;
use crate::order::{Order, Sequential, Shuffled};
use crate::results::Who;

use hv_core::PageSize;

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

fn sequential(scale: &Scale) -> Sequential {
    Sequential {
        first: 0,
        count: scale.pages,
    }
}

/// The floor, the engine under one guard and with a pin per call, and the peers.
fn contest<O: Order>(
    scale: &Scale,
    order: O,
    ready: Ready,
    floor: impl Fn(&Floor, &O) + 'static,
    guarded: impl Fn(&Snooped, &O) + 'static,
    pinned: impl Fn(&Snooped, &O) + Clone + 'static,
    act: Option<Act>,
) -> Vec<Lane> {
    let count = order.count();
    let window = Window {
        pages: scale.pages,
        size: PageSize::Size4K,
    };
    let peers = act.map_or_else(Vec::new, |act| singles(scale.pages, &order, act));
    let (first, second, third) = (order.clone(), order.clone(), order);
    let mut lanes = vec![window.floor(ready, count, move |subject| floor(subject, &first))];
    lanes.extend(window.engines::<true>(
        ready,
        count,
        move |engine| guarded(engine, &second),
        move |engine| pinned(engine, &third),
    ));
    lanes.extend(peers);
    lanes
}

/// A row of single pages: the same operation of floor, engine and peers.
macro_rules! row {
    ($scale:ident, $order:expr, $ready:ident, $floor:path, $engine:ident, $act:expr) => {
        contest(
            $scale,
            $order,
            Ready::$ready,
            $floor,
            Engine::$engine::<_, false>,
            Engine::$engine::<_, true>,
            $act,
        )
    };
}

const CAS: &str = "4-level walk with checks, compare-and-swap";
const SWAP: &str = "4-level walk with checks, swap";
const STORE: &str = "4-level walk with checks, release store";
const LOAD_STORE: &str = "4-level walk with checks, load, release store";
const WALK: &str = "4-level walk with checks";

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-M1",
        workload: "map 4K in sequence, shared",
        floor: CAS,
        gate: Some(2.0),
        goal: Some(1.35),
        stretch: Some(1.25),
        job: Job::Lanes(|scale| {
            let order = sequential(scale);
            row!(
                scale,
                order,
                Vacant,
                Floor::map_cas,
                map_shared,
                Some(Act::Map)
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-M2",
        workload: "map 4K at random, shared",
        floor: CAS,
        gate: Some(1.5),
        goal: Some(1.1),
        stretch: Some(1.05),
        job: Job::Lanes(|scale| {
            let order = Shuffled::new(scale.pages);
            row!(
                scale,
                order,
                Vacant,
                Floor::map_cas,
                map_shared,
                Some(Act::Map)
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-M3",
        part: "seq",
        workload: "map 4K in sequence, owned",
        floor: STORE,
        gate: Some(2.0),
        goal: Some(1.5),
        stretch: Some(1.2),
        remark: "floor and engine only store, since the owner of a free range knows that it is vacant; two more lanes look at the word first, which shows what it costs to notice an overlap",
        job: Job::Lanes(|scale| {
            let order = sequential(scale);
            map_owned(scale, order)
        }),
        ..BLANK
    },
    Row {
        id: "B-M3",
        part: "rand",
        workload: "map 4K at random, owned",
        floor: STORE,
        gate: Some(1.5),
        goal: Some(1.3),
        stretch: Some(1.15),
        job: Job::Lanes(|scale| {
            let order = Shuffled::new(scale.pages);
            map_owned(scale, order)
        }),
        ..BLANK
    },
    Row {
        id: "B-U1",
        workload: "unmap 4K in sequence, shared",
        floor: SWAP,
        gate: Some(2.0),
        goal: Some(1.25),
        stretch: Some(1.1),
        job: Job::Lanes(|scale| {
            let order = sequential(scale);
            row!(
                scale,
                order,
                Filled,
                Floor::unmap_swap,
                unmap_shared,
                Some(Act::Unmap)
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-U2",
        part: "plain",
        workload: "unmap 4K in sequence, owned, no dirty tracking",
        floor: LOAD_STORE,
        gate: Some(1.5),
        goal: Some(1.2),
        stretch: Some(1.1),
        job: Job::Lanes(|scale| {
            let order = sequential(scale);
            row!(
                scale,
                order,
                Filled,
                Floor::unmap_store,
                unmap_owned,
                Some(Act::Unmap)
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-U2",
        part: "dirty",
        workload: "unmap 4K in sequence, owned, dirty tracking",
        floor: SWAP,
        job: Job::Lanes(|scale| unmap_dirty(scale, sequential(scale))),
        ..BLANK
    },
    Row {
        id: "B-U3",
        part: "single",
        workload: "redeem 4K after the receipt, owned",
        floor: LOAD_STORE,
        gate: Some(2.0),
        goal: Some(1.5),
        stretch: Some(1.2),
        job: Job::Lanes(|scale| {
            let order = sequential(scale);
            row!(
                scale,
                order,
                Pending,
                Floor::unmap_store,
                redeem_owned,
                None
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-P1",
        part: "S",
        workload: "map and unmap 4K at random, shared",
        floor: "the floors of B-M2 and B-U1",
        unit: "pair",
        gate: Some(1.55),
        goal: Some(1.1),
        stretch: Some(1.05),
        remark: "pages are redeemed between rounds, which is not timed",
        job: Job::Lanes(|scale| {
            let order = Shuffled::new(scale.pages);
            row!(
                scale,
                order,
                Vacant,
                Floor::pair_cas,
                pair_shared,
                Some(Act::Pair)
            )
        }),
    },
    Row {
        id: "B-P1",
        part: "O",
        workload: "map and unmap 4K at random, owned",
        floor: "the floors of B-M3 and B-U2",
        unit: "pair",
        gate: Some(1.5),
        goal: Some(1.25),
        stretch: Some(1.1),
        job: Job::Lanes(|scale| {
            let order = Shuffled::new(scale.pages);
            row!(
                scale,
                order,
                Vacant,
                Floor::pair_store,
                pair_owned,
                Some(Act::Pair)
            )
        }),
        ..BLANK
    },
    Row {
        id: "B-X1",
        part: "seq",
        workload: "translate in sequence",
        floor: WALK,
        gate: Some(2.0),
        goal: Some(1.15),
        stretch: Some(1.05),
        job: Job::Lanes(|scale| translate(scale, sequential(scale))),
        ..BLANK
    },
    Row {
        id: "B-X1",
        part: "rand",
        workload: "translate at random",
        floor: WALK,
        gate: Some(1.5),
        goal: Some(1.1),
        stretch: Some(1.05),
        job: Job::Lanes(|scale| translate(scale, Shuffled::new(scale.pages))),
        ..BLANK
    },
];

/// Maps in owned words. Two more lanes, of floor and engine, look at each word before they store, as who reports an overlap
/// has to; the owner of a free range knows that there is none.
fn map_owned<O: Order>(scale: &Scale, order: O) -> Vec<Lane> {
    let looks = {
        let (pages, order) = (scale.pages, order.clone());
        Lane::new(
            Who::Variant("floor that looks at the word first"),
            order.count(),
            Floor::new(pages, 1),
            |floor| floor.vacate(),
            move |floor| floor.map_checked(&order),
        )
    };
    let checked = {
        let order = order.clone();
        Lane::new(
            Who::Variant("engine that looks at the word first"),
            order.count(),
            Snooped::new(scale.pages, PageSize::Size4K),
            |engine: &mut Snooped| engine.vacate(),
            move |engine| engine.map_checked(&order),
        )
    };
    let mut lanes = row!(
        scale,
        order,
        Vacant,
        Floor::map_store,
        map_owned,
        Some(Act::Map)
    );
    lanes.extend([looks, checked]);
    lanes
}

/// Unmaps where walkers may note at any moment that they wrote through a leaf.
fn unmap_dirty(scale: &Scale, order: Sequential) -> Vec<Lane> {
    let (pages, count) = (scale.pages, order.count());
    let window = Window {
        pages,
        size: PageSize::Size4K,
    };
    let mut lanes = vec![window.floor(Ready::Filled, count, move |floor| floor.unmap_swap(&order))];
    lanes.extend([Who::Engine, Who::EnginePinned].map(|who| {
        Lane::new(
            who,
            count,
            Snooped::with_dirty(pages, PageSize::Size4K, true),
            |engine: &mut Snooped| engine.fill(),
            move |engine| match who {
                Who::EnginePinned => engine.unmap_owned::<_, true>(&order),
                _ => engine.unmap_owned::<_, false>(&order),
            },
        )
    }));
    lanes
}

/// Looks pages up that were looked up in the same order just before.
fn translate<O: Order>(scale: &Scale, order: O) -> Vec<Lane> {
    let (pages, count) = (scale.pages, order.count());
    let peers = singles(pages, &order, Act::Translate);
    let floor = {
        let (before, order) = (order.clone(), order.clone());
        Lane::new(
            Who::Floor,
            count,
            Floor::new(pages, 1),
            move |floor| {
                floor.fill_once();
                black_box(floor.translate(&before));
            },
            move |floor| {
                black_box(floor.translate(&order));
            },
        )
    };
    let engine = |who| {
        let (before, order) = (order.clone(), order.clone());
        Lane::new(
            who,
            count,
            Snooped::new(pages, PageSize::Size4K),
            move |engine: &mut Snooped| {
                engine.fill_once();
                black_box(engine.translate::<_, false>(&before));
            },
            move |engine| {
                let _stay = (who == Who::EngineStay).then(|| engine.enter());
                black_box(match who {
                    Who::Engine => engine.translate::<_, false>(&order),
                    _ => engine.translate::<_, true>(&order),
                });
            },
        )
    };
    let mut lanes = vec![floor];
    lanes.extend([Who::Engine, Who::EnginePinned, Who::EngineStay].map(engine));
    lanes.extend(peers);
    lanes
}
