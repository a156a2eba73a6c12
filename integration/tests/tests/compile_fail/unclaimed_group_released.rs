//! Only who claimed a group gives it up.
//! Instead: nothing; a blocked group is nobody's.
use hv_iommu::{Blocked, Group};
use hv_tests::fake::Fake;

fn mistake(group: Group<Fake, Blocked>) {
    let _ = group.release();
}

fn main() {}
// Shows: T10.
