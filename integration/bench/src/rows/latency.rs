//! Rows of single times: what one operation takes while others work on the same table.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{BLANK, Job, Own, Row, Scale};
use crate::clock;
use crate::crew;
use crate::engine::Engine;
use crate::order::Shuffled;
use crate::results::{LaneResult, Series};
use crate::stats::Histogram;

use hv_core::PageSize;

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

/// Turns ticks into nanoseconds, without what the look at the counter takes.
#[derive(Clone, Copy, Debug)]
struct Ruler {
    nanos: f64,
    empty: u64,
}

impl Ruler {
    fn new() -> Self {
        let mut histogram = Histogram::default();
        for _ in 0..10_000 {
            let start = clock::ticks();
            histogram.add(clock::ticks() - start);
        }
        Self {
            nanos: clock::tick_nanos(),
            empty: histogram.percentile(0.5),
        }
    }

    fn percentile(self, histogram: &Histogram, of: f64) -> f64 {
        histogram.percentile(of) as f64 * self.nanos
    }

    fn series(self, name: &str, histogram: &Histogram) -> Series {
        let nanos = |(at, count)| (at as f64 * self.nanos, count);
        Series {
            name: name.to_owned(),
            buckets: histogram.filled().map(nanos).collect(),
        }
    }

    fn lane(self, name: &str, histogram: &Histogram) -> LaneResult {
        LaneResult {
            kind: "latency",
            name: name.to_owned(),
            quiet: self.percentile(histogram, 0.5),
            median: self.percentile(histogram, 0.5),
            count: histogram.count() as usize,
            ratio: None,
            paired_ratio: None,
            wall: None,
            threads: None,
            speed_up: None,
        }
    }
}

/// The odd pages of the window, for who disturbs; the even ones belong to who is timed.
fn halves(pages: u64) -> (Shuffled, Shuffled) {
    let all = Shuffled::new(pages);
    (all.share(0, 2), all.share(1, 2))
}

/// Times every operation of `timed` on one thread, while `others` threads do `disturb` until it has ended.
fn beside(
    others: usize,
    timed: impl Fn(&mut Histogram) + Sync,
    disturb: impl Fn(usize) + Sync,
) -> Histogram {
    let processors = clock::processors();
    let (over, begun) = (AtomicBool::new(false), AtomicUsize::new(0));
    let results = crew::run(others + 1, processors, |number| {
        let mut histogram = Histogram::default();
        if number == 0 {
            // ORDERING: Acquire: the others are at work when the first time is taken.
            while begun.load(Ordering::Acquire) < others {
                std::thread::yield_now();
            }
            timed(&mut histogram);
            // ORDERING: Release: the end of the work.
            over.store(true, Ordering::Release);
        } else {
            // ORDERING: Release, as above.
            begun.fetch_add(1, Ordering::Release);
            // ORDERING: Acquire pairs with the store above.
            while !over.load(Ordering::Acquire) {
                disturb(number);
            }
        }
        histogram
    });
    results
        .into_iter()
        .next()
        .map(|(_, histogram)| histogram)
        .unwrap_or_default()
}

/// How many threads disturb: all processors but one.
fn others() -> usize {
    clock::processors().len() - 1
}

fn alone() -> Own {
    Own {
        skipped: Some("this program may use one processor only".to_owned()),
        ..Own::default()
    }
}

/// A reader that translates while the other threads map and unmap in the same tables.
fn reader(scale: &Scale) -> Own {
    let others = others();
    if others == 0 {
        return alone();
    }
    let ruler = Ruler::new();
    let (even, odd) = halves(scale.pages);
    let engine = Snooped::new(scale.pages, PageSize::Size4K);
    engine.vacate();
    engine.map_shared::<_, false>(&even);
    let share: Vec<Shuffled> = (0..others)
        .map(|number| odd.nth_of(number as u64, others as u64))
        .collect();
    let (mut calm, mut disturbed) = (Histogram::default(), Histogram::default());
    // Whatever else the machine does is to hit both alike.
    for _ in 0..2 * scale.repeats() {
        let read = |out: &mut Histogram| engine.translate_timed(&even, ruler.empty, out);
        calm.merge(&beside(0, read, |_| {}));
        disturbed.merge(&beside(others, read, |number| {
            let mine = &share[number - 1];
            engine.pair_shared::<_, false>(mine);
            engine.redeem_shared(mine);
        }));
    }
    let (before, after) = (
        ruler.percentile(&calm, 0.999),
        ruler.percentile(&disturbed, 0.999),
    );
    Own {
        measure: "ratio",
        value: Some(after / before.max(ruler.nanos)),
        notes: vec![format!(
            "p99.9 alone {before:.0} ns, with {others} writers {after:.0} ns, by the processor's counter around each lookup"
        )],
        lanes: vec![
            ruler.lane("translate alone", &calm),
            ruler.lane("translate beside writers", &disturbed),
        ],
        ..Own::default()
    }
}

/// Single maps and unmaps of shared words, alone and while the other threads work on the same tables.
fn histogram(scale: &Scale) -> Own {
    let others = others();
    let ruler = Ruler::new();
    let (even, odd) = halves(scale.pages);
    let engine = Snooped::new(scale.pages, PageSize::Size4K);
    engine.vacate();
    let share: Vec<Shuffled> = (0..others)
        .map(|number| odd.nth_of(number as u64, others as u64))
        .collect();
    let mut lanes = Vec::new();
    let mut histogram = Vec::new();
    let mut notes = Vec::new();
    for (busy, beside_whom) in [(0, "alone"), (others, "beside writers")] {
        if busy == 0 && !lanes.is_empty() {
            continue;
        }
        let (mut maps, mut unmaps) = (Histogram::default(), Histogram::default());
        for _ in 0..scale.repeats() {
            let disturb = |number: usize| {
                let mine = &share[number - 1];
                engine.pair_shared::<_, false>(mine);
                engine.redeem_shared(mine);
            };
            let timed = |out: &mut Histogram| engine.map_timed(&even, ruler.empty, out);
            maps.merge(&beside(busy, timed, disturb));
            let timed = |out: &mut Histogram| engine.unmap_timed(&even, ruler.empty, out);
            unmaps.merge(&beside(busy, timed, disturb));
            engine.redeem_shared(&even);
        }
        for (what, times) in [("map", &maps), ("unmap", &unmaps)] {
            let name = format!("{what} {beside_whom}");
            let at = |of| ruler.percentile(times, of);
            notes.push(format!(
                "{name}: p50 {:.0} ns, p99 {:.0} ns, p99.99 {:.0} ns of {} operations",
                at(0.5),
                at(0.99),
                at(0.9999),
                times.count()
            ));
            lanes.push(ruler.lane(&name, times));
            histogram.push(ruler.series(&name, times));
        }
    }
    Own {
        measure: "histogram",
        lanes,
        notes,
        histogram,
        ..Own::default()
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-T5",
        workload: "p99.9 of a lookup beside writers, over p99.9 alone",
        gate: Some(3.0),
        goal: Some(1.5),
        job: Job::Own(reader),
        ..BLANK
    },
    Row {
        id: "B-L1",
        workload: "times of single maps and unmaps, shared",
        job: Job::Own(histogram),
        ..BLANK
    },
];
