//! What a nested allocation gives is a nested domain.
//! Instead: keep it as one; its parent is the domain with tables.
use hv_core::UserManaged;
use hv_iommu::{Domain, NestedError, ParentPaging};
use hv_tests::fake::{Fake, UserStage};

fn mistake(
    parent: &Domain<UserManaged, Fake, ParentPaging>,
    stage: &UserStage,
) -> Result<Domain<UserManaged, Fake>, NestedError> {
    Domain::alloc_nested(parent, stage)
}

fn main() {}
// Shows: T7.
