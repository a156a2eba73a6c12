//! A guest never decides over the domain of a driver of the hypervisor.
//! Instead: `Domain::user_domain_alloc` for a group that is claimed for the guest.
//! Shows: T24.
use hv_core::KernelPaging;
use hv_iommu::{AddressSpace, Domain};
use hv_tests::fake::Fake;

fn mistake(domain: Domain<KernelPaging, Fake>) {
    let _ = AddressSpace::new(domain, None);
}

fn main() {}
