//! A pending page of a shared range still needs the range.
//! Instead: open the page first, `unshare` after.
use hv_core::{Iova, KernelPaging, PageSize};
use hv_iommu::{Receipt, SharedRange};
use hv_tests::fake::Fake;

fn mistake(shared: SharedRange<KernelPaging, Fake>, at: Iova, receipt: &Receipt) {
    let Ok(page) = shared.unmap(at, PageSize::Size4K) else {
        return;
    };
    let _ = shared.unshare();
    let _ = page.redeem(receipt);
}

fn main() {}
// Shows: bc02.
