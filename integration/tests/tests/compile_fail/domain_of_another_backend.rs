//! A group is attached to domains of its own backend: another one writes other tables.
//! Instead: make the domain for this group, `Domain::paging_domain_alloc(&group, ..)`.
use hv_core::KernelPaging;
use hv_iommu::{Claimed, Domain, Group};
use hv_tests::fake::Fake;

struct Intel;
struct Arm;

fn mistake(
    group: Group<Fake<Intel>, Claimed<KernelPaging>>,
    domain: &Domain<KernelPaging, Fake<Arm>>,
) {
    let _ = group.attach(domain);
}

fn main() {}
// Shows: bc08, T3.
