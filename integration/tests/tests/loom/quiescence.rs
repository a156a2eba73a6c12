//! Models of the epochs and of the lock alone: what was taken out of reach stays alive for whoever may hold
//! it, and one CPU at a time is at what a lock protects.

use std::sync::Arc;

use hv_core::platform::Cpus;
use hv_core::sync::{AtomicU64, Ordering};
use hv_core::{CpuId, TryLock};
use hv_iommu::quiesce::Quiescence;

use crate::arena::Use;
use crate::explore::{models, saw};

/// The CPU with this number.
struct Cpu(u32);

#[expect(
    unsafe_code,
    reason = "each thread of a model promises to be another CPU"
)]
// SAFETY: each thread of the models below uses a number of its own.
unsafe impl Cpus for Cpu {
    fn current_cpu(&self) -> CpuId {
        CpuId::new(self.0)
    }
    fn cpu_count(&self) -> usize {
        2
    }
}

/// A thing that is reached through a word until that is cleared.
struct Reachable {
    quiescence: Quiescence,
    word: AtomicU64,
    thing: Use,
}

/// One CPU looks at the thing twice, under a guard each time; another takes it out of reach and frees
/// it after the grace period; a third one, with nothing to free, pushes epochs on meanwhile.
fn reader_and_owner(reader: u32) {
    let shared = Arc::new(Reachable {
        quiescence: Quiescence::new(2).unwrap(),
        word: AtomicU64::new(1),
        thing: Use::new(),
    });
    let earlier = shared.quiescence.retire_epoch();
    let pusher = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            for _ in 0..2 {
                shared.quiescence.has_passed(earlier);
            }
        })
    };
    let walker = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            for _ in 0..2 {
                let guard = shared.quiescence.pin(&Cpu(reader));
                // ORDERING: Acquire, as every read of a walk.
                if shared.word.load(Ordering::Acquire) == 1 {
                    shared.thing.reach();
                }
                drop(guard);
            }
        })
    };
    // ORDERING: AcqRel, as `Table::close`.
    shared.word.swap(0, Ordering::AcqRel);
    let epoch = shared.quiescence.retire_epoch();
    if (0..3).any(|_| shared.quiescence.has_passed(epoch)) {
        shared.thing.have_alone();
    }
    walker.join().unwrap();
    pusher.join().unwrap();
}

/// One CPU stays, looks under a guard, passes or is away for a while, looks again, and comes back later; another takes the
/// thing out of reach and frees it; a third one may push epochs on meanwhile.
fn stayer_and_owner(pushed: bool, is_away: bool) {
    let shared = Arc::new(Reachable {
        quiescence: Quiescence::new(2).unwrap(),
        word: AtomicU64::new(1),
        thing: Use::new(),
    });
    let earlier = shared.quiescence.retire_epoch();
    let pusher = pushed.then(|| {
        let shared = shared.clone();
        loom::thread::spawn(move || shared.quiescence.has_passed(earlier))
    });
    let walker = {
        let shared = shared.clone();
        loom::thread::spawn(move || {
            let look = || {
                let guard = shared.quiescence.pin(&Cpu(1));
                // ORDERING: Acquire, as every read of a walk.
                if shared.word.load(Ordering::Acquire) == 1 {
                    shared.thing.reach();
                }
                drop(guard);
            };
            let mut stay = shared.quiescence.enter(&Cpu(1));
            if !pushed {
                look();
            }
            match is_away {
                true => shared.quiescence.away(&Cpu(1), || ()),
                false => assert!(stay.pass(), "no guard is alive"),
            }
            look();
            drop(stay);
            if !pushed {
                look();
            }
        })
    };
    // ORDERING: AcqRel, as `Table::close`.
    shared.word.swap(0, Ordering::AcqRel);
    let epoch = shared.quiescence.retire_epoch();
    if (0..if pushed { 2 } else { 4 }).any(|_| shared.quiescence.has_passed(epoch)) {
        saw("the thing is freed");
        shared.thing.have_alone();
    }
    walker.join().unwrap();
    if let Some(pusher) = pusher {
        pusher.join().unwrap();
    }
}

/// Two CPUs go for a lock twice each.
fn two_at_a_lock() {
    let shared = Arc::new(TryLock::new(0));
    let other = {
        let shared = shared.clone();
        loom::thread::spawn(move || add_twice(&shared))
    };
    let got = add_twice(&shared) + other.join().unwrap();
    if got < 4 {
        saw("somebody goes on without the lock");
    }
    assert_eq!(shared.with(|value| *value), Some(got));
}

/// How often the lock was free.
fn add_twice(lock: &TryLock<u32>) -> u32 {
    (0..2)
        .filter_map(|_| lock.with(|value| *value += 1))
        .map(|()| 1)
        .sum()
}

models! {
    /// What was unlinked outlives every guard of before, while epochs move.
    /// Shows: bc02.
    an_epoch_waits_for_every_guard: Three(2), sees [], || reader_and_owner(1);

    /// The same for guards that no slot counts.
    an_epoch_waits_for_guards_of_unknown_cpus: Three(2), sees [], || reader_and_owner(7);

    /// A stay holds back as a guard does, until it passes, though its guards do not fence.
    an_epoch_waits_for_a_stay: Two(2), sees ["the thing is freed"], || {
        stayer_and_owner(false, false);
    };

    /// The same for one that is away in between.
    an_epoch_waits_for_a_stay_that_comes_back: Two(2), sees ["the thing is freed"], || {
        stayer_and_owner(false, true);
    };

    /// The same when somebody moves epochs on who knows nothing of the thing.
    /// Shows: bc02.
    an_epoch_waits_for_a_stay_while_epochs_move: Three(2), sees ["the thing is freed"], || {
        stayer_and_owner(true, false);
    };

    /// One at a time, each after all before, and nobody waits.
    /// Shows: bc16.
    a_lock_that_is_tried_is_had_by_one: Exhaustive, sees ["somebody goes on without the lock"],
        two_at_a_lock;
}
