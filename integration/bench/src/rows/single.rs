//! Rows of single 4 KiB pages.

use std::hint::black_box;

use super::peer::{Act, singles};
use super::{Job, Row, Scale};
use crate::engine::Engine;
use crate::floor::Floor;
use crate::lane::Lane;
use crate::order::{Order, Sequential, Shuffled};
use crate::results::Who;

use hv_core::PageSize;

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

/// The timed part of an engine's lane.
type Timed<O> = Box<dyn Fn(&Snooped, &O)>;

/// Where the timed part of a row begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    Vacant,
    Filled,
    Pending,
    /// Filled, and read in the row's order just before.
    Warm,
}

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
    pinned: impl Fn(&Snooped, &O) + 'static,
    act: Option<Act>,
) -> Vec<Lane> {
    let (pages, count) = (scale.pages, order.count());
    let mut lanes = act.map_or_else(Vec::new, |act| singles(pages, &order, act));
    let warm = order.clone();
    let (first, second, third) = (order.clone(), order.clone(), order);
    let floor = Lane::new(
        Who::Floor,
        count,
        Floor::new(pages, 1),
        move |floor| match ready {
            Ready::Vacant => floor.vacate(),
            Ready::Filled | Ready::Pending => floor.fill(),
            Ready::Warm => {
                floor.fill_once();
                black_box(floor.translate(&warm));
            }
        },
        move |subject| floor(subject, &first),
    );
    let engine = |who, run: Timed<O>, order: O| {
        let warm = order.clone();
        Lane::new(
            who,
            count,
            Snooped::new(pages, PageSize::Size4K),
            move |engine: &mut Snooped| match ready {
                Ready::Vacant => engine.vacate(),
                Ready::Filled => engine.fill(),
                Ready::Pending => engine.leave_pending(),
                Ready::Warm => {
                    engine.fill_once();
                    black_box(engine.translate::<_, false>(&warm));
                }
            },
            move |engine| run(engine, &order),
        )
    };
    let guarded = engine(Who::Engine, Box::new(guarded), second);
    let pinned = engine(Who::EnginePinned, Box::new(pinned), third);
    lanes.splice(0..0, [floor, guarded, pinned]);
    lanes
}

const ROW: Row = Row {
    id: "",
    part: "",
    workload: "",
    floor: "",
    unit: "page",
    gate: None,
    goal: None,
    stretch: None,
    recorded: None,
    job: Job::Lanes(|_| vec![]),
};

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
        recorded: Some(7.4),
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
        ..ROW
    },
    Row {
        id: "B-M2",
        workload: "map 4K at random, shared",
        floor: CAS,
        gate: Some(1.5),
        goal: Some(1.1),
        stretch: Some(1.05),
        recorded: Some(4.6),
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
        ..ROW
    },
    Row {
        id: "B-M3",
        part: "seq",
        workload: "map 4K in sequence, owned",
        floor: STORE,
        gate: Some(2.0),
        goal: Some(1.5),
        stretch: Some(1.2),
        job: Job::Lanes(|scale| {
            let order = sequential(scale);
            row!(
                scale,
                order,
                Vacant,
                Floor::map_store,
                map_owned,
                Some(Act::Map)
            )
        }),
        ..ROW
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
            row!(
                scale,
                order,
                Vacant,
                Floor::map_store,
                map_owned,
                Some(Act::Map)
            )
        }),
        ..ROW
    },
    Row {
        id: "B-U1",
        workload: "unmap 4K in sequence, shared",
        floor: SWAP,
        gate: Some(2.0),
        goal: Some(1.25),
        stretch: Some(1.1),
        recorded: Some(7.9),
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
        ..ROW
    },
    Row {
        id: "B-U2",
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
        ..ROW
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
        ..ROW
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
        recorded: Some(4.9),
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
        ..ROW
    },
    Row {
        id: "B-X1",
        part: "seq",
        workload: "translate in sequence",
        floor: WALK,
        gate: Some(2.0),
        goal: Some(1.15),
        stretch: Some(1.05),
        recorded: Some(11.9),
        job: Job::Lanes(|scale| translate(scale, sequential(scale))),
        ..ROW
    },
    Row {
        id: "B-X1",
        part: "rand",
        workload: "translate at random",
        floor: WALK,
        gate: Some(1.5),
        goal: Some(1.1),
        stretch: Some(1.05),
        recorded: Some(7.4),
        job: Job::Lanes(|scale| translate(scale, Shuffled::new(scale.pages))),
        ..ROW
    },
];

fn translate<O: Order>(scale: &Scale, order: O) -> Vec<Lane> {
    contest(
        scale,
        order,
        Ready::Warm,
        |floor, order| {
            black_box(floor.translate(order));
        },
        |engine, order| {
            black_box(engine.translate::<_, false>(order));
        },
        |engine, order| {
            black_box(engine.translate::<_, true>(order));
        },
        Some(Act::Translate),
    )
}
