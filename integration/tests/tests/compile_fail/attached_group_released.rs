//! An attached group cannot be given up: its devices still reach memory.
//! Instead: `detach` it, which gives a claimed group, and `release` that.
use hv_core::UserManaged;
use hv_iommu::{Attached, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Attached<UserManaged, Fake>>) {
    let _ = group.release();
}

fn main() {}
// Shows: bc05, T10.
