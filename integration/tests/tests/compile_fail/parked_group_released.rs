//! A group whose devices are being reset is in its domain still, and not given up.
//! Instead: `detach` it, which gives a claimed group, and `release` that.
use hv_core::KernelPaging;
use hv_iommu::{Group, Parked};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Parked<KernelPaging, Fake>>) {
    let _ = group.release();
}

fn main() {}
// Shows: bc05, T10.
