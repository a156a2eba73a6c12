//! Looking for a broken rule: lives, and drills in between, on machine after machine.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use hv_smmu::Smmu;
use hv_vtd::Vtd;

use crate::driver::Vendor;
use crate::life::Life;
use crate::rig::Rig;
use crate::rule::Violation;
use crate::{drill, interrupt_drill};

/// How many lives are lived before a fault counts as not caught.
pub const LIVES: u64 = 1200;
/// Operations of each.
const OPERATIONS: usize = 120;
/// Every how many lives threads take tables out from under each other; at first before each.
const THREADS_EVERY: u64 = 16;
/// How many drills of most kinds there are.
const DRILLS: u64 = 8;
/// How many with devices that are kept running: some need a unit that firmware left on, some another one beside it that it
/// did not.
const KEPT_DRILLS: u64 = 24;
/// How many with PASIDs.
const PASID_DRILLS: u64 = 48;

/// A drill on the machine of a seed, and how many there are.
type Drill = (u64, fn(u64) -> Option<Violation>);

/// Those before a life with VT-d units, besides `tables`.
const BEFORE_VTD: &[Drill] = &[(DRILLS, drill::queue::<Vtd<Rig>>)];
/// The same with SMMUs.
const BEFORE_SMMU: &[Drill] = &[(DRILLS, drill::queue::<Smmu<Rig>>)];

/// Those after it.
const AFTER_VTD: &[Drill] = &[
    (DRILLS, drill::cached::<Vtd<Rig>>),
    (DRILLS, interrupt_drill::interrupts::<Vtd<Rig>>),
    (DRILLS, drill::regions::<Vtd<Rig>>),
    (DRILLS, drill::refused::<Vtd<Rig>>),
    (DRILLS, drill::ended::<Vtd<Rig>>),
    (KEPT_DRILLS, drill::kept::<Vtd<Rig>>),
];
/// The same with SMMUs: also what they alone have, and what devices keep and wait for, which is drilled with the vendor that has it.
const AFTER_SMMU: &[Drill] = &[
    (DRILLS, drill::nested),
    (DRILLS, drill::switched),
    (DRILLS, drill::cut_off),
    (DRILLS, drill::high),
    (DRILLS, drill::cached::<Smmu<Rig>>),
    (DRILLS, interrupt_drill::interrupts::<Smmu<Rig>>),
    (DRILLS, drill::regions::<Smmu<Rig>>),
    (DRILLS, drill::refused::<Smmu<Rig>>),
    (DRILLS, drill::ended::<Smmu<Rig>>),
    (KEPT_DRILLS, drill::kept::<Smmu<Rig>>),
    (DRILLS, drill::devices),
    (DRILLS, drill::parts),
    (DRILLS, drill::messages),
    (PASID_DRILLS, drill::pasids),
];

/// Lives, and drills, on machines of this vendor until a rule is broken. Gives the number of lives it took, too.
pub fn hunt(vendor: Vendor, lives: u64) -> Option<(u64, Violation)> {
    first(lives, |seed| of_seed(vendor, seed))
}

fn of_seed(vendor: Vendor, seed: u64) -> Option<Violation> {
    let (before, tables, after): (_, fn(u64) -> Option<Violation>, _) = match vendor {
        Vendor::Vtd => (BEFORE_VTD, drill::tables::<Vtd<Rig>>, AFTER_VTD),
        Vendor::Smmu => (BEFORE_SMMU, drill::tables::<Smmu<Rig>>, AFTER_SMMU),
    };
    let all = |drills: &[Drill]| {
        let mut due = drills.iter().filter(|(count, _)| seed < *count);
        due.find_map(|(_, drill)| drill(seed))
    };
    let threads = seed < DRILLS || seed.is_multiple_of(THREADS_EVERY);
    let life = || {
        Some(
            Life::new(vendor, seed, OPERATIONS)
                .live()
                .failure?
                .violation,
        )
    };
    all(before)
        .or_else(|| threads.then(|| tables(seed)).flatten())
        .or_else(life)
        .or_else(|| all(after))
}

/// What the first of `lives` seeds brings, on as many threads as the machine has processors, and how many seeds it took.
/// It is the same as on one thread: a seed after the first that brought something counts for nothing.
pub fn first<T: Send>(lives: u64, of: impl Fn(u64) -> Option<T> + Sync) -> Option<(u64, T)> {
    let found = Mutex::new(None::<(u64, T)>);
    let (next, end) = (AtomicU64::new(0), AtomicU64::new(lives));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZeroUsize::get) {
            scope.spawn(|| {
                loop {
                    // ORDERING: Relaxed, both: each number goes to one thread in any order; what was found is behind the lock.
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        return;
                    }
                    let Some(brought) = of(seed) else { continue };
                    // ORDERING: Relaxed, as above; who does not see it yet tries a seed in vain.
                    end.fetch_min(seed, Ordering::Relaxed);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if found.as_ref().is_none_or(|(number, _)| seed < *number) {
                        *found = Some((seed, brought));
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.map(|(seed, brought)| (seed + 1, brought))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_seed_counts_whatever_thread_it_is_on() {
        let of = |seed: u64| {
            // The later of the two comes first.
            thread::sleep(std::time::Duration::from_millis(if seed == 20 {
                30
            } else {
                0
            }));
            (seed == 20 || seed == 21 || seed > 90).then_some(seed)
        };
        assert_eq!(first(100, of), Some((21, 20)));
        assert_eq!(first(20, of), None);
        assert_eq!(first(0, of), None);
    }
}
