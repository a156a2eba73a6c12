//! A group whose detach the hardware did not complete belongs to nobody.
//! Instead: reset its unit, let the group `recover`, and claim what that gives.
use hv_iommu::{Group, Wedged};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Wedged<Fake>>) {
    let _ = group.claim_for_hypervisor();
}

fn main() {}
// Shows: bc01, bc05.
