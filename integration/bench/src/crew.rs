//! Several threads that do one thing at the same time, each on a processor of its own and with clocks of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{arena, clock};

/// What one thread took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// CPU time.
    pub cpu: Duration,
    /// When it began.
    pub start: Instant,
    /// When it was done.
    pub end: Instant,
}

/// Wall time from the first thread's begin to the last one's end.
pub fn wall<'t>(took: impl Iterator<Item = &'t Took> + Clone) -> Duration {
    let start = took.clone().map(|took| took.start).min();
    let end = took.map(|took| took.end).max();
    start
        .zip(end)
        .map_or(Duration::ZERO, |(start, end)| end - start)
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
        let (start, cpu) = (Instant::now(), clock::thread_time());
        let result = act(number);
        let took = Took {
            cpu: clock::thread_time().saturating_sub(cpu),
            start,
            end: Instant::now(),
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
    fn wall_time_goes_from_the_first_begin_to_the_last_end() {
        let zero = Instant::now();
        let at = |millis| zero + Duration::from_millis(millis);
        let took = |start, end| Took {
            cpu: Duration::ZERO,
            start: at(start),
            end: at(end),
        };
        let all = [took(5, 7), took(2, 4), took(8, 9)];
        assert_eq!(wall(all.iter()), Duration::from_millis(7));
    }

    #[test]
    fn every_thread_runs_once_and_knows_its_number() {
        let results = run(3, clock::processors(), |number| (number, arena::thread()));
        let numbers: Vec<(usize, usize)> = results.into_iter().map(|(_, result)| result).collect();
        assert_eq!(numbers, [(0, 1), (1, 2), (2, 3)]);
    }
}
