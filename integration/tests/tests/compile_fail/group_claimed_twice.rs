//! A claim consumes the group: there is one holder at a time.
//! Instead: `release` the first claim, then claim what that gives.
use hv_core::VmId;
use hv_iommu::{Blocked, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Blocked>, one: VmId, other: VmId) {
    let _first = group.claim_for_guest(one);
    let _second = group.claim_for_guest(other);
}

fn main() {}
// Shows: bc05, T10.
