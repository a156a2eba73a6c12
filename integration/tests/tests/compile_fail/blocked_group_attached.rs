//! A group is claimed for somebody before it is attached.
//! Instead: `claim_for_hypervisor` or `claim_for_guest`, then attach.
use hv_core::KernelPaging;
use hv_iommu::{Blocked, Domain, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Blocked>, domain: &Domain<KernelPaging, Fake>) {
    let _ = group.attach(domain);
}

fn main() {}
// Shows: bc05, T10.
