//! Memory of the hypervisor never goes into a guest's domain.
//! Instead: give the frames to the guest with `GuestMemory::give`, and map what `pin` returns.
use hv_core::{FrameRun, Hypervisor, Perms, UserManaged};
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<UserManaged, Fake, Free>, frames: FrameRun<Hypervisor>) {
    let _ = range.map(frames, Perms::Read);
}

fn main() {}
// Shows: bc17, T24.
