//! What runs in a row: a subject that is made ready without being timed, and then timed, round after round.

use std::time::Duration;

use crate::clock;
use crate::results::Who;

/// Where a page of the subject leads: the IOVA, the physical address, and the bytes of the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The IOVA of the leaf's first byte.
    pub at: u64,
    /// The physical address it leads to.
    pub to: u64,
    /// Bytes of the leaf.
    pub bytes: u64,
}

/// Something that holds a table: the engine, a floor, a peer.
pub trait Subject {
    /// All mappings below the benchmark's window of addresses, in order, read by a walker of the benchmark's own.
    fn mapped(&self) -> Vec<Mapped>;
}

/// One competitor of a row.
pub trait Run {
    /// Brings the subject to where the timed part begins. Not timed.
    fn prepare(&mut self);
    /// The timed part.
    fn run(&mut self);
    /// What the subject maps now.
    fn mapped(&self) -> Vec<Mapped>;
}

struct Work<S, P, R> {
    subject: S,
    prepare: P,
    run: R,
}

impl<S: Subject, P: FnMut(&mut S), R: FnMut(&mut S)> Run for Work<S, P, R> {
    fn prepare(&mut self) {
        (self.prepare)(&mut self.subject);
    }

    fn run(&mut self) {
        (self.run)(&mut self.subject);
    }

    fn mapped(&self) -> Vec<Mapped> {
        self.subject.mapped()
    }
}

/// A competitor with its name and the number of operations of one timed part.
pub struct Lane {
    /// Who runs.
    pub who: Who,
    /// Operations of one timed part, in the row's unit.
    pub operations: u64,
    work: Box<dyn Run>,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} operations", self.who.name(), self.operations)
    }
}

impl Lane {
    /// A lane of `operations` operations a round.
    pub fn new<S: Subject + 'static>(
        who: Who,
        operations: u64,
        subject: S,
        prepare: impl FnMut(&mut S) + 'static,
        run: impl FnMut(&mut S) + 'static,
    ) -> Self {
        Self {
            who,
            operations,
            work: Box::new(Work {
                subject,
                prepare,
                run,
            }),
        }
    }

    /// Runs one round and gives the CPU time of its timed part per operation, in nanoseconds, without the `overhead` of
    /// the clock.
    pub fn round(&mut self, overhead: Duration) -> f64 {
        self.work.prepare();
        let start = clock::thread_time();
        self.work.run();
        let end = clock::thread_time();
        nanos(end.saturating_sub(start).saturating_sub(overhead)) / self.operations as f64
    }

    /// What the subject maps now.
    pub fn mapped(&self) -> Vec<Mapped> {
        self.work.mapped()
    }
}

/// Ends the benchmark when an operation of `who` has `failed`. By value and out of line, so that the loops that are timed keep
/// their count in a register.
#[inline(never)]
pub fn check(failed: u64, who: &str) {
    assert_eq!(failed, 0, "{who} refused an operation of the benchmark");
}

/// A duration in nanoseconds.
pub fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

/// Rounds below which a time limit does not cut.
pub const LEAST: usize = 8;

/// The times of all lanes, for each lane one time a round.
///
/// Every round runs all lanes, and begins with the next one of the row, so that none always follows the same.
pub fn rounds(
    lanes: &mut [Lane],
    rounds: usize,
    most: Duration,
    mut after: impl FnMut(usize),
) -> Vec<Vec<f64>> {
    let start = std::time::Instant::now();
    let overhead = clock::overhead();
    let mut times = vec![Vec::with_capacity(rounds); lanes.len()];
    for lane in lanes.iter_mut() {
        // Not counted: the first round pays for caches and for branches that nobody predicted yet.
        lane.round(overhead);
    }
    for round in 0..rounds {
        for turn in 0..lanes.len() {
            let at = (round + turn) % lanes.len();
            times[at].push(lanes[at].round(overhead));
        }
        after(round + 1);
        if round + 1 >= LEAST && start.elapsed() > most {
            break;
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    struct Nothing;
    impl Subject for Nothing {
        fn mapped(&self) -> Vec<Mapped> {
            vec![]
        }
    }

    #[test]
    fn rounds_are_interleaved_and_begin_with_another_lane_each_time() {
        let steps = Rc::new(RefCell::new(String::new()));
        let lane = |name: char| {
            let (prepared, ran) = (steps.clone(), steps.clone());
            Lane::new(
                Who::Floor,
                1,
                Nothing,
                move |_| prepared.borrow_mut().push('-'),
                move |_| ran.borrow_mut().push(name),
            )
        };
        let mut lanes = [lane('a'), lane('b')];
        let times = rounds(&mut lanes, 2, Duration::ZERO, |_| {});
        assert_eq!(steps.borrow().as_str(), "-a-b-a-b-b-a");
        assert_eq!(times.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    }

    #[test]
    fn a_time_limit_leaves_enough_rounds_to_sum_up() {
        let lane = Lane::new(Who::Floor, 1, Nothing, |_| {}, |_| {});
        let times = rounds(&mut [lane], 1000, Duration::ZERO, |_| {});
        assert_eq!(times[0].len(), 8);
    }
}
