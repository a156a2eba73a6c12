//! A guest's domain has no DMA API: the guest decides what it maps, and only its own memory.
//! Instead: `GuestMemory::pin`, then `Domain::reserve` and `Range::map`.
use hv_core::UserManaged;
use hv_iommu::{BufferRequest, Domain};
use hv_tests::fake::Fake;

fn mistake(domain: Domain<UserManaged, Fake>, wanted: BufferRequest) {
    let _ = domain.alloc_coherent(wanted);
}

fn main() {}
// Shows: T9, T24.
