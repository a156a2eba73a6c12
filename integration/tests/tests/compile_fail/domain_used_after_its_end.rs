//! Ending a domain consumes it.
//! Instead: end it last; a refused `destroy` gives the domain back in its error.
use hv_core::{IovaRange, KernelPaging};
use hv_iommu::Domain;
use hv_tests::fake::Fake;

fn mistake(domain: Domain<KernelPaging, Fake>, span: IovaRange) {
    let _frames = domain.destroy();
    let _ = domain.reserve(span);
}

fn main() {}
// Shows: bc21, T13.
