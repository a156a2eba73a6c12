//! A device does not send before it has an owner and a domain.
//! Instead: claim the group, `attach` it, then `enable_bus_mastering`.
use hv_core::PciAddress;
use hv_iommu::{Blocked, Group};
use hv_tests::fake::Fake;

fn mistake(group: &Group<Fake, Blocked>, member: PciAddress) {
    let _ = group.enable_bus_mastering(member);
}

fn main() {}
// Shows: bc05.
