//! Nothing is lent to a device through a guest's domain: the guest decides what it maps.
//! Instead: `GuestMemory::pin`, then `Domain::reserve` and `Range::map`.
use hv_core::UserManaged;
use hv_iommu::{DmaConfig, Domain};
use hv_tests::fake::Fake;

fn mistake(domain: Domain<UserManaged, Fake>) {
    let _ = domain.dma_device(DmaConfig::default());
}

fn main() {}
// Shows: T9.
