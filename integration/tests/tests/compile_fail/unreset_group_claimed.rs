//! A group that a guest gave up is not claimed before its devices were reset.
//! Instead: `reset_members`, or `without_reset` with the reason.
use hv_core::{UserManaged, VmId};
use hv_iommu::{Claimed, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Claimed<UserManaged>>, next: VmId) {
    let _ = group.release().claim_for_guest(next);
}

fn main() {}
// Shows: bc05.
