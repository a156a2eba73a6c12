//! Frames move into the mapping: the device may write them from now on.
//! Instead: `unmap` the range and get them back with the receipt.
use hv_core::{FrameRun, Hypervisor, KernelPaging, Perms};
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;
use hv_tests::host::Host;

fn mistake(range: Range<KernelPaging, Fake, Free>, frames: FrameRun<Hypervisor>, host: &Host) {
    let _mapped = range.map(frames, Perms::ReadWrite);
    let _ = frames.write(host, 0, b"the device reads this");
}

fn main() {}
// Shows: bc17.
