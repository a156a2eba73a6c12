//! Guest memory never goes into a domain of the hypervisor's drivers.
//! Instead: map frames of the hypervisor, or use `Domain::alloc_coherent`.
use hv_core::{FrameRun, Guest, KernelPaging, Perms};
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<KernelPaging, Fake, Free>, frames: FrameRun<Guest>) {
    let _ = range.map(frames, Perms::Read);
}

fn main() {}
// Shows: bc17, T24.
