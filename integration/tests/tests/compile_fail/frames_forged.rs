//! Frames come from the platform's frame source, which knows that they are free.
//! Instead: `FrameSource::alloc_frames`.
use hv_core::{FrameRun, Hypervisor, PhysRange};

fn mistake(range: PhysRange) -> FrameRun<Hypervisor> {
    FrameRun::from_raw(range, ())
}

fn main() {}
// Shows: bc02.
