//! The addresses of a pending value are not free yet.
//! Instead: `flush` or `redeem` it, and use the range that comes back.
use hv_core::{FrameRun, Hypervisor, KernelPaging, Perms};
use hv_iommu::{Mapped, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<KernelPaging, Fake, Mapped>, frames: FrameRun<Hypervisor>) {
    let _ = range.unmap().map(frames, Perms::Read);
}

fn main() {}
// Shows: bc02, T17.
