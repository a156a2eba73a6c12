//! The rows of the matrix: each a few words, a floor, the engine and the peers.

mod addresses;
mod attach;
mod counts;
mod guest;
mod invalidations;
mod lanes;
mod latency;
mod lend;
mod micro;
mod peer;
mod queue;
mod range;
mod single;
mod threads;
mod unsnooped;

use std::time::Duration;

use crate::arena;
use crate::lane::{self, Lane};
use crate::platform;
use crate::results::{Better, LaneResult, RowResult, Series, Who};
use crate::stats::{Summary, paired_ratio};

pub use threads::Threads;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Pages of the window: 1 GiB when it counts, less when only the results are looked at.
    pub pages: u64,
    /// Rounds of every lane.
    pub rounds: usize,
    /// A row that takes longer gets fewer rounds.
    pub most: Duration,
}

impl Scale {
    /// For figures that people compare.
    pub const FULL: Self = Self {
        pages: 512 * 512,
        rounds: 64,
        most: Duration::from_secs(12),
    };
    /// For a look.
    pub const QUICK: Self = Self {
        rounds: 12,
        most: Duration::from_secs(3),
        ..Self::FULL
    };
    /// For tests of what is done, not of how fast.
    pub const SMOKE: Self = Self {
        pages: 4096,
        rounds: 1,
        most: Duration::ZERO,
    };

    /// How often rows of single times go through the window.
    const fn repeats(&self) -> usize {
        self.rounds.div_ceil(8)
    }

    /// Whether the window is smaller than for figures.
    pub const fn is_short(&self) -> bool {
        self.pages < Self::FULL.pages
    }
}

/// A row of the matrix.
#[derive(Debug)]
pub struct Row {
    /// The row's name in the matrix.
    pub id: &'static str,
    /// Which part of it, or nothing.
    pub part: &'static str,
    /// What is done.
    pub workload: &'static str,
    /// What the floor does.
    pub floor: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    /// The least that lands.
    pub gate: Option<f64>,
    /// What the project wants.
    pub goal: Option<f64>,
    /// What would be splendid.
    pub stretch: Option<f64>,
    /// What a reader has to know besides, or nothing.
    pub remark: &'static str,
    /// How it is measured.
    pub job: Job,
}

/// A row with nothing in it, for the rows to begin from.
const BLANK: Row = Row {
    id: "",
    part: "",
    workload: "",
    floor: "",
    unit: "page",
    gate: None,
    goal: None,
    stretch: None,
    remark: "",
    job: Job::Lanes(|_| vec![]),
};

/// How a row is measured.
#[derive(Debug)]
pub enum Job {
    /// Lanes beside a floor in interleaved rounds; the value is the engine's time divided by the floor's.
    Lanes(fn(&Scale) -> Vec<Lane>),
    /// The same where walkers do not snoop: only on processors that can write a line back and keep it.
    Unsnooped(fn(&Scale) -> Vec<Lane>),
    /// Several threads; the value is how much faster they are together than one.
    Threads(Threads),
    /// Something of its own, which gives the parts of the result that differ from row to row.
    Own(fn(&Scale) -> Own),
}

/// What a row that is measured in its own way gives.
#[derive(Debug, Default)]
pub struct Own {
    /// What the value is.
    pub measure: &'static str,
    /// What is judged.
    pub value: Option<f64>,
    /// Times that belong to it.
    pub lanes: Vec<LaneResult>,
    /// Why it was not measured.
    pub skipped: Option<String>,
    /// What a reader has to know besides.
    pub notes: Vec<String>,
    /// Single times.
    pub histogram: Vec<Series>,
}

impl Row {
    /// The row and its part, as `--only` takes them.
    pub fn name(&self) -> String {
        if self.part.is_empty() {
            self.id.to_owned()
        } else {
            format!("{}/{}", self.id, self.part)
        }
    }

    /// Whether `--only WANTED` means this row.
    pub fn is_wanted(&self, wanted: &[String]) -> bool {
        let names = [self.id.to_lowercase(), self.name().to_lowercase()];
        wanted.is_empty()
            || wanted
                .iter()
                .any(|name| names.contains(&name.to_lowercase()))
    }

    /// Measures the row.
    pub fn measure(&self, scale: &Scale, progress: impl FnMut(usize)) -> RowResult {
        arena::settle();
        let mut result = self.measure_by_job(scale, progress);
        if !self.remark.is_empty() {
            result.notes.insert(0, self.remark.to_owned());
        }
        result
    }

    fn measure_by_job(&self, scale: &Scale, mut progress: impl FnMut(usize)) -> RowResult {
        match self.job {
            Job::Unsnooped(_) if !platform::has_clwb() => RowResult {
                skipped: Some("this processor has no clwb".to_owned()),
                ..self.empty()
            },
            Job::Threads(ref threads) => threads.measure(self, scale),
            Job::Own(measure) => {
                let own = measure(scale);
                RowResult {
                    measure: own.measure,
                    value: own.value,
                    lanes: own.lanes,
                    skipped: own.skipped,
                    notes: own.notes,
                    histogram: own.histogram,
                    ..self.empty()
                }
            }
            Job::Lanes(lanes) | Job::Unsnooped(lanes) => {
                let mut lanes = lanes(scale);
                let times = lane::rounds(&mut lanes, scale.rounds, scale.most, &mut progress);
                self.ratios(&lanes, &times)
            }
        }
    }

    fn ratios(&self, lanes: &[Lane], times: &[Vec<f64>]) -> RowResult {
        let floor = lanes.iter().position(|lane| lane.who == Who::Floor);
        let floor = floor.and_then(|at| times.get(at));
        let results: Vec<LaneResult> = lanes
            .iter()
            .zip(times)
            .map(|(lane, times)| {
                let summary = Summary::of(times);
                let quiet = floor.map(|floor| Summary::of(floor).quiet);
                LaneResult {
                    kind: lane.who.kind(),
                    name: lane.who.name().to_owned(),
                    quiet: summary.quiet,
                    median: summary.median,
                    count: summary.count,
                    ratio: quiet
                        .filter(|quiet| *quiet > 0.0)
                        .map(|quiet| summary.quiet / quiet),
                    paired_ratio: floor.map(|floor| paired_ratio(times, floor)),
                    wall: None,
                    threads: None,
                    speed_up: None,
                }
            })
            .collect();
        let ratio = |who: Who| {
            let lane = results.iter().find(|lane| lane.kind == who.kind());
            lane.and_then(|lane| lane.ratio)
        };
        RowResult {
            value: ratio(Who::Engine),
            pinned: ratio(Who::EnginePinned),
            stay: ratio(Who::EngineStay),
            lanes: results,
            ..self.empty()
        }
    }

    /// The result without figures.
    fn empty(&self) -> RowResult {
        RowResult {
            id: self.id,
            part: self.part,
            workload: self.workload,
            floor: self.floor,
            unit: self.unit,
            measure: "ratio",
            better: Better::Lower,
            value: None,
            pinned: None,
            stay: None,
            gate: self.gate,
            goal: self.goal,
            stretch: self.stretch,
            lanes: vec![],
            skipped: None,
            notes: vec![],
            histogram: vec![],
        }
    }
}

/// The groups of the matrix in its order.
const GROUPS: [&str; 16] = [
    "B-M", "B-U", "B-P", "B-X", "B-R", "B-N", "B-T", "B-L", "B-V", "B-Q", "B-A", "B-G", "B-D",
    "memory", "B-C", "",
];

/// All rows in the matrix's order.
pub fn all() -> impl Iterator<Item = &'static Row> {
    let mut rows: Vec<&Row> = single::ROWS
        .iter()
        .chain(range::ROWS)
        .chain(unsnooped::ROWS)
        .chain(threads::ROWS)
        .chain(latency::ROWS)
        .chain(invalidations::ROWS)
        .chain(queue::ROWS)
        .chain(attach::ROWS)
        .chain(guest::ROWS)
        .chain(counts::ROWS)
        .chain(lend::ROWS)
        .chain(addresses::ROWS)
        .chain(micro::ROWS)
        .collect();
    let group = |row: &Row| GROUPS.iter().position(|group| row.id.starts_with(group));
    // Rows of one group stay as their file has them.
    rows.sort_by_key(|row| (group(row), row.id));
    rows.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_bounds_are_in_order() {
        let rows: Vec<&Row> = all().collect();
        for (at, row) in rows.iter().enumerate() {
            assert!(
                rows[at + 1..]
                    .iter()
                    .all(|other| other.name() != row.name())
            );
            let bounds: Vec<f64> = [row.stretch, row.goal, row.gate]
                .into_iter()
                .flatten()
                .collect();
            assert!(bounds.is_sorted(), "{}: {bounds:?}", row.name());
        }
    }

    #[test]
    fn rows_come_in_the_matrix_s_order() {
        let names: Vec<&str> = all().map(|row| row.id).collect();
        let place = |id| names.iter().position(|name| *name == id);
        assert!(place("B-M1") < place("B-U1") && place("B-X1") < place("B-R1"));
        assert!(place("B-T5") < place("B-L1") && place("memory") < place("B-C1"));
        let mut groups = names.clone();
        groups.dedup();
        let mut known = groups.clone();
        known.sort_unstable();
        known.dedup();
        assert_eq!(groups.len(), known.len(), "rows of one name stand together");
    }

    #[test]
    fn rows_are_wanted_by_name_with_or_without_their_part() {
        let row = all().find(|row| !row.part.is_empty()).unwrap();
        assert!(row.is_wanted(&[]));
        assert!(row.is_wanted(&[row.id.to_lowercase()]));
        assert!(row.is_wanted(&["B-X9".into(), row.name()]));
        assert!(!row.is_wanted(&["B-X9".into()]));
    }
}
