//! Rows of several threads: how much faster they are together than one alone.

use super::{BLANK, Job, Row, Scale};
use crate::clock;
use crate::crew;
use crate::engine::Engine;
use crate::lane::nanos;
use crate::order::{Order, Sequential, Shuffled};
use crate::results::{Better, LaneResult, RowResult};
use crate::stats::Summary;
use crate::window::PAGES_2M;
use crate::{arena, lane};

use hv_core::PageSize;

/// The engine in memory whose walkers snoop.
type Snooped = Engine<true>;

/// One thread's part of the work.
pub(super) struct Part {
    thread: u64,
    threads: u64,
    /// Pages of the window that all threads share.
    pages: u64,
    /// The pages of this thread in a random order, between those of the others.
    shuffled: Shuffled,
}

/// What one thread does. Gives how many operations it did.
type Act = fn(&Snooped, &Part) -> u64;

/// A row of threads before it is measured.
#[derive(Debug)]
pub struct Threads {
    /// Brings the engine to where the timed part begins.
    prepare: fn(&mut Snooped),
    /// One thread's part.
    act: Act,
    /// Gate, goal and stretch as a share of the number of threads.
    shares: [Option<f64>; 3],
    /// What is said about the frames that were taken in excess of the tables.
    counts_frames: bool,
}

impl Part {
    fn all(threads: u64, pages: u64) -> Vec<Self> {
        let shuffled = Shuffled::new(pages);
        let part = |thread| Self {
            thread,
            threads,
            pages,
            shuffled: shuffled.share(thread, threads),
        };
        (0..threads).map(part).collect()
    }

    /// A piece of the window without holes.
    fn piece(&self) -> Sequential {
        let first = self.pages * self.thread / self.threads;
        Sequential {
            first,
            count: self.pages * (self.thread + 1) / self.threads - first,
        }
    }

    /// A share of each 2 MiB of the window, so that all threads need the same new table at about the same time and write
    /// to lines of their own.
    fn side_by_side(&self) -> SideBySide {
        SideBySide {
            first: PAGES_2M * self.thread / self.threads,
            end: PAGES_2M * (self.thread + 1) / self.threads,
            pages: self.pages,
        }
    }
}

/// The same part of each 2 MiB.
#[derive(Clone, Copy, Debug)]
struct SideBySide {
    /// The first page of the part, counted from the begin of the 2 MiB.
    first: u64,
    /// The page behind the last one.
    end: u64,
    pages: u64,
}

impl Order for SideBySide {
    fn count(&self) -> u64 {
        self.pages / PAGES_2M * (self.end - self.first)
    }

    #[inline]
    fn pages(&self) -> impl Iterator<Item = u64> {
        let (first, end) = (self.first, self.end);
        (0..self.pages / PAGES_2M).flat_map(move |table| {
            let base = table * PAGES_2M;
            base + first..base + end
        })
    }
}

/// What the rounds of one number of threads gave.
#[derive(Default)]
struct Rounds {
    cpu: Vec<f64>,
    wall: Vec<f64>,
}

impl Threads {
    fn counts(processors: usize) -> Vec<usize> {
        let mut counts: Vec<usize> = (1..=processors).collect();
        counts.push(2 * processors);
        counts
    }

    /// Measures the row.
    pub(super) fn measure(&self, row: &Row, scale: &Scale) -> RowResult {
        let processors = clock::processors();
        if processors.len() < 2 {
            return RowResult {
                skipped: Some("this program may use one processor only".to_owned()),
                ..row.empty()
            };
        }
        let counts = Self::counts(processors.len());
        let parts: Vec<Vec<Part>> = counts
            .iter()
            .map(|threads| Part::all(*threads as u64, scale.pages))
            .collect();
        let mut rounds: Vec<Rounds> = counts.iter().map(|_| Rounds::default()).collect();
        let mut engine = Snooped::new(scale.pages, PageSize::Size4K);
        let mut excess = 0;
        let start = std::time::Instant::now();
        for round in 0..scale.rounds {
            for turn in 0..counts.len() {
                let at = (round + turn) % counts.len();
                arena::settle();
                (self.prepare)(&mut engine);
                let (taken, before) = (arena::taken(), arena::in_use());
                let took = self.round(&engine, &parts[at], processors);
                if counts[at] == processors.len() {
                    excess += (arena::taken() - taken) - (arena::in_use() - before);
                }
                rounds[at].cpu.push(took.0);
                rounds[at].wall.push(took.1);
            }
            if round + 1 >= lane::LEAST && start.elapsed() > scale.most {
                break;
            }
        }
        let excess = excess as f64 / rounds[0].cpu.len().max(1) as f64;
        self.result(row, &counts, &rounds, processors.len(), excess)
    }

    /// CPU and wall time of one round, per operation of one thread.
    fn round(&self, engine: &Snooped, parts: &[Part], processors: &[usize]) -> (f64, f64) {
        let took = crew::run(parts.len(), processors, |number| {
            (self.act)(engine, &parts[number])
        });
        let operations: u64 = took.iter().map(|(_, operations)| operations).sum();
        let cpu: f64 = took.iter().map(|(took, _)| nanos(took.cpu)).sum();
        let wall = nanos(crew::wall(took.iter().map(|(took, _)| took)));
        let wall = wall * parts.len() as f64;
        let operations = operations.max(1) as f64;
        (cpu / operations, wall / operations)
    }

    fn result(
        &self,
        row: &Row,
        counts: &[usize],
        rounds: &[Rounds],
        processors: usize,
        excess: f64,
    ) -> RowResult {
        let one = rounds.first().map(|rounds| Summary::of(&rounds.cpu).quiet);
        let one_wall = rounds.first().map(|rounds| Summary::of(&rounds.wall).quiet);
        let speed_up = |threads: usize, one: Option<f64>, now: f64| {
            one.filter(|_| now > 0.0)
                .map(|one| threads as f64 * one / now)
        };
        let lanes: Vec<LaneResult> = counts
            .iter()
            .zip(rounds)
            .map(|(threads, rounds)| {
                let (cpu, wall) = (Summary::of(&rounds.cpu), Summary::of(&rounds.wall));
                let crowded = if *threads > processors {
                    ", oversubscribed"
                } else {
                    ""
                };
                LaneResult {
                    kind: "engine",
                    name: format!("{threads}{crowded}"),
                    quiet: cpu.quiet,
                    median: cpu.median,
                    count: cpu.count,
                    ratio: None,
                    paired_ratio: None,
                    wall: Some(wall.quiet),
                    threads: Some(*threads),
                    // Threads that take turns on a processor are as fast as the clock on the wall says.
                    speed_up: if *threads > processors {
                        speed_up(*threads, one_wall, wall.quiet)
                    } else {
                        speed_up(*threads, one, cpu.quiet)
                    },
                }
            })
            .collect();
        let judged = lanes.iter().find(|lane| lane.threads == Some(processors));
        let by_wall = judged.and_then(|lane| speed_up(processors, one_wall, lane.wall?));
        let bound = |at: usize| self.shares[at].map(|share| share * processors as f64);
        let mut notes = Vec::new();
        if let Some(by_wall) = by_wall {
            notes.push(format!(
                "speed-up of {processors} threads by wall time {by_wall:.2}: less than by CPU time where others use the machine"
            ));
        }
        if self.counts_frames {
            notes.push(format!(
                "{excess:.1} frames per round were taken for tables that another thread had linked meanwhile"
            ));
        }
        RowResult {
            measure: "speed-up",
            better: Better::Higher,
            value: judged.and_then(|lane| lane.speed_up),
            gate: bound(0),
            goal: bound(1),
            stretch: bound(2),
            lanes,
            notes,
            ..row.empty()
        }
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-T1",
        part: "map",
        workload: "threads map 4K in ranges of their own, shared",
        job: Job::Threads(Threads {
            prepare: |engine| engine.vacate(),
            act: |engine, part| {
                let order = part.piece();
                engine.map_shared::<_, false>(&order);
                order.count()
            },
            shares: [Some(0.85), Some(0.92), Some(0.97)],
            counts_frames: false,
        }),
        ..BLANK
    },
    Row {
        id: "B-T1",
        part: "unmap",
        workload: "threads unmap 4K in ranges of their own, shared",
        job: Job::Threads(Threads {
            prepare: |engine| engine.fill(),
            act: |engine, part| {
                let order = part.piece();
                engine.unmap_shared::<_, false>(&order);
                order.count()
            },
            shares: [Some(0.85), Some(0.92), Some(0.97)],
            counts_frames: false,
        }),
        ..BLANK
    },
    Row {
        id: "B-T2",
        workload: "threads map and unmap 4K at random in the same tables",
        unit: "pair",
        job: Job::Threads(Threads {
            prepare: |engine| engine.vacate(),
            act: |engine, part| {
                engine.pair_shared::<_, false>(&part.shuffled);
                part.shuffled.count()
            },
            shares: [Some(0.70), Some(0.80), None],
            counts_frames: false,
        }),
        ..BLANK
    },
    Row {
        id: "B-T3",
        workload: "threads map 4K into the same new tables at the same time",
        job: Job::Threads(Threads {
            prepare: Snooped::renew,
            act: |engine, part| {
                let order = part.side_by_side();
                engine.map_shared::<_, false>(&order);
                order.count()
            },
            shares: [Some(0.70), Some(0.80), None],
            counts_frames: true,
        }),
        ..BLANK
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_window_once() {
        const PAGES: u64 = 3 * PAGES_2M;
        for threads in 1..=5 {
            let parts = Part::all(threads, PAGES);
            let ways: [fn(&Part) -> Vec<u64>; 3] = [
                |part| part.piece().pages().collect(),
                |part| part.side_by_side().pages().collect(),
                |part| part.shuffled.pages().collect(),
            ];
            for way in ways {
                let mut pages: Vec<u64> = parts.iter().flat_map(way).collect();
                pages.sort_unstable();
                assert!(pages.into_iter().eq(0..PAGES));
            }
            let counted: u64 = parts.iter().map(|part| part.side_by_side().count()).sum();
            assert_eq!(counted, PAGES);
        }
    }
}
