//! Whether anybody may claim a group that comes in is not known before it was looked at.
//! Instead: match on it, or ask for `claimable`, which gives it back if it is firmware's or waits for a reset.
use hv_core::VmId;
use hv_iommu::AtRest;
use hv_tests::fake::Fake;

fn mistake(group: AtRest<Fake>, vm: VmId) {
    let _ = group.claim_for_guest(vm);
}

fn main() {}
// Shows: bc05, bc06, T19.
