//! A run of frames moves into its mapping.
//! Instead: use what `flush` or `redeem` of the pending value gives back.
use hv_core::{FrameRun, Hypervisor};
use hv_iommu::{DmaDevice, ToDevice};
use hv_tests::fake::Fake;
use hv_tests::host::Host;

fn mistake(dma: DmaDevice<Fake>, frames: FrameRun<Hypervisor>, host: &Host) {
    let _mapping = dma.map(frames, ToDevice);
    let _ = frames.write(host, 0, &[1]);
}

fn main() {}
// Shows: bc17.
