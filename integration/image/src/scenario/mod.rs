//! The scenarios: what the image shows, one after the other, and how each is judged.

mod blocked;
mod concurrent;
mod discover;
mod drive;
mod faults;
mod kernel_dma;
#[cfg(target_arch = "aarch64")]
mod nested;
mod reassign;
mod revoke;
mod shut_down;
mod tables;
mod untranslated;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Debug, Display};

use hv_core::platform::Clock;
use hv_core::sync::AtomicU64;
use hv_iommu::{Blocked, Group, Iommu};

use crate::command_line::Scenario;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::report::{self, Event};
use crate::subsystem::{self, Backend, Subsystem, SubsystemError};

/// Why a scenario failed, in one line for people.
struct Failure(String);

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    /// A failure with this text.
    fn new(text: impl Display) -> Self {
        Self(format!("{text}"))
    }
}

/// What a scenario showed, in one line for people.
type Shown = Result<String, Failure>;

/// Turns an error into a failure that says what was being done.
trait OrFail<T> {
    /// The value, or the error's text behind `doing`.
    fn or_fail(self, doing: &str) -> Result<T, Failure>;
}

impl<T, E: Debug> OrFail<T> for Result<T, E> {
    fn or_fail(self, doing: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure(format!("{doing}: {error:?}")))
    }
}

/// Fails with a text unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err($crate::scenario::Failure::new(format_args!($($text)*)));
        }
    };
}
use ensure;

/// What the scenarios work with.
struct Context<'m> {
    machine: &'m Machine,
    iommu: Iommu<Backend>,
    /// Every group that is at rest.
    groups: Vec<Group<Backend, Blocked>>,
    /// The scenario that runs.
    name: &'static str,
    /// How many interrupts had told of faults when the logs were last emptied.
    seen: AtomicU64,
}

impl Context<'_> {
    /// Tells people something about the scenario that runs.
    fn note(&self, text: impl Display) {
        report::emit(&Event::Note {
            scenario: self.name,
            text: &text,
        });
    }
}

/// Runs what the command line asks for and says how it ended.
pub fn run(machine: &Machine) -> Outcome {
    let mut passed = 0;
    let mut failed = 0;
    // Brought up by the first scenario that needs it, as a part of what that shows.
    let mut subsystem = None;
    for scenario in &machine.options.scenarios {
        let name = scenario.name();
        report::emit(&Event::ScenarioStart { name });
        let begin = machine.platform.now();
        let shown = match scenario {
            // The first of all, before an IOMMU is brought up.
            Scenario::Untranslated => untranslated::run(machine),
            _ => match subsystem.get_or_insert_with(|| bring_up(machine)) {
                Ok(subsystem) => run_one(machine, subsystem, *scenario),
                Err(error) => Err(Failure::new(format_args!(
                    "the IOMMU was not brought up: {error}"
                ))),
            },
        };
        let micros = machine.platform.now().since(begin).as_micros();
        let detail: &dyn Display = match &shown {
            Ok(text) => text,
            Err(failure) => failure,
        };
        match &shown {
            Ok(_) => passed += 1,
            Err(_) => failed += 1,
        }
        report::emit(&Event::ScenarioEnd {
            name,
            passed: shown.is_ok(),
            micros: u64::try_from(micros).unwrap_or(u64::MAX),
            detail,
        });
    }
    report::emit(&Event::Done { passed, failed });
    if failed == 0 {
        Outcome::Passed
    } else {
        Outcome::Failed
    }
}

/// The subsystem of the machine. Its units are reported whatever is shown on them: they say which board this is.
fn bring_up(machine: &Machine) -> Result<Subsystem, SubsystemError> {
    let subsystem = subsystem::bring_up(machine)?;
    discover::report_units(&subsystem);
    Ok(subsystem)
}

fn run_one(machine: &Machine, subsystem: &mut Subsystem, scenario: Scenario) -> Shown {
    let mut context = Context {
        machine,
        iommu: subsystem.iommu.clone(),
        groups: core::mem::take(&mut subsystem.groups),
        name: scenario.name(),
        seen: AtomicU64::new(0),
    };
    let shown = match scenario {
        Scenario::Untranslated => untranslated::run(machine),
        Scenario::Discover => discover::run(&context, subsystem),
        Scenario::KernelDma => kernel_dma::run(&mut context),
        Scenario::Blocked => blocked::run(&mut context),
        Scenario::Revoke => revoke::run(&mut context),
        Scenario::Reassign => reassign::run(&mut context),
        #[cfg(target_arch = "aarch64")]
        Scenario::Nested => nested::run(&mut context),
        #[cfg(not(target_arch = "aarch64"))]
        Scenario::Nested => Err(Failure::new(
            "expected a backend on which guests have first stages of their own (NestedBackend), found one without",
        )),
        Scenario::Concurrent => concurrent::run(&mut context),
        Scenario::Tables => tables::run(&mut context),
        Scenario::ShutDown => shut_down::run(&mut context),
    };
    subsystem.groups = context.groups;
    shown
}
