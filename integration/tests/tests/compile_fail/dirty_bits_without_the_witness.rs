//! Dirty bits are read through a witness that units write them for this domain.
//! Instead: ask for `Needs::dirty_tracking` at allocation; then `Domain::dirty` is `Some`.
use hv_core::KernelPaging;
use hv_iommu::{DirtyBitmap, DirtyTracking, Domain};
use hv_tests::fake::Fake;

fn mistake(domain: &Domain<KernelPaging, Fake>, bitmap: &mut DirtyBitmap<'_>) {
    let _ = domain.dirty().read(bitmap);
    let _: DirtyTracking<'_, Fake> = DirtyTracking {};
}

fn main() {}
// Shows: T8.
