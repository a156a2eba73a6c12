//! The witness is shown by a group, or assumed by a constructor whose name is in the log afterwards.
//! Instead: `group.interrupts_isolated()`, or `InterruptsIsolated::override_unsafe_interrupts("why it is acceptable here")`.
use hv_iommu::InterruptsIsolated;

fn mistake() -> InterruptsIsolated {
    InterruptsIsolated {}
}

fn main() {}
// Shows: T18.
