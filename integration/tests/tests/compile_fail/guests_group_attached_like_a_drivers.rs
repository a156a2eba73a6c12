//! A guest's device may forge interrupts, so its attach asks for a witness against that.
//! Instead: `attach_for_guest(&domain, &isolated)`.
use hv_core::UserManaged;
use hv_iommu::{Claimed, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Claimed<UserManaged>>, domain: &Domain<UserManaged, Fake>) {
    let _ = group.attach(domain);
}

fn main() {}
// Shows: T18.
