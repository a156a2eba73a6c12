//! Whether an entry can be switched at once depends on the unit, which its witness knows.
//! Instead: `group.gapless()` gives the witness, or `replace_with_gap` accepts the gap.
use hv_core::KernelPaging;
use hv_iommu::{Attached, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(
    group: Group<Fake, Attached<KernelPaging, Fake>>,
    domain: &Domain<KernelPaging, Fake>,
) {
    let _ = group.replace(domain);
}

fn main() {}
// Shows: T12.
