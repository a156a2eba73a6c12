//! A PASID's attachment is one value, and detaching takes it.
//! Instead: keep the attachment until it is detached, once; a failed detach gives it back.
use hv_core::KernelPaging;
use hv_iommu::{Paging, PasidAttachment, PasidGroup};
use hv_tests::fake::Fake;

fn mistake(
    group: &PasidGroup<KernelPaging, Fake, Paging>,
    attachment: PasidAttachment<KernelPaging, Fake>,
) {
    let _once = group.detach_pasid(attachment);
    let _twice = group.detach_pasid(attachment);
}

fn main() {}
// Shows: T11.
