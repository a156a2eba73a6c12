//! A receipt opens a pending value once: its frames have one owner.
//! Instead: keep what the first `redeem` returned.
use hv_core::KernelPaging;
use hv_iommu::{PendingUnmap, Receipt};
use hv_tests::fake::Fake;

fn mistake(pending: PendingUnmap<KernelPaging, Fake>, receipt: &Receipt) {
    let _once = pending.redeem(receipt);
    let _twice = pending.redeem(receipt);
}

fn main() {}
// Shows: bc01, bc02.
