//! First stages of their own are for users; a driver of the hypervisor maps what it needs.
//! Instead: `paging_domain_alloc`, or claim the group for a guest.
use hv_core::KernelPaging;
use hv_iommu::{Domain, ParentPaging};
use hv_tests::fake::Fake;

fn mistake(_domain: Domain<KernelPaging, Fake, ParentPaging>) {}

fn main() {}
// Shows: T6, T24.
