//! A mapped range holds frames; mapping over it would lose them.
//! Instead: `unmap` and `flush`, then map the free range that comes back.
use hv_core::{FrameRun, Hypervisor, KernelPaging, Perms};
use hv_iommu::{Mapped, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<KernelPaging, Fake, Mapped>, frames: FrameRun<Hypervisor>) {
    let _ = range.map(frames, Perms::Read);
}

fn main() {}
// Shows: bc02.
