//! Scenarios with their n-th allocation failing, for n = 0, 1, 2, ... until none is left to fail. After the idea of
//! Linux's `iommufd_fail_nth`.
//!
//! A test binary that uses this has [`FailingHeap`](crate::heap::FailingHeap) as its global allocator.

use std::fmt::Debug;

use crate::heap;
use crate::host::Host;

/// Which allocations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Those of the heap, on this thread.
    Heap,
    /// Those of frames, from the host.
    Frames,
}

impl Source {
    fn arm(self, host: &Host, failing: Option<u64>) {
        match self {
            Self::Heap => heap::fail_after(failing),
            Self::Frames => host.fail_allocation_after(failing),
        }
    }

    /// Whether the allocation that was to fail has not come yet.
    fn is_due(self, host: &Host) -> bool {
        match self {
            Self::Heap => heap::is_due(),
            Self::Frames => host.is_failure_due(),
        }
    }
}

/// Done, or the error that a scenario stopped at.
pub type Outcome = Result<(), String>;

/// An error as an [`Outcome`] has it. The message itself is memory, too.
pub fn text(error: impl Debug) -> String {
    let _exempt = heap::exempt();
    format!("{error:?}")
}

/// What scenarios run on.
pub trait Stand {
    /// The host whose frames are counted.
    fn host(&self) -> &Host;

    /// Takes down what a run left, sees that nothing is lost, and is ready for another.
    fn take_down(&mut self);
}

/// Runs `live` with each of its allocations failing, and after each failure once more on the same stand, where it must
/// go through. Gives how many failed.
pub fn each<S: Stand>(
    source: Source,
    make: impl Fn() -> S,
    live: impl Fn(&mut S) -> Outcome,
) -> u64 {
    for failing in 0.. {
        let mut stand = make();
        source.arm(stand.host(), Some(failing));
        let outcome = live(&mut stand);
        let is_over = source.is_due(stand.host());
        source.arm(stand.host(), None);
        if outcome.is_err() {
            println!("{source:?} {failing}: {outcome:?}");
        }
        stand.take_down();
        if is_over {
            assert_eq!(outcome, Ok(()), "nothing failed");
            return failing;
        }
        assert_eq!(
            live(&mut stand),
            Ok(()),
            "again, after {failing}: {outcome:?}"
        );
        stand.take_down();
        assert!(failing < 1000, "it does not come to an end: {outcome:?}");
    }
    unreachable!()
}
