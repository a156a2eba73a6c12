//! Without interrupt remapping a guest's device can raise any vector.
//! Instead: pass an `InterruptsIsolated`; the group shows it, or its constructor says what is pretended.
use hv_core::UserManaged;
use hv_iommu::{Claimed, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Claimed<UserManaged>>, domain: &Domain<UserManaged, Fake>) {
    let _ = group.attach_for_guest(domain);
}

fn main() {}
// Shows: T18.
