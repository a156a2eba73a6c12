//! Where an address of a nested domain leads is up to tables that the user writes.
//! Instead: `translate` on the parent, with an address that the first stage gave.
use hv_core::{Iova, UserManaged};
use hv_iommu::{Domain, Nested};
use hv_tests::fake::Fake;

fn mistake(domain: &Domain<UserManaged, Fake, Nested>, at: Iova) {
    let _ = domain.translate(at);
}

fn main() {}
// Shows: T2.
