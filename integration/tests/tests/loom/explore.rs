//! Runs a model through all its executions and says how many there were.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hv_core::sync::fence;

/// How far a model is explored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Every execution, always.
    Exhaustive,
    /// One or two actors and perhaps a walker: at most this many preemptions, and every execution in a deep
    /// run.
    Two(usize),
    /// Three actors: at most this many preemptions, and at least three in a deep run.
    Three(usize),
}

/// Seconds for each model of a deep run; what is not exhausted then says so.
const DEEP: &str = "HV_LOOM_DEEP";

impl Bound {
    /// The same with fewer preemptions, but for one at least.
    fn less(self, fewer: usize) -> Self {
        let less = |bound: usize| bound.saturating_sub(fewer).max(bound.min(1));
        match self {
            Self::Exhaustive => Self::Exhaustive,
            Self::Two(bound) => Self::Two(less(bound)),
            Self::Three(bound) => Self::Three(less(bound)),
        }
    }

    /// The number of preemptions, if there is a bound, and the time limit, if there is one.
    fn now(self) -> (Option<usize>, Option<Duration>) {
        let deep = std::env::var(DEEP).ok();
        let deep = deep.map(|seconds| Duration::from_secs(seconds.parse().expect(DEEP)));
        let bound = match self {
            Self::Exhaustive => None,
            Self::Two(_) if deep.is_some() => None,
            Self::Three(bound) if deep.is_some() => Some(bound.max(3)),
            Self::Two(bound) | Self::Three(bound) => Some(bound),
        };
        (bound, deep)
    }
}

/// A model: what loom runs, under a name that tests and faults share.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) bound: Bound,
    /// What must happen in at least one execution, or the model shows nothing.
    pub(crate) sees: &'static [&'static str],
    pub(crate) run: fn(),
}

/// Models, and a test for each; under deliberate faults only the models.
macro_rules! models {
    ($($(#[doc = $doc:literal])* $name:ident: $bound:expr, sees [$($sees:literal),*], $run:expr;)*) => {
        $(
            $(#[doc = $doc])*
            pub(crate) fn $name() -> $crate::explore::Model {
                use $crate::explore::Bound::*;
                $crate::explore::Model {
                    name: stringify!($name),
                    bound: $bound,
                    sees: &[$($sees),*],
                    run: $run,
                }
            }
        )*

        #[cfg(not(hv_fault))]
        mod tests {
            $(
                #[test]
                fn $name() {
                    super::$name().explore();
                }
            )*
        }
    };
}
pub(crate) use models;

thread_local! {
    /// What has happened in the model that this thread explores, all of whose threads loom runs here.
    static SEEN: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

/// Notes that something happened in this execution.
pub(crate) fn saw(what: &'static str) {
    SEEN.with(|seen| seen.borrow_mut().insert(what));
}

impl Model {
    /// Explores the model, says how far, and asserts that it has seen what it is for. Where it was to stay below its bound
    /// and has not, it goes there.
    pub(crate) fn explore(self) {
        for shallower in (0..=crate::SHALLOWER).rev() {
            SEEN.with(|seen| seen.borrow_mut().clear());
            if !explore(self.name, self.bound.less(shallower), self.run) {
                // Depth comes first, so a run that was cut has seen only one corner.
                return;
            }
            let missed = SEEN.with(|seen| {
                let seen = seen.borrow();
                self.sees.iter().find(|what| !seen.contains(**what))
            });
            let Some(what) = missed else { return };
            assert!(shallower > 0, "{}: no execution in which {what}", self.name);
        }
    }
}

/// What an exploration came to.
pub(crate) struct Outcome {
    pub(crate) executions: u64,
    /// What an execution failed with.
    pub(crate) failure: Option<String>,
}

/// Explores `model` until an execution fails, deep or not.
pub(crate) fn hunt(bound: Bound, model: impl Fn() + Send + Sync + 'static) -> Outcome {
    run(bound.now(), model)
}

fn run(
    (preemptions, limit): (Option<usize>, Option<Duration>),
    model: impl Fn() + Send + Sync + 'static,
) -> Outcome {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_duration = limit;
    // How often loom looks at the clock.
    builder.checkpoint_interval = 256;
    builder.max_branches = 10_000;
    let executions = Arc::new(AtomicU64::new(0));
    let counted = executions.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            // ORDERING: Relaxed, a count that is read after the last execution.
            counted.fetch_add(1, Ordering::Relaxed);
            // The shim's fence makes its word on first use, which loom takes for a release to every
            // later fence. Here, before there is a second thread, that orders nothing new.
            fence(Ordering::SeqCst);
            model();
        });
    }));
    Outcome {
        // ORDERING: Relaxed, all executions are over.
        executions: executions.load(Ordering::Relaxed),
        failure: outcome.err().map(|panic| message(&*panic)),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let lines = text.unwrap_or("a panic without words").trim().lines();
    let lines: Vec<&str> = lines.map(str::trim).take(3).collect();
    lines.join(", ")
}

/// Explores `model` and reports the number of executions on standard error. Whether it came to the end.
///
/// The line is read by `cargo xtask loom`.
pub(crate) fn explore(name: &str, bound: Bound, model: impl Fn() + Send + Sync + 'static) -> bool {
    let start = Instant::now();
    let outcome = hunt(bound, model);
    if let Some(failure) = outcome.failure {
        panic!("{name}: execution {} failed: {failure}", outcome.executions);
    }
    let (preemptions, limit) = bound.now();
    let elapsed = start.elapsed();
    let cut = limit.is_some_and(|limit| elapsed >= limit);
    let explored = match preemptions {
        _ if cut => "not exhausted".to_owned(),
        None => "exhaustive".to_owned(),
        Some(preemptions) => format!("at most {preemptions} preemptions"),
    };
    // Written past the capture of the test harness: the counts are the evidence.
    let _ = writeln!(
        std::io::stderr(),
        "loom {name:<60} {:>9} executions  {explored:<21} {:>6.1} s",
        outcome.executions,
        elapsed.as_secs_f64(),
    );
    !cut
}

/// Asserts that loom finds an execution of `model` that fails, as it must if the models see anything.
#[cfg(not(hv_fault))]
pub(crate) fn assert_fails(name: &str, bound: Bound, model: impl Fn() + Send + Sync + 'static) {
    // Not deeper in a deep run: without a bound, what is wrong can be far away.
    let (Bound::Two(preemptions) | Bound::Three(preemptions)) = bound else {
        panic!("{name} needs a bound");
    };
    let outcome = run((Some(preemptions), None), model);
    let Some(failure) = outcome.failure else {
        panic!("no execution of {name} failed");
    };
    let _ = writeln!(
        std::io::stderr(),
        "loom {name:<60} {:>9} executions  fails, as it must: {failure}",
        outcome.executions
    );
}

/// Tests that callers of the engine who break its rules are noticed: models that must fail.
macro_rules! must_fail {
    ($($(#[doc = $doc:literal])* $name:ident: $bound:expr, $run:expr;)*) => {
        #[cfg(not(hv_fault))]
        mod must_fail {
            use super::*;
            use crate::explore::Bound::*;
            $(
                $(#[doc = $doc])*
                #[test]
                fn $name() {
                    crate::explore::assert_fails(stringify!($name), $bound, $run);
                }
            )*
        }
    };
}
pub(crate) use must_fail;

/// A fault, and the models that must fail because of it.
#[cfg(hv_fault)]
pub(crate) type Row = (hv_core::fault::Fault, &'static [fn() -> Model]);

/// Switches each fault on in turn: its models must fail.
#[cfg(hv_fault)]
pub(crate) fn notice_each(rows: &[Row]) {
    let only = std::env::var("HV_LOOM_FAULT").ok();
    let mut unnoticed = Vec::new();
    for (fault, models) in rows {
        if only.as_deref().is_some_and(|only| only != fault.name()) {
            continue;
        }
        for model in models.iter().map(|model| model()) {
            let start = Instant::now();
            fault.switch_on();
            let outcome = hunt(model.bound, model.run);
            fault.switch_off();
            let said = match outcome.failure {
                Some(failure) => failure,
                None => {
                    unnoticed.push(format!("{fault} by {}", model.name));
                    "NOT NOTICED".to_owned()
                }
            };
            // Written past the capture of the test harness: the counts are the evidence.
            let _ = writeln!(
                std::io::stderr(),
                "loom fault {:<28} {:<52} {:>7} executions  {:>6.1} s  {said}",
                fault.name(),
                model.name,
                outcome.executions,
                start.elapsed().as_secs_f64(),
            );
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}
