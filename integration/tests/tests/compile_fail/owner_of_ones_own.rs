//! There are two kinds of owners; a third would have rules that nobody checked.
//! Instead: `KernelPaging` for code of the hypervisor, `UserManaged` for everybody else.
use hv_core::{Guest, Owner, OwnerId, VmId};

enum Trusted {}

impl Owner for Trusted {
    type Memory = Guest;
    type Id = VmId;
    fn owner_id(id: VmId) -> OwnerId {
        OwnerId::Vm(id)
    }
}

fn main() {}
// Shows: T24.
