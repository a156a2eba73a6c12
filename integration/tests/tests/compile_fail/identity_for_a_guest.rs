//! A guest's device is always translated.
//! Instead: `user_domain_alloc`, with the guest's memory mapped where the guest sees it.
use hv_core::UserManaged;
use hv_iommu::{Domain, Identity};
use hv_tests::fake::Fake;

fn mistake(_domain: Domain<UserManaged, Fake, Identity>) {}

fn main() {}
// Shows: T24.
