//! Runs a model through all its executions and says how many there were.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use hv_core::sync::fence;

/// How far a model is explored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Every execution.
    Exhaustive,
    /// Executions with at most `LOOM_MAX_PREEMPTIONS` preemptions, 3 when that is not set.
    Preemptions,
    /// One preemption less, for models of three actors: each one takes ten times as long.
    Fewer,
}

/// Explores `model` and reports the number of executions on standard error.
pub(crate) fn explore(name: &str, bound: Bound, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    let chosen = builder.preemption_bound.unwrap_or(3);
    let limit = match bound {
        Bound::Exhaustive => None,
        Bound::Preemptions => Some(chosen),
        Bound::Fewer => Some(chosen.saturating_sub(1)),
    };
    builder.preemption_bound = limit;
    builder.max_branches = 10_000;
    let executions = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let counted = executions.clone();
    builder.check(move || {
        // ORDERING: Relaxed, a count that is read after the last execution.
        counted.fetch_add(1, Ordering::Relaxed);
        // The shim's fence makes its word on first use, which loom takes for a release to every
        // later fence. Here, before there is a second thread, that orders nothing new.
        fence(Ordering::SeqCst);
        model();
    });
    let limit = limit.map_or_else(
        || "exhaustive".to_owned(),
        |limit| format!("at most {limit} preemptions"),
    );
    // Written past the capture of the test harness: the counts are the evidence.
    let _ = writeln!(
        std::io::stderr(),
        "loom {name:<48} {:>9} executions  {limit:<21} {:>6.1} s",
        // ORDERING: Relaxed, all executions are over.
        executions.load(Ordering::Relaxed),
        start.elapsed().as_secs_f64(),
    );
}

/// Something that must happen in at least one execution, or a model shows nothing.
pub(crate) struct Seen(AtomicBool);

impl Seen {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// It happened in this execution.
    pub(crate) fn note(&self) {
        // ORDERING: Relaxed, read after the last execution.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Asserts that it happened.
    pub(crate) fn check(&self, what: &str) {
        // ORDERING: Relaxed, as above.
        assert!(
            self.0.load(Ordering::Relaxed),
            "no execution in which {what}"
        );
    }
}

/// Asserts that loom finds an execution of `model` that fails, as it must if the models see anything.
pub(crate) fn must_fail(name: &str, model: impl Fn() + Send + Sync + 'static) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        explore(name, Bound::Preemptions, model)
    }));
    assert!(outcome.is_err(), "no execution of {name} failed");
    let _ = writeln!(std::io::stderr(), "loom {name:<48}     fails, as it must");
}
