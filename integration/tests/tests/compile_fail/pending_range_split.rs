//! What was unmapped and waits for its flush is no page that could be split or merged.
//! Instead: `flush` it, and map the range anew, or split before unmapping.
use hv_core::{KernelPaging, PageCount};
use hv_iommu::{Mapped, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<KernelPaging, Fake, Mapped>) {
    let mut pending = range.unmap();
    let _ = pending.merge();
    let _ = pending.split_large_at(PageCount::ONE);
}

fn main() {}
// Shows: bc09.
