//! A first stage does not stand on another one.
//! Instead: make both on the same parent.
use hv_core::UserManaged;
use hv_iommu::{Domain, Nested};
use hv_tests::fake::{Fake, UserStage};

fn mistake(nested: &Domain<UserManaged, Fake, Nested>, stage: &UserStage) {
    let _ = Domain::alloc_nested(nested, stage);
}

fn main() {}
// Shows: T6.
