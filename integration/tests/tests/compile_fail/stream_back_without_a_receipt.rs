//! A pending stream gives its memory back to who has a receipt.
//! Instead: `Domain::flush` and `redeem`, or `flush` of the value itself.
use hv_iommu::{PendingStream, ToDevice};
use hv_tests::fake::Fake;

fn mistake(pending: PendingStream<Fake, ToDevice>) {
    let _ = pending.redeem();
}

fn main() {}
// Shows: bc02, T17.
