//! Several threads that do one thing at the same time, each on a processor of its own and with clocks of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{arena, clock};

/// What one thread took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// CPU time.
    pub cpu: Duration,
    /// Wall time.
    pub wall: Duration,
}

/// Runs `act` on `threads` threads at once, told which one it is, and gives what each took and returned.
///
/// The threads have the arena's numbers from 1 on and the processors of `processors` in turn.
pub fn run<T: Send>(
    threads: usize,
    processors: &[usize],
    act: impl Fn(usize) -> T + Sync,
) -> Vec<(Took, T)> {
    let ready = AtomicUsize::new(0);
    let crowded = threads > processors.len();
    let (act, ready) = (&act, &ready);
    let one = move |number: usize| {
        arena::set_thread(number + 1);
        if let Some(cpu) = processors.get(number % processors.len().max(1)) {
            // Without its place a thread still does its work; the rows say what they took.
            let _ = clock::pin_to(*cpu);
        }
        // ORDERING: AcqRel: what the others wrote before they came is seen by who goes on.
        ready.fetch_add(1, Ordering::AcqRel);
        // ORDERING: Acquire, as above.
        while ready.load(Ordering::Acquire) < threads {
            if crowded {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let (start, wall) = (clock::thread_time(), Instant::now());
        let result = act(number);
        let took = Took {
            cpu: clock::thread_time().saturating_sub(start),
            wall: wall.elapsed(),
        };
        (took, result)
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        handles
            .into_iter()
            .map(|handle| match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_once_and_knows_its_number() {
        let results = run(3, clock::processors(), |number| (number, arena::thread()));
        let numbers: Vec<(usize, usize)> = results.into_iter().map(|(_, result)| result).collect();
        assert_eq!(numbers, [(0, 1), (1, 2), (2, 3)]);
    }
}
