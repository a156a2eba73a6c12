//! A range is in one state at a time: mapping consumes the free one.
//! Instead: go on with the mapped range, or `split_at` first to map in parts.
use hv_core::{FrameRun, Hypervisor, KernelPaging, Perms};
use hv_iommu::{Free, Range};
use hv_tests::fake::Fake;

fn mistake(
    range: Range<KernelPaging, Fake, Free>,
    first: FrameRun<Hypervisor>,
    second: FrameRun<Hypervisor>,
) {
    let _one = range.map(first, Perms::Read);
    let _two = range.map(second, Perms::Read);
}

fn main() {}
