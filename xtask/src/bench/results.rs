//! What the benchmark wrote, as this program reads it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

/// The layout that is understood.
const LAYOUT: u32 = 1;

/// One competitor of a row.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Lane {
    /// `floor`, `engine`, `engine-pinned`, `engine-stay`, `variant`, `peer` or `latency`.
    pub(crate) kind: String,
    /// Who.
    pub(crate) name: String,
    /// The quiet median, in nanoseconds per operation.
    pub(crate) quiet: f64,
    /// The median of all rounds.
    pub(crate) median: f64,
    /// How many rounds.
    pub(crate) count: usize,
    /// The quiet median divided by the floor's.
    pub(crate) ratio: Option<f64>,
    /// The median of the ratios within the rounds.
    pub(crate) paired_ratio: Option<f64>,
    /// Wall time per operation of one thread, in rows of several threads.
    pub(crate) wall: Option<f64>,
    /// How many threads, in rows of several.
    pub(crate) threads: Option<usize>,
    /// How much faster all threads together are than one.
    pub(crate) speed_up: Option<f64>,
}

/// Which way a row's value is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    /// Ratios and counts.
    #[default]
    Lower,
    /// Speed-ups.
    Higher,
}

/// A histogram's line.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Series {
    /// What was timed.
    pub(crate) name: String,
    /// Lower ends of buckets in nanoseconds, with counts.
    pub(crate) buckets: Vec<(f64, u64)>,
}

/// One row of the matrix.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) id: String,
    /// Which part of it, or nothing.
    pub(crate) part: String,
    /// What is done.
    pub(crate) workload: String,
    /// What the floor does.
    pub(crate) floor: String,
    /// What one operation is.
    pub(crate) unit: String,
    /// `ratio`, `speed-up` or `count`.
    pub(crate) measure: String,
    /// Which way is better.
    pub(crate) better: Better,
    /// What is judged.
    pub(crate) value: Option<f64>,
    /// The least and the greatest of the processes, where there were several.
    #[serde(default)]
    pub(crate) spread: Option<(f64, f64)>,
    /// The same with a pin per call.
    pub(crate) pinned: Option<f64>,
    /// The same with a pin per call, within a stay of the CPU.
    pub(crate) stay: Option<f64>,
    /// The least that lands.
    pub(crate) gate: Option<f64>,
    /// What the project wants.
    pub(crate) goal: Option<f64>,
    /// What would be splendid.
    pub(crate) stretch: Option<f64>,
    /// Who ran.
    pub(crate) lanes: Vec<Lane>,
    /// Why it was not measured.
    pub(crate) skipped: Option<String>,
    /// What a reader has to know besides.
    pub(crate) notes: Vec<String>,
    /// Single times, where they were taken.
    #[serde(default)]
    pub(crate) histogram: Vec<Series>,
}

impl Row {
    /// The row with its part.
    pub(crate) fn name(&self) -> String {
        if self.part.is_empty() {
            self.id.clone()
        } else {
            format!("{} {}", self.id, self.part)
        }
    }

    /// The lane of this kind that the value is of: where a row has one for each number of threads, that with as many as it is
    /// judged at.
    pub(crate) fn judged(&self, kind: &str) -> Option<&Lane> {
        let mut engines = self.lanes.iter().filter(|lane| lane.kind == "engine");
        let is_judged = |lane: &&Lane| lane.ratio.is_some() && lane.ratio == self.value;
        let threads = engines.find(is_judged).and_then(|lane| lane.threads);
        let of_kind = |lane: &&Lane| lane.kind == kind;
        let mut lanes = self.lanes.iter().filter(of_kind);
        match threads {
            Some(_) => lanes.find(|lane| lane.threads == threads),
            None => lanes.next(),
        }
    }

    /// Floor and engine by the number of threads, where both ran with several.
    pub(crate) fn side_by_side(&self) -> impl Iterator<Item = (&Lane, &Lane)> {
        let of = |kind: &'static str| self.lanes.iter().filter(move |lane| lane.kind == kind);
        let floors = of("floor").filter(|floor| floor.threads.is_some());
        floors.filter_map(move |floor| {
            let engine = of("engine").find(|engine| engine.threads == floor.threads);
            engine.map(|engine| (floor, engine))
        })
    }

    /// The fastest peer of this run.
    pub(crate) fn best_peer(&self) -> Option<&Lane> {
        let peers = self.lanes.iter().filter(|lane| lane.kind == "peer");
        peers.min_by(|one, other| one.quiet.total_cmp(&other.quiet))
    }
}

/// Bytes of a function of the engine.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Code {
    /// The function.
    pub(crate) name: String,
    /// How many copies the program has.
    pub(crate) copies: usize,
    /// Bytes of the largest.
    pub(crate) bytes: u64,
}

/// What the benchmark ran on.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Machine {
    /// The processor's name.
    pub(crate) processor: String,
    /// How many of them.
    pub(crate) processors: usize,
    /// The host's kernel.
    pub(crate) kernel: String,
    /// Whether the host is a virtual machine.
    pub(crate) virtual_machine: bool,
    /// Whether the tables' memory is in huge pages.
    pub(crate) huge_pages: bool,
    /// Whether the processor has `clwb`.
    pub(crate) clwb: bool,
    /// The compiler's flags.
    pub(crate) flags: String,
    /// The compiler.
    pub(crate) compiler: String,
    /// The host's load when the run began.
    pub(crate) load: f64,
    /// The load when it ended.
    pub(crate) load_after: f64,
}

/// A format of tables that the matrix can be measured with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// VT-d's second stage
    #[default]
    Vtd,
    /// Second stages of Arm's VMSAv8-64, as SMMUv3 walks them
    Vmsa,
}

impl Format {
    /// What people call it.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Vtd => "VT-d's second stage",
            Self::Vmsa => "Arm's VMSAv8-64, second stage",
        }
    }

    /// The features that the benchmark is built with.
    pub(crate) const fn features(self) -> &'static str {
        match self {
            Self::Vtd => "",
            Self::Vmsa => "vmsa",
        }
    }

    /// What is given to `--format`.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Vtd => "vtd",
            Self::Vmsa => "vmsa",
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Results {
    /// The version of this layout.
    pub(crate) layout: u32,
    /// The format of the tables that were measured.
    #[serde(default)]
    pub(crate) format: Format,
    /// Whether rounds were few.
    pub(crate) quick: bool,
    /// What it ran on.
    pub(crate) machine: Machine,
    /// The rows in the matrix's order.
    pub(crate) rows: Vec<Row>,
    /// Bytes of the engine's code.
    pub(crate) code: Vec<Code>,
}

/// Reads the results in `file`.
///
/// # Errors
/// When there are none that this program understands.
pub(crate) fn read(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| {
        format!(
            "cannot read {}: expected what `cargo xtask bench --json FILE` wrote",
            file.display()
        )
    })?;
    parse(&text).with_context(|| format!("in {}", file.display()))
}

/// The results in `file` as they came.
///
/// # Errors
/// When it cannot be read or is no JSON.
pub(crate) fn read_raw(file: &Path) -> Result<serde_json::Value> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))
}

fn parse(text: &str) -> Result<Results> {
    let results: Results =
        serde_json::from_str(text).context("these are no results of `cargo xtask bench --json`")?;
    if results.layout != LAYOUT {
        bail!(
            "results of layout {}, expected {LAYOUT}: measure them again with this version",
            results.layout
        );
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = r#"{"processor":"p","processors":2,"kernel":"k","virtual_machine":true,
        "huge_pages":true,"clwb":true,"flags":"","compiler":"","load":0.5,"load_after":1.0}"#;

    #[test]
    fn results_are_read_and_other_layouts_refused() {
        let text = |layout: u32| {
            format!(r#"{{"layout":{layout},"quick":true,"machine":{MACHINE},"rows":[],"code":[]}}"#)
        };
        assert_eq!(parse(&text(LAYOUT)).unwrap().machine.processors, 2);
        let error = format!("{:#}", parse(&text(LAYOUT + 1)).unwrap_err());
        assert!(error.contains("measure them again"), "{error}");
        assert!(parse("{}").is_err());
    }

    #[test]
    fn the_best_peer_is_the_fastest_one_and_no_floor() {
        let lane = |kind: &str, quiet| Lane {
            kind: kind.into(),
            quiet,
            ..Lane::default()
        };
        let row = Row {
            lanes: vec![lane("floor", 1.0), lane("peer", 4.0), lane("peer", 3.0)],
            ..Row::default()
        };
        assert_eq!(row.best_peer().unwrap().quiet, 3.0);
        assert!(Row::default().best_peer().is_none());
    }
}
