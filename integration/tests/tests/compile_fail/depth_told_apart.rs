//! The depth of a table that is there does not change: what units are told is what was built.
//! Instead: make another domain, with the address bits that it needs.
use hv_iommu::{Binding, Level};

fn mistake(mut binding: Binding, deeper: Level) -> Binding {
    binding.root.level = deeper;
    binding
}

fn main() {}
// Shows: bc08.
