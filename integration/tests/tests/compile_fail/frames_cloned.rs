//! A run of frames has one owner.
//! Instead: `split_at` it, or allocate another.
use hv_core::{FrameRun, Hypervisor};

fn mistake(frames: &FrameRun<Hypervisor>) -> FrameRun<Hypervisor> {
    frames.clone()
}

fn main() {}
// Shows: bc02, bc17.
