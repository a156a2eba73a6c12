//! Attaching consumes the claimed group: it is in one domain at a time.
//! Instead: `detach` the attached group, which gives the claimed one back, and attach that.
use hv_core::KernelPaging;
use hv_iommu::{Claimed, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(
    group: Group<Fake, Claimed<KernelPaging>>,
    first: &Domain<KernelPaging, Fake>,
    second: &Domain<KernelPaging, Fake>,
) {
    let _one = group.attach(first);
    let _two = group.attach(second);
}

fn main() {}
// Shows: bc05, T12.
