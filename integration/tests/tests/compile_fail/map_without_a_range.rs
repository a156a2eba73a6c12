//! There is no map of bare addresses: a range says who owns them.
//! Instead: `domain.reserve(range)`, then `map` on what it returns.
use hv_core::{FrameRun, Hypervisor, Iova, KernelPaging, Perms};
use hv_iommu::Domain;
use hv_tests::fake::Fake;

fn mistake(domain: Domain<KernelPaging, Fake>, at: Iova, frames: FrameRun<Hypervisor>) {
    let _ = domain.map(at, frames, Perms::Read);
}

fn main() {}
