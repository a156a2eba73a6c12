//! A device does not send before it has a domain.
//! Instead: `attach` the group, then `enable_bus_mastering` on the attached one.
use hv_core::{KernelPaging, PciAddress};
use hv_iommu::{Claimed, Group};
use hv_tests::fake::Fake;

fn mistake(group: &Group<Fake, Claimed<KernelPaging>>, member: PciAddress) {
    let _ = group.enable_bus_mastering(member);
}

fn main() {}
// Shows: bc05.
