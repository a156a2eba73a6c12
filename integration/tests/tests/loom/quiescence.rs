//! Models of the epochs alone: what was taken out of reach stays alive for whoever may hold it.

use std::sync::Arc;

use hv_core::CpuId;
use hv_core::platform::Cpus;
use hv_core::sync::{AtomicU64, Ordering};
use hv_iommu::quiesce::Quiescence;

use crate::arena::Use;
use crate::explore::{Bound, explore};

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

#[cfg_attr(not(hv_fault), test)]
fn an_epoch_waits_for_every_guard() {
    explore("an_epoch_waits_for_every_guard", Bound::Fewer, || {
        reader_and_owner(1);
    });
}

#[cfg_attr(not(hv_fault), test)]
fn an_epoch_waits_for_guards_of_unknown_cpus() {
    explore(
        "an_epoch_waits_for_guards_of_unknown_cpus",
        Bound::Fewer,
        || {
            reader_and_owner(7);
        },
    );
}
