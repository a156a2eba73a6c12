//! A mapping that allows neither reads nor writes is none: permissions are never empty.
//! Instead: do not map; or take rights that come from elsewhere apart with `Perms::from_rights`.
use hv_core::{FrameRun, Hypervisor, KernelPaging, Perms};
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;

fn mistake(range: Range<KernelPaging, Fake, Free>, frames: FrameRun<Hypervisor>) {
    let _ = range.map(frames, Perms::from_rights(false, false));
}

fn main() {}
// Shows: T14.
