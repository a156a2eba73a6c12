//! Detaching consumes the attached group: what it gives is claimed, or wedged.
//! Instead: go on with what `detach` returned.
use hv_core::KernelPaging;
use hv_iommu::{Attached, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Attached<KernelPaging, Fake>>) {
    let _once = group.detach();
    let _twice = group.detach();
}

fn main() {}
// Shows: bc05, T11.
