//! A backend that has to take an entry down before it writes it again leaves a gap.
//! Instead: `replace_with_gap`, which says so.
use hv_core::KernelPaging;
use hv_iommu::{Attached, Group};
use hv_rig::Rig;
use hv_vtd::Vtd;

fn mistake(group: &Group<Vtd<Rig>, Attached<KernelPaging, Vtd<Rig>>>) {
    let _ = group.gapless();
}

fn main() {}
// Shows: T5.
