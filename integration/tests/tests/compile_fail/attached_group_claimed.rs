//! A group that a driver has attached cannot be claimed for a guest.
//! Instead: `detach`, then `release`, then `claim_for_guest`.
use hv_core::{KernelPaging, VmId};
use hv_iommu::{Attached, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Attached<KernelPaging, Fake>>, vm: VmId) {
    let _ = group.claim_for_guest(vm);
}

fn main() {}
// Shows: bc05, T10.
