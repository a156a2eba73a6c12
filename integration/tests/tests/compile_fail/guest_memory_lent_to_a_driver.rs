//! The DMA API lends the hypervisor's memory, never a guest's.
//! Instead: map a guest's memory into a domain of that guest.
use hv_core::{FrameRun, Guest};
use hv_iommu::{DmaDevice, ToDevice};
use hv_tests::fake::Fake;

fn mistake(dma: DmaDevice<Fake>, frames: FrameRun<Guest>) {
    let _ = dma.map(frames, ToDevice);
}

fn main() {}
// Shows: bc17.
