//! Rows of single times: what one operation takes while others work on the same table.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{BLANK, Job, Own, Row, Scale};
use crate::engine::Engine;
use crate::lane::nanos;
use crate::order::{Sequential, Shuffled};
use crate::results::{LaneResult, Series};
use crate::stats::{Histogram, Summary};
use crate::window::PAGES_2M;
use crate::{arena, clock, crew};

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

/// Single maps and unmaps of shared words: alone, and while the other threads give empty tables back, map and unmap.
fn histogram(scale: &Scale) -> Own {
    let others = others();
    let ruler = Ruler::new();
    let (even, odd) = halves(scale.pages);
    let engine = Snooped::new(scale.pages, PageSize::Size4K);
    engine.vacate();
    let share: Vec<Shuffled> = (0..others)
        .map(|number| odd.nth_of(number as u64, others as u64))
        .collect();
    // A row of four: maps and unmaps, alone and beside a reclaimer.
    let mut times: [Histogram; 4] = Default::default();
    for _ in 0..scale.repeats() {
        for (busy, at) in [(0, 0), (others, 2)] {
            let disturb = |number: usize| {
                // Tables are empty at times only: most steps look, freeze and are thawed.
                engine.reclaim_step();
                let mine = &share[number - 1];
                engine.pair_shared::<_, false>(&mine.nth_of(0, 64));
                engine.redeem_shared(&mine.nth_of(0, 64));
            };
            let timed = |out: &mut Histogram| engine.map_timed(&even, ruler.empty, out);
            times[at].merge(&beside(busy, timed, disturb));
            let timed = |out: &mut Histogram| engine.unmap_timed(&even, ruler.empty, out);
            times[at + 1].merge(&beside(busy, timed, disturb));
            engine.redeem_shared(&even);
            engine.reclaim_step();
        }
    }
    let names = [
        "map alone",
        "unmap alone",
        "map while reclaim runs",
        "unmap while reclaim runs",
    ];
    let counted = || {
        names
            .iter()
            .zip(&times)
            .filter(|(_, times)| times.count() > 0)
    };
    let mut notes: Vec<String> = counted()
        .map(|(name, times)| {
            let at = |of| ruler.percentile(times, of);
            format!(
                "{name}: p50 {:.0} ns, p99 {:.0} ns, p99.99 {:.0} ns of {} operations",
                at(0.5),
                at(0.99),
                at(0.9999),
                times.count()
            )
        })
        .collect();
    notes.push(
        "the goal is for a quiet core; what the host does to this one is in the figure".to_owned(),
    );
    let last = times[2..]
        .iter()
        .map(|times| ruler.percentile(times, 0.9999));
    Own {
        measure: "ns",
        value: last.reduce(f64::max),
        lanes: counted()
            .map(|(name, times)| ruler.lane(name, times))
            .collect(),
        notes,
        histogram: counted()
            .map(|(name, times)| ruler.series(name, times))
            .collect(),
        ..Own::default()
    }
}

/// Threads that map and unmap in pieces of their own, while one more thread detaches and maps whole tables and gives empty
/// ones back: how much longer an operation takes than without that one.
fn beside_reclaim(scale: &Scale) -> Own {
    let workers = others();
    if workers == 0 {
        return alone();
    }
    let engine = Snooped::new(scale.pages, PageSize::Size4K);
    engine.vacate();
    // The last quarter of the window is the disturber's.
    let quarter = scale.pages / 4;
    let work = |number: usize| {
        let share = 3 * quarter / workers as u64;
        let first = share * number as u64;
        let mut operations = 0;
        for first in (first..first + share).step_by(PAGES_2M as usize) {
            let order = Sequential {
                first,
                count: PAGES_2M.min(share),
            };
            engine.map_shared::<_, false>(&order);
            engine.unmap_shared::<_, false>(&order);
            engine.redeem_shared(&order);
            operations += 3 * order.count;
        }
        operations
    };
    let (mut calm, mut disturbed) = (Vec::new(), Vec::new());
    let mut given_back = 0;
    for _ in 0..scale.rounds {
        arena::settle();
        for busy in [false, true] {
            let left = AtomicUsize::new(workers);
            let before = arena::returned();
            let results = crew::run(workers + 1, clock::processors(), |number| {
                if number < workers {
                    let operations = work(number);
                    // ORDERING: Release: one worker less.
                    left.fetch_sub(1, Ordering::Release);
                    return operations;
                }
                // ORDERING: Acquire pairs with the above.
                while left.load(Ordering::Acquire) != 0 {
                    if busy {
                        engine.cycle_tables(3 * quarter, quarter);
                        engine.reclaim_step();
                    } else {
                        std::hint::spin_loop();
                    }
                }
                0
            });
            let operations: u64 = results.iter().map(|(_, operations)| operations).sum();
            let time: f64 = results[..workers]
                .iter()
                .map(|(took, _)| nanos(took.cpu))
                .sum();
            let times = if busy { &mut disturbed } else { &mut calm };
            times.push(time / operations.max(1) as f64);
            if busy {
                given_back += arena::returned() - before;
            }
        }
    }
    let (before, after) = (Summary::of(&calm).quiet, Summary::of(&disturbed).quiet);
    Own {
        measure: "ratio",
        value: Some(after / before.max(f64::MIN_POSITIVE)),
        notes: vec![format!(
            "{workers} threads, {before:.2} ns per operation without and {after:.2} ns with detach and reclaim; {} tables came back per round",
            given_back / scale.rounds.max(1) as u64
        )],
        ..Own::default()
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-T4",
        workload: "map and unmap 4K while tables are detached and reclaimed",
        gate: Some(1.3),
        goal: Some(1.1),
        job: Job::Own(beside_reclaim),
        ..BLANK
    },
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
        workload: "p99.99 of single maps and unmaps while reclaim runs, ns",
        goal: Some(5000.0),
        job: Job::Own(histogram),
        ..BLANK
    },
];
