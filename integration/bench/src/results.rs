//! The results as they are written to JSON, for `cargo xtask bench` and for other programs.

use serde::Serialize;

/// Who ran in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The hand-written floor.
    Floor,
    /// The engine, all calls of a round under one guard.
    Engine,
    /// The engine, each call under a guard of its own.
    EnginePinned,
    /// The engine, each call under a guard of its own, within a stay of the CPU.
    EngineStay,
    /// The floor with one thing more, to show what that costs.
    Variant(&'static str),
    /// A published crate with `&mut` methods, on one thread.
    Peer(&'static str),
}

impl Who {
    /// Its kind, as in [`LaneResult::kind`].
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Engine => "engine",
            Self::EnginePinned => "engine-pinned",
            Self::EngineStay => "engine-stay",
            Self::Variant(_) => "variant",
            Self::Peer(_) => "peer",
        }
    }

    /// As it is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Engine => "engine",
            Self::EnginePinned => "engine, a pin per call",
            Self::EngineStay => "engine, a pin per call in a stay",
            Self::Variant(name) | Self::Peer(name) => name,
        }
    }
}

/// One competitor's times, in nanoseconds per operation.
#[derive(Clone, Debug, Serialize)]
pub struct LaneResult {
    /// `floor`, `engine`, `engine-pinned`, `engine-stay`, `variant`, `peer` or `latency`.
    pub kind: &'static str,
    /// Who, as it is shown.
    pub name: String,
    /// The quiet median.
    pub quiet: f64,
    /// The median of all rounds.
    pub median: f64,
    /// How many rounds.
    pub count: usize,
    /// The quiet median divided by the floor's.
    pub ratio: Option<f64>,
    /// The median over the rounds of this lane's time divided by the floor's of the same round.
    pub paired_ratio: Option<f64>,
    /// Wall time per operation of one thread, for rows of several threads.
    pub wall: Option<f64>,
    /// How many threads, for rows of several.
    pub threads: Option<usize>,
    /// How much faster all threads together are than one.
    pub speed_up: Option<f64>,
}

/// In which direction a row's value is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// Ratios and counts.
    Lower,
    /// Speed-ups.
    Higher,
}

/// One row of the matrix, measured.
#[derive(Clone, Debug, Serialize)]
pub struct RowResult {
    /// The row of the matrix: `B-M1`.
    pub id: &'static str,
    /// Which part of the row, or nothing.
    pub part: &'static str,
    /// What is done.
    pub workload: &'static str,
    /// What the floor does.
    pub floor: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    /// What [`value`](Self::value) is: `ratio`, `speed-up` or `count`.
    pub measure: &'static str,
    /// Which way is better.
    pub better: Better,
    /// The value that is judged.
    pub value: Option<f64>,
    /// The same for the engine with a pin per call.
    pub pinned: Option<f64>,
    /// The same for the engine with a pin per call, within a stay of the CPU.
    pub stay: Option<f64>,
    /// The least that lands.
    pub gate: Option<f64>,
    /// What the project wants.
    pub goal: Option<f64>,
    /// What would be splendid.
    pub stretch: Option<f64>,
    /// The lanes.
    pub lanes: Vec<LaneResult>,
    /// Why the row was not measured.
    pub skipped: Option<String>,
    /// What a reader has to know besides.
    pub notes: Vec<String>,
    /// Counts of single times in nanoseconds: lower end of the bucket and count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub histogram: Vec<Series>,
}

/// One line of a histogram.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// What was timed.
    pub name: String,
    /// Lower ends of buckets in nanoseconds, with counts.
    pub buckets: Vec<(f64, u64)>,
}

/// Bytes of code.
#[derive(Clone, Debug, Serialize)]
pub struct Code {
    /// Which function, without its generic arguments.
    pub name: String,
    /// How many copies of it are in the program.
    pub copies: usize,
    /// Bytes of the largest copy.
    pub bytes: u64,
}

/// What the benchmark ran on and how it was built.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Processors that the benchmark may use.
    pub processors: usize,
    /// Host kernel.
    pub kernel: String,
    /// Whether the host is a virtual machine, as far as the processor says.
    pub virtual_machine: bool,
    /// Whether the arena is in huge pages.
    pub huge_pages: bool,
    /// Whether lines can be written back without dropping them.
    pub clwb: bool,
    /// The compiler's flags.
    pub flags: String,
    /// The compiler.
    pub compiler: String,
    /// Load of the host over the last minute when the benchmark began.
    pub load: f64,
    /// Load when it ended.
    pub load_after: f64,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// The version of this layout.
    pub layout: u32,
    /// The format of the tables that were measured.
    pub format: &'static str,
    /// Whether rounds were few.
    pub quick: bool,
    /// What it ran on.
    pub machine: Machine,
    /// The rows in the matrix's order.
    pub rows: Vec<RowResult>,
    /// Bytes of the engine's code.
    pub code: Vec<Code>,
}
