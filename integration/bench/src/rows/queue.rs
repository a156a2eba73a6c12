//! The row of the command queue: flushes of several threads through one ring, beside a ring behind a lock.

use std::time::{Duration, Instant as Now};

use hv_core::platform::{Clock, Instant};
use hv_iommu::queue::{CommandQueue, Completion, Ends, Going, Place, QueuePort, QueueShape};
use hv_iommu::{FlushTicket, UnitError, UnitIndex};

use super::{BLANK, Job, Own, Row, Scale};
use crate::clock;
use crate::crew;
use crate::floor::queue::{ENTRIES, ENTRIES_LOG2, LockedQueue, Unit, WAIT};
use crate::lane::{self, nanos};
use crate::results::LaneResult;
use crate::stats::Summary;

/// Numbers of threads.
const THREADS: [usize; 3] = [1, 2, 4];

/// The subsystem's queue with the unit of the floor.
struct Ours {
    queue: CommandQueue,
    unit: Unit,
    start: Now,
}

impl Ours {
    fn new(doorbell: Duration) -> Option<Self> {
        let shape = QueueShape::new(ENTRIES_LOG2, Ends::OneFree, Duration::from_secs(10))?;
        Some(Self {
            queue: CommandQueue::new(shape).ok()?,
            unit: Unit::new(doorbell),
            start: Now::now(),
        })
    }

    /// Submits a command and waits for the sync behind it.
    fn flush(&self, command: [u64; 2]) -> Result<(), UnitError> {
        let ticket = self.queue.submit(self, &[command])?;
        while !self.queue.poll(self, ticket)? {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

impl Clock for Ours {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as u64)
    }
}

impl QueuePort for Ours {
    type Entry = [u64; 2];
    type Clock = Self;
    const FENCED: bool = true;

    fn clock(&self) -> &Self {
        self
    }
    fn unit(&self) -> UnitIndex {
        const { UnitIndex::new(0).unwrap() }
    }
    fn put(&self, index: usize, entry: [u64; 2]) -> Result<(), UnitError> {
        self.unit.put(index as u64, entry);
        Ok(())
    }
    fn sync(&self, ticket: FlushTicket) -> [u64; 2] {
        [WAIT | ticket.sequence, 0]
    }
    fn ring(&self, tail: Place) {
        self.unit.ring(tail.index() as u64);
    }
    fn head(&self) -> Result<Place, UnitError> {
        Ok(Place::new(self.unit.head() as usize, false))
    }
    fn completion(&self) -> Completion {
        Completion::Word(self.unit.status() as u32)
    }
    fn check(&self) -> Result<Going, UnitError> {
        Ok(Going::On)
    }
}

/// Wall time per flush of all threads together.
fn round(threads: usize, each: u64, flush: impl Fn([u64; 2]) + Sync) -> f64 {
    let took = crew::run(threads, clock::processors(), |number| {
        for command in 0..each {
            flush([command, number as u64]);
        }
    });
    nanos(crew::wall(took.iter().map(|(took, ())| took))) / (each * threads as u64) as f64
}

fn lane_of(
    kind: &'static str,
    who: &str,
    threads: usize,
    times: &[f64],
    floor: &[f64],
) -> LaneResult {
    let (summary, floor) = (Summary::of(times), Summary::of(floor));
    let crowded = match threads > clock::processors().len() {
        true => ", oversubscribed",
        false => "",
    };
    LaneResult {
        kind,
        name: format!("{who}, {threads}{crowded}"),
        quiet: summary.quiet,
        median: summary.median,
        count: summary.count,
        ratio: (floor.quiet > 0.0).then(|| summary.quiet / floor.quiet),
        paired_ratio: None,
        wall: Some(summary.quiet),
        threads: Some(threads),
        speed_up: None,
    }
}

/// What an uncached write to a device's register costs, in the order of magnitude.
const DEVICE_WRITE: Duration = Duration::from_nanos(250);

fn throughput(scale: &Scale, doorbell: Duration) -> Own {
    let Some(ours) = Ours::new(doorbell) else {
        return Own {
            skipped: Some("no memory for a queue".to_owned()),
            ..Own::default()
        };
    };
    let locked = LockedQueue::new(doorbell);
    let each = scale.pages.min(ENTRIES * 64);
    let mut failed = None;
    let mut times: Vec<[Vec<f64>; 2]> = THREADS.map(|_| Default::default()).into();
    let mut shared: Vec<[u64; 3]> = vec![[0; 3]; THREADS.len()];
    let start = Now::now();
    for turn in 0..scale.rounds {
        for ((threads, times), shared) in THREADS.into_iter().zip(&mut times).zip(&mut shared) {
            let error = std::sync::Mutex::new(None);
            let floor = || round(threads, each, |command| locked.flush(command));
            let engine = || {
                round(threads, each, |command| {
                    if let Err(found) = ours.flush(command)
                        && let Ok(mut error) = error.lock()
                    {
                        *error = Some(found);
                    }
                })
            };
            let before = ours.unit.done();
            // Each is first in every other round.
            let [one, other] = match turn % 2 == 0 {
                true => [floor(), engine()],
                false => {
                    let engine = engine();
                    [floor(), engine]
                }
            };
            times[0].push(one);
            times[1].push(other);
            for ((sum, now), before) in shared.iter_mut().zip(ours.unit.done()).zip(before) {
                *sum += now - before;
            }
            failed = failed.or(error.into_inner().ok().flatten());
        }
        if turn + 1 >= lane::LEAST && start.elapsed() > scale.most {
            break;
        }
    }
    if let Some(error) = failed {
        return Own {
            skipped: Some(format!("the queue failed: {error}")),
            ..Own::default()
        };
    }
    let lanes: Vec<LaneResult> = THREADS
        .into_iter()
        .zip(&times)
        .flat_map(|(threads, [floor, engine])| {
            [
                lane_of("floor", "behind a lock", threads, floor, floor),
                lane_of("engine", "ours", threads, engine, floor),
            ]
        })
        .collect();
    let judged = |lane: &&LaneResult| lane.kind == "engine" && lane.threads == Some(2);
    let notes = THREADS
        .iter()
        .zip(&shared)
        .map(|(threads, [commands, waits, rings])| {
            let per = |count: &u64| *count as f64 / (*commands).max(1) as f64;
            format!(
                "{threads} threads: {:.2} waits and {:.2} doorbells for each command",
                per(waits),
                per(rings)
            )
        });
    Own {
        measure: "ratio",
        value: lanes.iter().find(judged).and_then(|lane| lane.ratio),
        notes: notes.collect(),
        lanes,
        ..Own::default()
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-Q1",
        part: "store",
        workload: "threads flush through one command queue whose doorbell costs a store; judged at 2",
        floor: FLOOR,
        unit: "flush",
        remark: "the unit works at once, in the write of the doorbell: all that is left is what CPUs tell each other, of which a \
                 lock needs least; the floor has no errors, deadlines or resets",
        job: Job::Own(|scale| throughput(scale, Duration::ZERO)),
        ..BLANK
    },
    Row {
        id: "B-Q1",
        part: "device",
        workload: "the same, and the doorbell costs 250 ns; judged at 2",
        floor: FLOOR,
        unit: "flush",
        remark: "a real doorbell is an uncached write to a device, played by a wait in it; who shares one saves it, and who has \
                 the lock keeps all others from it",
        job: Job::Own(|scale| throughput(scale, DEVICE_WRITE)),
        ..BLANK
    },
];

const FLOOR: &str = "a ring behind a spin lock: command, wait, doorbell";

#[cfg(test)]
mod tests {
    use super::*;

    /// Both do every command once, each behind the last one's wait.
    #[test]
    fn floor_and_engine_do_the_same() {
        let (ours, locked) = (
            Ours::new(Duration::ZERO).unwrap(),
            LockedQueue::new(Duration::ZERO),
        );
        for threads in THREADS {
            round(threads, 1000, |command| locked.flush(command));
            round(threads, 1000, |command| ours.flush(command).unwrap());
        }
        let [commands, waits, rings] = locked.unit.done();
        assert_eq!([commands, waits, rings], [7000; 3]);
        let [commands, waits, rings] = ours.unit.done();
        assert_eq!(commands, 7000);
        assert!(waits <= 7000 && rings <= 14_000, "{waits} {rings}");
    }
}
