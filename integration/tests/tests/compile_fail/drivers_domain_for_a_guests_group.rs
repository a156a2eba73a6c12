//! Whose domain it is follows from who claimed the group.
//! Instead: `Domain::user_domain_alloc(&group, ..)` for a guest's group.
use hv_core::UserManaged;
use hv_iommu::{Claimed, Domain, DomainConfig, Group};
use hv_tests::fake::Fake;

fn mistake(group: &Group<Fake, Claimed<UserManaged>>, config: DomainConfig) {
    let _ = Domain::paging_domain_alloc(group, config);
}

fn main() {}
// Shows: T24.
