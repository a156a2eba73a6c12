//! A group whose detach the hardware did not complete belongs to nobody.
//! Instead: nothing. It stays out of use until its unit is reset.
use hv_iommu::{Group, Wedged};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Wedged>) {
    let _ = group.claim_for_hypervisor();
}

fn main() {}
