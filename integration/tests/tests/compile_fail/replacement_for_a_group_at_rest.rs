//! A domain, also one that replaces another, is made for a group that somebody holds.
//! Instead: claim the group; once it is attached it serves as it is, and `replace_with_gap` moves it.
use hv_iommu::{Blocked, Domain, DomainConfig, Group};
use hv_tests::fake::Fake;

fn mistake(group: &Group<Fake, Blocked>) {
    let _ = Domain::user_domain_alloc(group, DomainConfig::default());
}

fn main() {}
// Shows: T24.
