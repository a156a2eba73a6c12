//! What can be built depends on the unit of the device, so no domain is made for a bus.
//! Instead: claim the device's group, `Domain::paging_domain_alloc(&group, ..)`.
use hv_core::{KernelPaging, Segment};
use hv_iommu::{Domain, DomainConfig, iommu_domain_alloc};
use hv_tests::fake::Fake;

fn mistake(bus: Segment, config: DomainConfig) {
    let _ = iommu_domain_alloc(bus);
    let _ = Domain::<KernelPaging, Fake>::paging_domain_alloc(&bus, config);
}

fn main() {}
// Shows: T24.
