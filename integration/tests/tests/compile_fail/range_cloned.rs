//! A range has one owner.
//! Instead: `split_at` it, or `share` it for single pages.
use hv_core::KernelPaging;
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;

fn mistake(range: &Range<KernelPaging, Fake, Free>) -> Range<KernelPaging, Fake, Free> {
    range.clone()
}

fn main() {}
