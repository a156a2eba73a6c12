//! Ending a nested domain consumes it, and lets go of its parent.
//! Instead: end it last; a refused `destroy` gives the domain back in its error.
use hv_core::UserManaged;
use hv_iommu::{Domain, Nested};
use hv_tests::fake::Fake;

fn mistake(domain: Domain<UserManaged, Fake, Nested>) {
    let _ended = domain.destroy();
    let _ = domain.invalidate(&[]);
}

fn main() {}
// Shows: bc21, T13.
