//! A guest's domain flushes strictly: its memory comes back by receipt, with its addresses.
//! Instead: `Range::unmap`, and `flush` or `redeem` the pending value.
use hv_core::UserManaged;
use hv_iommu::{DeferredConfig, Domain};
use hv_tests::fake::Fake;

fn mistake(domain: Domain<UserManaged, Fake>, config: DeferredConfig) {
    let _ = domain.allow_deferred_flush(config);
}

fn main() {}
// Shows: bc02, T9.
