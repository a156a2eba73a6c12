//! A group with a device that firmware goes on using is never a guest's.
//! Instead: `override_firmware` with a policy that says why, and claim what that gives; or let the hypervisor have it.
use hv_core::VmId;
use hv_iommu::{Group, Pinned};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Pinned>, vm: VmId) {
    let _ = group.claim_for_guest(vm);
}

fn main() {}
// Shows: bc06, T19.
