//! What the CPU wrote in its turn has to reach the device, or the other way round, before the mapping goes.
//! Instead: `StreamOnCpu::sync_for_device`, then `unmap`.
use hv_iommu::{Bidirectional, StreamOnCpu};
use hv_tests::fake::Fake;

fn mistake(turn: StreamOnCpu<Fake, Bidirectional>) {
    let _ = turn.unmap();
}

fn main() {}
