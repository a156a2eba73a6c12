//! A guest's device does not reach memory past its unit: nothing there looks at what the guest's domain lets it.
//! Instead: nothing; attaching turns such a cache off, and refuses a group whose device has one.
use hv_core::UserManaged;
use hv_iommu::{Claimed, Group, TrustedDevice};
use hv_rig::Rig;
use hv_smmu::Smmu;

fn mistake(group: Group<Smmu<Rig>, Claimed<UserManaged>>, trusted: &TrustedDevice<Smmu<Rig>>) {
    let _ = group.let_cxl_cache(trusted);
}

fn main() {}
