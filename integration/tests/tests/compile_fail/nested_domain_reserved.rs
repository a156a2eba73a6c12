//! A nested domain has no tables of its own: the user writes its first stage itself.
//! Instead: `reserve` and `map` in the parent, whose addresses the first stage leads to.
use hv_core::{IovaRange, UserManaged};
use hv_iommu::{Domain, Nested};
use hv_tests::fake::Fake;

fn mistake(domain: &Domain<UserManaged, Fake, Nested>, span: IovaRange) {
    let _ = domain.reserve(span);
}

fn main() {}
// Shows: T1.
