//! The test of the rig: deliberate faults of the driver, each with what the rig has to say about it.

use hv_core::fault::Fault;

use crate::life::Life;
use crate::rule::{Rule, Violation};

/// A fault that the rig has to catch.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// The fault.
    pub fault: Fault,
    /// The rules that it breaks; which one is seen first depends on the machine.
    pub rules: &'static [Rule],
}

const fn planted(fault: Fault, rules: &'static [Rule]) -> Planted {
    Planted { fault, rules }
}

/// Every fault that the rig has to catch, with the rules that it breaks.
pub const PLANTED: &[Planted] = &[
];

/// Faults that are not for the rig, and who catches them.
pub const ELSEWHERE: &[(Fault, &str)] = &[
    (
        Fault::DropLastScope,
        "the scenario `discover` in QEMU: the rig's devices are not lost, they fall to another unit",
    ),
    (
        Fault::InstallByStore,
        "the loom models: it takes two CPUs in the middle of one map each",
    ),
];

/// How many lives are lived before a fault counts as not caught.
pub const LIVES: u64 = 400;
/// Operations of each.
const OPERATIONS: usize = 120;

/// Lives until a rule is broken. Gives the number of lives it took, too.
pub fn hunt() -> Option<(u64, Violation)> {
    (0..LIVES).find_map(|seed| {
        let failure = Life::new(seed, OPERATIONS).live().failure?;
        Some((seed + 1, failure.violation))
    })
}
