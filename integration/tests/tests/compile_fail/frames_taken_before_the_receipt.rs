//! Unmapping gives a pending value, not the frames: the hardware may still have them cached.
//! Instead: `flush` the pending value, or `redeem` it with a receipt of `Domain::flush`.
use hv_core::KernelPaging;
use hv_core::platform::FrameSource;
use hv_iommu::{Mapped, Range};
use hv_tests::fake::Fake;
use hv_tests::host::Host;

fn mistake(range: Range<KernelPaging, Fake, Mapped>, host: &Host) {
    host.free_frames(range.unmap());
}

fn main() {}
// Shows: bc02, bc17, T17.
