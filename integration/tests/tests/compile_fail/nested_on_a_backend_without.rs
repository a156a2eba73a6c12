//! Legacy mode of VT-d walks no first stage.
//! Instead: `user_domain_alloc`, and map in that.
use hv_core::UserManaged;
use hv_iommu::{Domain, Nested};
use hv_rig::Rig;
use hv_vtd::Vtd;

fn mistake(_domain: Domain<UserManaged, Vtd<Rig>, Nested>) {}

fn main() {}
// Shows: T5.
