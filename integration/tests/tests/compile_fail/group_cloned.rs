//! There is one value per group, and it is the right to move the group on.
//! Instead: keep it where its state is kept, and lend it.
use hv_iommu::{Blocked, Group};
use hv_tests::fake::Fake;

fn mistake(group: &Group<Fake, Blocked>) -> Group<Fake, Blocked> {
    group.clone()
}

fn main() {}
// Shows: bc05, T10.
