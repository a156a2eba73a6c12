//! A group that a driver of the hypervisor gave up does not go to a guest before its devices were reset.
//! Instead: `reset_members`, or `without_reset` with the reason.
use hv_core::{KernelPaging, VmId};
use hv_iommu::{Claimed, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Claimed<KernelPaging>>, next: VmId) {
    let _ = group.release().claim_for_guest(next);
}

fn main() {}
// Shows: bc05.
