//! Legacy mode of VT-d looks at no PASID.
//! Instead: `attach` the whole function to one domain.
use hv_core::KernelPaging;
use hv_iommu::{Attached, Group};
use hv_rig::Rig;
use hv_vtd::Vtd;

fn mistake(group: Group<Vtd<Rig>, Attached<KernelPaging, Vtd<Rig>>>) {
    let _ = group.open_pasids();
}

fn main() {}
// Shows: T5.
