//! A guest's device keeps no translations: what it sent by them would pass the unit unchecked.
//! Instead: leave ATS off; the guest's domain translates each request.
use hv_core::{PciAddress, UserManaged};
use hv_iommu::{Attached, Group, TrustedDevice};
use hv_rig::Rig;
use hv_smmu::Smmu;

fn mistake(
    group: &mut Group<Smmu<Rig>, Attached<UserManaged, Smmu<Rig>>>,
    trusted: &TrustedDevice<Smmu<Rig>>,
    device: PciAddress,
) {
    let _ = group.enable_ats(device, trusted);
}

fn main() {}
