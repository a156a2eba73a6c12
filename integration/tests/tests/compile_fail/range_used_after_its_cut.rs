//! A range that was cut is its two parts: nobody changes pages by a name that covers both.
//! Instead: go on with the parts, or `join` them and `merge` what comes back.
use hv_core::{KernelPaging, PageCount};
use hv_iommu::{Mapped, Range};
use hv_tests::fake::Fake;

fn mistake(mut range: Range<KernelPaging, Fake, Mapped>) {
    let _cut = range.split_large_at(PageCount::ONE);
    let _ = range.merge();
}

fn main() {}
// Shows: bc09.
