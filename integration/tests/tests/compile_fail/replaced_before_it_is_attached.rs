//! Only what is attached has a domain to be replaced.
//! Instead: `attach`.
use hv_core::KernelPaging;
use hv_iommu::{Claimed, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Claimed<KernelPaging>>, domain: &Domain<KernelPaging, Fake>) {
    let _ = group.replace_with_gap(domain);
}

fn main() {}
// Shows: T12.
