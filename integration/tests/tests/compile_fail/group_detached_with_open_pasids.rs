//! A group whose PASIDs are open may have some in other domains.
//! Instead: `detach_pasid` each, `close_pasids`, then `detach`.
use hv_core::KernelPaging;
use hv_iommu::{Paging, PasidGroup};
use hv_tests::fake::Fake;

fn mistake(group: PasidGroup<KernelPaging, Fake, Paging>) {
    let _ = group.detach();
}

fn main() {}
// Shows: bc05, T13.
