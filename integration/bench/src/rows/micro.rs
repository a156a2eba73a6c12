//! Small pieces of the engine that can be reached from outside.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{BLANK, Job, Row};
use crate::floor::Floor;
use crate::lane::{Lane, Mapped, Subject};
use crate::micro::{Pins, Vacancy};
use crate::results::Who;

/// Times that a guard is taken in a round.
const PINS: u64 = 100_000;

/// One word that a thread announces itself in, as the cheapest pin that is right on every architecture.
struct Slot(AtomicU64);

impl Subject for Slot {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

#[inline(never)]
fn pin_by_hand(slot: &Slot) {
    for _ in 0..PINS {
        // ORDERING: Release, then SeqCst before the first load of a walk, as every pin needs.
        slot.0.store(1, Ordering::Release);
        // ORDERING: SeqCst, as above.
        fence(Ordering::SeqCst);
        // ORDERING: Release: the walk is over.
        slot.0.store(0, Ordering::Release);
    }
}

fn pins() -> Vec<Lane> {
    vec![
        Lane::new(
            Who::Floor,
            PINS,
            Slot(AtomicU64::new(0)),
            |_| {},
            |slot| pin_by_hand(slot),
        ),
        Lane::new(
            Who::Engine,
            PINS,
            Pins::new(),
            |_| {},
            |pins| pins.take(PINS),
        ),
    ]
}

fn scan(pages: u64) -> Vec<Lane> {
    vec![
        Lane::new(
            Who::Floor,
            pages,
            Floor::new(pages, 1),
            |floor| floor.vacate(),
            move |floor| floor.scan(pages),
        ),
        Lane::new(
            Who::Engine,
            pages,
            Vacancy::new(pages),
            |vacancy| vacancy.ready(),
            |vacancy| vacancy.scan(),
        ),
    ]
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-C1",
        part: "pin",
        workload: "take a guard and drop it",
        floor: "store, fence, store",
        unit: "guard",
        gate: Some(1.3),
        remark: "allocation, zeroing and publishing of a table cannot be reached from outside the engine: they are in B-R1 and B-R2",
        job: Job::Lanes(|_| pins()),
        ..BLANK
    },
    Row {
        id: "B-C1",
        part: "scan",
        workload: "look for an empty range, 2 MiB each",
        floor: "a walk and 512 loads",
        unit: "word",
        gate: Some(1.3),
        job: Job::Lanes(|scale| scan(scale.pages)),
        ..BLANK
    },
];
