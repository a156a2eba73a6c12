//! The witness has one constructor, whose name is in the log afterwards.
//! Instead: `InterruptsIsolated::override_unsafe_interrupts("why it is acceptable here")`.
use hv_iommu::InterruptsIsolated;

fn mistake() -> InterruptsIsolated {
    InterruptsIsolated {
        reason: "it will be fine",
    }
}

fn main() {}
// Shows: T18.
