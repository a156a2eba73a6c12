//! An attached group cannot be attached to another domain.
//! Instead: `detach` it first; then no domain sees the device while it moves.
use hv_core::KernelPaging;
use hv_iommu::{Attached, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Attached<KernelPaging, Fake>>, other: &Domain<KernelPaging, Fake>) {
    let _ = group.attach(other);
}

fn main() {}
// Shows: bc05, T12.
