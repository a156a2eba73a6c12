//! A first stage stands on a domain that was made for that.
//! Instead: `Domain::user_parent_alloc(&group, ..)`.
use hv_core::UserManaged;
use hv_iommu::Domain;
use hv_tests::fake::{Fake, UserStage};

fn mistake(plain: &Domain<UserManaged, Fake>, stage: &UserStage) {
    let _ = Domain::alloc_nested(plain, stage);
}

fn main() {}
// Shows: T6.
