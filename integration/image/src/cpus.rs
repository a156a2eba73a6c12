//! The CPUs that are up: running a closure on all of them, and letting them sleep until the next one.
#![expect(unsafe_code, reason = "lends the other CPUs a closure")]

use core::time::Duration;

use arrayvec::ArrayVec;
use hv_core::CpuId;
use hv_core::sync::{AtomicU64, AtomicUsize, Ordering};
use spin::Mutex;

use crate::MAX_CPUS;
use crate::arch::smp::{HardwareId, sleep_unless, wake};
use crate::arch::{clock, cpu};

/// The CPUs that are up. CPU 0 is the one that booted.
pub struct Cpus {
    ids: ArrayVec<HardwareId, MAX_CPUS>,
}

/// What a closure for all CPUs looks like to an idle CPU.
type Job = &'static (dyn Fn(CpuId) + Sync);

/// The closure that runs now.
static JOB: Mutex<Option<Job>> = Mutex::new(None);
/// Counts closures; a CPU that sees it change has work.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// CPUs that have finished the present closure.
static DONE: AtomicUsize = AtomicUsize::new(0);
/// Held while a closure runs on all CPUs.
static RUNNING: Mutex<()> = Mutex::new(());

impl Cpus {
    /// The CPUs that hardware calls so, by number; all but the first are in [`idle`].
    pub fn new(ids: ArrayVec<HardwareId, MAX_CPUS>) -> Self {
        Self { ids }
    }

    /// How many CPUs are up.
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// Runs `job` once on every CPU at the same time, with interrupts off, and returns when all are
    /// done.
    ///
    /// # Panics
    /// When another CPU is not done within `limit`, when a wake-up cannot be sent, and when a closure
    /// runs on all CPUs already. A panic ends the machine, so a closure that is still in use
    /// never goes out of scope.
    pub fn run_on_all(&self, limit: Duration, job: &(dyn Fn(CpuId) + Sync)) {
        let Some(running) = RUNNING.try_lock() else {
            panic!("run_on_all called while a closure runs on all CPUs");
        };
        let me = cpu::current();
        // SAFETY: only the lifetime changes. The reference is not used after `job` goes away: this
        // function returns only after every CPU is done with it, and ends the machine
        // otherwise.
        let lent = unsafe { core::mem::transmute::<&(dyn Fn(CpuId) + Sync), Job>(job) };
        *JOB.lock() = Some(lent);
        // ORDERING: Relaxed, published with the closure by the generation below.
        DONE.store(0, Ordering::Relaxed);
        // ORDERING: Release, publishes the closure and the zeroed count to the CPUs that see the
        // new generation.
        GENERATION.fetch_add(1, Ordering::Release);
        for (index, id) in self.ids.iter().enumerate() {
            if index != me.index()
                && let Err(error) = wake(*id)
            {
                panic!("cannot wake cpu{index}: {error}");
            }
        }
        // For this CPU too: `limit` is for all of it.
        let end = clock::now().after(limit);
        job(me);
        let others = self.ids.len() - 1;
        // ORDERING: Acquire, makes what the closure did on the other CPUs visible here.
        while DONE.load(Ordering::Acquire) != others {
            if clock::now() > end {
                // ORDERING: Relaxed, for the message only.
                let done = DONE.load(Ordering::Relaxed);
                panic!("{done} of {others} other CPUs finished within {limit:?}");
            }
            core::hint::spin_loop();
        }
        *JOB.lock() = None;
        drop(running);
    }
}

/// Waits for closures and runs them.
pub fn idle() -> ! {
    let mut seen = 0;
    loop {
        // ORDERING: Acquire, pairs with the release of the new generation: the closure is visible.
        let generation = GENERATION.load(Ordering::Acquire);
        if generation == seen {
            // ORDERING: Relaxed, only whether there is a new one; it is loaded again above.
            sleep_unless(|| GENERATION.load(Ordering::Relaxed) != seen);
            continue;
        }
        seen = generation;
        let job = *JOB.lock();
        if let Some(job) = job {
            job(cpu::current());
        }
        // ORDERING: Release, publishes what the closure did to the CPU that waits for all.
        DONE.fetch_add(1, Ordering::Release);
    }
}
