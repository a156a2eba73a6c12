//! An unmap that is not followed by a flush gives neither frames nor addresses back.
//! Instead: `flush` the pending value, or collect several and open them with one receipt.
#![deny(unused_must_use)]
use hv_core::KernelPaging;
use hv_iommu::{Mapped, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<KernelPaging, Fake, Mapped>) {
    range.unmap();
}

fn main() {}
// Shows: bc02, T17.
