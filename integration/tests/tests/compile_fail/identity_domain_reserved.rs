//! Nothing is mapped in a domain that translates nothing.
//! Instead: a domain of `paging_domain_alloc`, which the device is attached to in its place.
use hv_core::{IovaRange, KernelPaging};
use hv_iommu::{Domain, Identity};
use hv_tests::fake::Fake;

fn mistake(domain: &Domain<KernelPaging, Fake, Identity>, span: IovaRange) {
    let _ = domain.reserve(span);
}

fn main() {}
// Shows: T1.
