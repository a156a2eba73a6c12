//! A group that the hypervisor claimed does not translate through a guest's domain.
//! Instead: `release` the group and `claim_for_guest`, or use a domain of `paging_domain_alloc`.
use hv_core::{KernelPaging, UserManaged};
use hv_iommu::{Claimed, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Claimed<KernelPaging>>, domain: &Domain<UserManaged, Fake>) {
    let _ = group.attach(domain);
}

fn main() {}
// Shows: T24.
