//! Deliberate faults of the engine: each must be noticed here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hv_core::fault::Fault;
use hv_core::{PageSize, Perms};

use crate::subject::{Job, Shape, Subject};

/// Whether a mapping of `pages` pages with `perms` passes all comparisons.
fn passes(pages: u64, perms: Perms) -> bool {
    let run = || {
        let mut subject = Subject::new(Shape {
            levels: 3,
            largest: 2,
            coherent: true,
        });
        subject.map(&Job {
            first: 16,
            pages,
            to: 1 << 20,
            perms,
            largest: PageSize::Size4K,
            shared: false,
        });
        subject.compare_region(&subject.regions[&16]);
    };
    catch_unwind(AssertUnwindSafe(run)).is_ok()
}

/// One test, since a fault stays on: each step sees what the faults before it leave whole.
#[test]
fn faults_of_the_map_path_are_noticed() {
    assert!(passes(2, Perms::Read));
    Fault::IgnorePermissions.switch_on();
    assert!(!passes(1, Perms::Read), "wrong permissions");
    assert!(passes(2, Perms::ReadWrite));
    Fault::SwapNeighbours.switch_on();
    assert!(passes(1, Perms::ReadWrite));
    assert!(!passes(2, Perms::ReadWrite), "wrong frames");
}
