//! Nothing is mapped in the domain through which nobody reaches memory.
//! Instead: a paging domain, which the group is moved to by `replace_with_gap`.
use hv_core::{IovaRange, KernelPaging};
use hv_iommu::{Blocked, Domain};
use hv_tests::fake::Fake;

fn mistake(domain: &Domain<KernelPaging, Fake, Blocked>, span: IovaRange) {
    let _ = domain.reserve(span);
}

fn main() {}
// Shows: T1.
