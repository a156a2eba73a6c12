//! What can be built depends on the unit of the device, so no domain is made for a bus.
//! Instead: claim the device's group, `Domain::paging_domain_alloc(&group, ..)`.
use hv_core::{KernelPaging, Segment};
use hv_iommu::{Domain, DomainConfig, Iommu};
use hv_tests::fake::Fake;

fn mistake(iommu: &Iommu<Fake>, bus: Segment, config: DomainConfig) {
    let _ = iommu.domain_alloc(bus);
    let _ = Domain::<KernelPaging, Fake>::domain_alloc(bus, config);
    let _ = Domain::<KernelPaging, Fake>::paging_domain_alloc(&bus, config);
}

fn main() {}
// Shows: T24.
