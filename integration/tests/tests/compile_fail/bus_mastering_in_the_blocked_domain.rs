//! Nothing that a device sends gets through the blocked domain.
//! Instead: move the group to a paging domain, then `enable_bus_mastering`.
use hv_core::{KernelPaging, PciAddress};
use hv_iommu::{Attached, Blocked, Group};
use hv_tests::fake::Fake;

fn mistake(group: &Group<Fake, Attached<KernelPaging, Fake, Blocked>>, member: PciAddress) {
    let _ = group.enable_bus_mastering(member);
}

fn main() {}
// Shows: bc05.
