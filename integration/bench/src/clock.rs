//! Clocks and processors: CPU time of a thread, wall time, the processor's counter, and where a thread runs.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// CPU time of the thread that runs.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// What a look at the thread's CPU time costs: the least of many.
pub fn overhead() -> Duration {
    const LOOKS: usize = 2000;
    let look = |_| {
        let start = thread_time();
        thread_time().saturating_sub(start)
    };
    (0..LOOKS).map(look).min().unwrap_or_default()
}

/// The processor's counter, not before everything earlier was done.
#[inline]
#[expect(unsafe_code, reason = "reads the processor's counter")]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the fence, which orders loads and changes nothing.
    unsafe { std::arch::x86_64::_mm_lfence() };
    // SAFETY: every x86-64 processor has the counter, and Linux lets programs read it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Nanoseconds of one tick, measured for a short while.
pub fn tick_nanos() -> f64 {
    const WHILE: Duration = Duration::from_millis(20);
    let (start, first) = (Instant::now(), ticks());
    while start.elapsed() < WHILE {
        std::hint::spin_loop();
    }
    let (passed, last) = (start.elapsed(), ticks());
    passed.as_secs_f64() * 1e9 / (last - first).max(1) as f64
}

/// The processors that this program was allowed when it first asked, before any thread chose one.
pub fn processors() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        let allowed = sched_getaffinity(None).map(|set| {
            let all = 0..CpuSet::MAX_CPU;
            all.filter(|cpu| set.is_set(*cpu)).collect()
        });
        // Where the kernel does not say, one processor is sure to be there.
        allowed.unwrap_or_else(|_| vec![0])
    })
}

/// Keeps the thread that runs on processor `cpu`.
///
/// # Errors
/// When the kernel refuses.
pub fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| {
        format!("cannot stay on processor {cpu}: run where sched_setaffinity is allowed")
    })
}
