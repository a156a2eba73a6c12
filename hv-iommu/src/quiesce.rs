//! Grace periods: when has every CPU left the tables it was walking?
//!
//! Whoever walks a table holds a [`Guard`]. Whoever took something out of reach asks for a moment
//! ([`Quiescence::retire_epoch`]) and may free it once [`Quiescence::has_passed`] says that every
//! guard of before has ended. This covers CPUs only; what hardware may still read needs a flush
//! receipt besides.
//!
//! A guard for one operation costs a fence. A CPU that does many between two exits holds a [`Stay`] from
//! the one to the other: guards made meanwhile cost a store. In the guest, or idle, it holds nothing, so it
//! holds nobody back however long it is away.
//!
//! | site | ordering | what it publishes, to whom |
//! |---|---|---|
//! | pin: load epoch | Acquire | what the CPU that advanced it saw |
//! | pin: store slot, fence | Release, SeqCst | "I walk" before the first load of the walk, to `advance` |
//! | stay: mark slot as fenced | Release | nothing new: for later guards of this CPU |
//! | pass, come back: load epoch, store slot, fence | Acquire, Release, SeqCst | all walks so far have ended, to `advance`; then as pin |
//! | go away: store slot | Release | as unpin |
//! | unpin: store slot | Release | all loads and stores of the walk, to `advance` |
//! | advance: fence, load slots | SeqCst, Acquire | what retired things were unlinked before, and ended walks |
//! | advance: CAS epoch | AcqRel | the above, to pins and to `has_passed` |
//! | retire: fence, load epoch | SeqCst, Acquire | the unlinking, before the epoch is read |

use alloc::vec::Vec;
use core::marker::PhantomData;
use core::num::NonZeroU64;

use hv_core::fault::Fault;
use hv_core::platform::Cpus;
use hv_core::sync::{AtomicU64, AtomicUsize, Ordering, fence};
use hv_core::{CpuId, OutOfMemory};

/// What one CPU announces: 0 when it walks nothing, else the epoch it saw when it began, whether a fence
/// has followed since ([`FENCED`]), and how many guards it holds ([`HELD_MASK`]). On a cache line of its own
/// (two, since lines are fetched in pairs).
#[repr(align(128))]
struct Slot(AtomicU64);

/// Where the epoch begins.
const EPOCH_SHIFT: u32 = 16;
/// This CPU has fenced since it announced the epoch, and a [`Stay`] is alive: a further guard needs no fence
/// of its own.
const FENCED: u64 = 1 << 15;
/// Guards that one CPU can hold at a time; further ones count as strays.
const HELD_MASK: u64 = FENCED - 1;

/// Knows which CPUs walk tables, and since which epoch.
pub struct Quiescence {
    epoch: AtomicU64,
    slots: Vec<Slot>,
    /// Guards of CPUs without a slot, or with too many guards. A platform that keeps its contract
    /// never has one; if it does, nothing is freed meanwhile.
    strays: AtomicUsize,
}

/// An epoch after which something retired may be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RetireEpoch(NonZeroU64);

/// Proof that this CPU walks tables. Tables it can reach are not freed while it lives.
///
/// Bound to the CPU that made it.
pub struct Guard<'q> {
    quiescence: &'q Quiescence,
    cpu: CpuId,
    kind: GuardKind,
    not_send: PhantomData<*const ()>,
}

enum GuardKind {
    /// Counted in its CPU's slot. Guards of one CPU may end in any order; the last one empties it.
    Counted,
    Stray,
}

impl Quiescence {
    /// For CPUs 0 to `cpus` - 1, all of them walking nothing.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(cpus: usize) -> Result<Self, OutOfMemory> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(cpus).map_err(|_| OutOfMemory {
            bytes: cpus.saturating_mul(size_of::<Slot>()),
        })?;
        slots.extend((0..cpus).map(|_| Slot(AtomicU64::new(0))));
        Ok(Self {
            epoch: AtomicU64::new(1),
            slots,
            strays: AtomicUsize::new(0),
        })
    }

    /// Begins a walk on the CPU that runs.
    #[inline]
    pub fn pin(&self, cpus: &impl Cpus) -> Guard<'_> {
        let cpu = cpus.current_cpu();
        let slot = self.slots.get(cpu.index()).map(|Slot(slot)| {
            // ORDERING: Relaxed, only this CPU writes its slot.
            (slot, slot.load(Ordering::Relaxed))
        });
        let kind = match slot {
            Some((slot, 0)) => {
                // ORDERING: Acquire pairs with the CAS of `advance`.
                let epoch = self.epoch.load(Ordering::Acquire);
                // ORDERING: Release: a CPU that sees this announcement also sees that the guard
                // before it has ended.
                slot.store(
                    epoch << EPOCH_SHIFT | 1,
                    Fault::PinRelaxed.weakens(Ordering::Release),
                );
                if !Fault::SkipPinFence.is_on() {
                    // ORDERING: SeqCst separates the announcement from the first load of the walk:
                    // either `advance` sees the announcement, or the walk sees what was unlinked.
                    fence(Ordering::SeqCst);
                }
                GuardKind::Counted
            }
            Some((slot, held)) if held & HELD_MASK != HELD_MASK => {
                // ORDERING: Release as above. The epoch stays that of the first guard.
                slot.store(held + 1, Ordering::Release);
                if held & FENCED == 0 {
                    // ORDERING: SeqCst, as above: this may be a handler that interrupted the first
                    // guard between its announcement and its fence.
                    fence(Ordering::SeqCst);
                }
                GuardKind::Counted
            }
            _ => {
                // ORDERING: Release as for a slot, then the same fence.
                self.strays.fetch_add(1, Ordering::AcqRel);
                // ORDERING: SeqCst, as above.
                fence(Ordering::SeqCst);
                GuardKind::Stray
            }
        };
        Guard {
            quiescence: self,
            cpu,
            kind,
            not_send: PhantomData,
        }
    }

    /// Begins a stay of the CPU that runs: until it ends, guards cost next to nothing, and what is
    /// retired waits for it.
    pub fn enter(&self, cpus: &impl Cpus) -> Stay<'_> {
        let cpu = cpus.current_cpu();
        let mut stay = Stay {
            quiescence: self,
            cpu,
            guard: None,
        };
        if stay.slot().is_some_and(is_fenced) {
            // Within another stay, as a handler's: that one does for both, and what it says stays true.
            return stay;
        }
        stay.guard = Some(self.pin(cpus));
        if let Some(slot) = stay.slot() {
            // ORDERING: Relaxed, only this CPU writes its slot.
            let held = slot.load(Ordering::Relaxed);
            // ORDERING: Release as every store to a slot. The fence of `pin` came before, so what the
            // mark says is true for as long as this epoch stands in the slot.
            slot.store(held | FENCED, Ordering::Release);
        }
        stay
    }

    /// Whatever this CPU walked in so far, it has left, if all that it holds is a [`Stay`].
    pub(crate) fn pass(&self, cpus: &impl Cpus) -> bool {
        let slot = self.slots.get(cpus.current_cpu().index());
        slot.is_some_and(|Slot(slot)| self.pass_in(slot))
    }

    /// Does what may take long and walks in no table: if all that this CPU holds is a [`Stay`], nobody waits for it
    /// meanwhile. Where a guard is alive, as one of whatever `act` was called in, what is retired waits for that. (The model
    /// `an_epoch_waits_for_a_stay_that_comes_back` has a stay that comes back in the middle of a retirement.)
    pub fn away<R>(&self, cpus: &impl Cpus, act: impl FnOnce() -> R) -> R {
        let slot = self.slots.get(cpus.current_cpu().index());
        let left = slot.filter(|Slot(slot)| is_stay_alone(slot));
        if let Some(Slot(slot)) = left {
            // ORDERING: Release, as the end of a guard: what was walked is over before `advance` sees it so. A handler that
            // comes meanwhile makes guards of its own, with fences, and leaves the slot as it is here.
            slot.store(0, Ordering::Release);
        }
        let done = act();
        if let Some(Slot(slot)) = left {
            self.come_in(slot);
        }
        done
    }

    fn pass_in(&self, slot: &AtomicU64) -> bool {
        let passes = is_stay_alone(slot);
        if passes {
            self.come_in(slot);
        }
        passes
    }

    /// A stay goes on from here.
    fn come_in(&self, slot: &AtomicU64) {
        // ORDERING: Acquire, as in `pin`.
        let epoch = self.epoch.load(Ordering::Acquire);
        // ORDERING: Release: earlier walks are over before `advance` sees the new epoch here.
        slot.store(epoch << EPOCH_SHIFT | 1, Ordering::Release);
        if !Fault::SkipPassFence.is_on() {
            // ORDERING: SeqCst, as in `pin`. Without it, a later walk would see what was unlinked only
            // if whoever moved the epoch on had seen it. The mark comes after it: a handler that
            // interrupts in between fences for itself.
            fence(Ordering::SeqCst);
        }
        // ORDERING: Release as every store to a slot.
        slot.store(epoch << EPOCH_SHIFT | FENCED | 1, Ordering::Release);
    }

    /// The epoch to wait for, after something was taken out of reach by stores before this call.
    pub fn retire_epoch(&self) -> RetireEpoch {
        if !Fault::SkipRetireFence.is_on() {
            // ORDERING: SeqCst: the unlinking comes before the epoch is read; pairs with the fence of
            // `pin`. A guard that begins later cannot reach what was unlinked.
            fence(Ordering::SeqCst);
        }
        let further = if Fault::OneEpoch.is_on() { 0 } else { 1 };
        // ORDERING: Acquire, ordered behind the fence; the value only has to be no newer than now.
        let epoch = self.epoch.load(Ordering::Acquire);
        RetireEpoch(NonZeroU64::MIN.saturating_add(epoch + further))
    }

    /// Whether every guard that was alive at `retired` has ended. Tries to bring that about.
    pub fn has_passed(&self, retired: RetireEpoch) -> bool {
        self.advance();
        // ORDERING: Acquire pairs with the CAS of `advance`: the ended walks happened before.
        self.epoch.load(Ordering::Acquire) >= retired.0.get()
    }

    /// The CPUs that walk, or stay, right now: what is retired waits for them. (But for those without a slot.)
    pub fn inside(&self) -> impl Iterator<Item = CpuId> + use<'_> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(index, Slot(slot))| {
            // ORDERING: Acquire, as in `advance`: of one that is seen to have left, what it did there has happened.
            (slot.load(Ordering::Acquire) != 0).then_some(CpuId::new(index))
        })
    }

    fn advance(&self) {
        // ORDERING: Relaxed, the CAS below checks the value again.
        let epoch = self.epoch.load(Ordering::Relaxed);
        if !Fault::SkipAdvanceFence.is_on() {
            // ORDERING: SeqCst pairs with the fence of `pin`, see there.
            fence(Ordering::SeqCst);
        }
        // ORDERING: Acquire pairs with the decrement in `Guard::drop`.
        if self.strays.load(Ordering::Acquire) != 0 {
            return;
        }
        for Slot(slot) in &self.slots {
            // ORDERING: Acquire pairs with the Release stores of `pin` and unpin.
            let seen = slot.load(Ordering::Acquire);
            if seen != 0 && seen >> EPOCH_SHIFT != epoch {
                return;
            }
        }
        // ORDERING: AcqRel publishes what the slots said to whoever reads the new epoch. Relaxed
        // on failure: somebody else advanced.
        let _ = self
            .epoch
            .compare_exchange(epoch, epoch + 1, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// A CPU's time in the hypervisor, from an exit to the next entry. Hold it nowhere else: what waits for a
/// grace period waits for all stays.
///
/// Bound to the CPU that made it.
pub struct Stay<'q> {
    quiescence: &'q Quiescence,
    cpu: CpuId,
    /// `None` within another stay of this CPU.
    guard: Option<Guard<'q>>,
}

/// Whether all that a CPU holds is a stay.
fn is_stay_alone(slot: &AtomicU64) -> bool {
    // ORDERING: Relaxed, only this CPU writes its slot.
    slot.load(Ordering::Relaxed) & (FENCED | HELD_MASK) == FENCED | 1
}

fn is_fenced(slot: &AtomicU64) -> bool {
    // ORDERING: Relaxed, only this CPU writes its slot.
    slot.load(Ordering::Relaxed) & FENCED != 0
}

impl Stay<'_> {
    /// Says that this CPU walks nothing right now, so that a long stay holds nobody back. Whether that is
    /// so: not while a guard is alive, such as that of an interrupted operation.
    pub fn pass(&mut self) -> bool {
        match self.slot() {
            Some(slot) => self.quiescence.pass_in(slot),
            None => false,
        }
    }

    fn slot(&self) -> Option<&AtomicU64> {
        let Slot(slot) = self.quiescence.slots.get(self.cpu.index())?;
        Some(slot)
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot()
            && self.guard.is_some()
        {
            // ORDERING: Relaxed, only this CPU writes its slot.
            let held = slot.load(Ordering::Relaxed);
            // ORDERING: Release as every store to a slot. Guards that outlive the stay are not passed by.
            slot.store(held & !FENCED, Ordering::Release);
        }
    }
}

impl Guard<'_> {
    /// Where it is counted.
    #[inline]
    fn slot(&self) -> Option<&AtomicU64> {
        match self.kind {
            GuardKind::Counted => {
                let Slot(slot) = self.quiescence.slots.get(self.cpu.index())?;
                Some(slot)
            }
            GuardKind::Stray => None,
        }
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.kind {
            GuardKind::Counted => {
                if let Some(slot) = self.slot() {
                    // ORDERING: Relaxed, only this CPU writes its slot.
                    let held = slot.load(Ordering::Relaxed);
                    let left = if held & HELD_MASK > 1 { held - 1 } else { 0 };
                    // ORDERING: Release: the walk is over before `advance` sees it so.
                    slot.store(left, Fault::UnpinRelaxed.weakens(Ordering::Release));
                }
            }
            GuardKind::Stray => {
                // ORDERING: Release, as for a slot.
                self.quiescence.strays.fetch_sub(1, Ordering::Release);
            }
        }
    }
}

#[cfg(all(test, not(hv_loom)))]
#[expect(unsafe_code, reason = "a test platform promises which CPU it is")]
mod tests {
    use super::*;

    struct Fixed(u32);
    // SAFETY: the tests below use each number from one thread at a time.
    unsafe impl Cpus for Fixed {
        fn current_cpu(&self) -> CpuId {
            CpuId::new(self.0)
        }
        fn cpu_count(&self) -> usize {
            2
        }
    }

    fn passes(quiescence: &Quiescence, epoch: RetireEpoch) -> bool {
        (0..4).any(|_| quiescence.has_passed(epoch))
    }

    #[test]
    fn a_guard_holds_the_epoch_back() {
        let quiescence = Quiescence::new(2).unwrap();
        let guard = quiescence.pin(&Fixed(1));
        let epoch = quiescence.retire_epoch();
        assert!(!passes(&quiescence, epoch));
        drop(guard);
        assert!(passes(&quiescence, epoch));
    }

    #[test]
    fn guards_of_one_cpu_may_end_in_any_order() {
        let quiescence = Quiescence::new(2).unwrap();
        let first = quiescence.pin(&Fixed(0));
        let second = quiescence.pin(&Fixed(0));
        drop(first);
        let epoch = quiescence.retire_epoch();
        assert!(!passes(&quiescence, epoch));
        drop(second);
        assert!(passes(&quiescence, epoch));
    }

    #[test]
    fn guards_that_are_never_dropped_hold_everything_back_for_good() {
        let quiescence = Quiescence::new(1).unwrap();
        for _ in 0..HELD_MASK + 2 {
            core::mem::forget(quiescence.pin(&Fixed(0)));
        }
        drop(quiescence.pin(&Fixed(0)));
        assert!(!passes(&quiescence, quiescence.retire_epoch()));
    }

    #[test]
    fn a_nested_guard_does_not_end_the_outer_one() {
        let quiescence = Quiescence::new(2).unwrap();
        let outer = quiescence.pin(&Fixed(0));
        drop(quiescence.pin(&Fixed(0)));
        let epoch = quiescence.retire_epoch();
        assert!(!passes(&quiescence, epoch));
        drop(outer);
        assert!(passes(&quiescence, epoch));
    }

    #[test]
    fn a_stay_holds_the_epoch_back_until_it_passes() {
        let quiescence = Quiescence::new(2).unwrap();
        let mut stay = quiescence.enter(&Fixed(0));
        let epoch = quiescence.retire_epoch();
        assert!(!passes(&quiescence, epoch));
        let guard = quiescence.pin(&Fixed(0));
        assert!(!stay.pass(), "a guard is alive");
        drop(guard);
        assert!(!passes(&quiescence, epoch));
        let inner = quiescence.enter(&Fixed(0));
        assert!(!passes(&quiescence, epoch), "the outer one is held");
        assert!(
            quiescence.pass(&Fixed(0)),
            "a stay within passes for both, and so does an operation that waits"
        );
        assert!(!quiescence.pass(&Fixed(1)), "nobody stays there");
        assert!(passes(&quiescence, epoch));
        drop(inner);
        let epoch = quiescence.retire_epoch();
        assert!(!passes(&quiescence, epoch), "it is still held");
        // Each step of the epoch waits for the stay once.
        for _ in 0..2 {
            assert!(stay.pass());
            quiescence.has_passed(epoch);
        }
        assert!(passes(&quiescence, epoch));
        drop(stay);
        let later = quiescence.retire_epoch();
        assert!(passes(&quiescence, later), "it is gone");
    }

    #[test]
    fn a_stay_that_is_away_holds_nobody_back_and_a_guard_does() {
        let quiescence = Quiescence::new(2).unwrap();
        let retired = || passes(&quiescence, quiescence.retire_epoch());
        let stay = quiescence.enter(&Fixed(0));
        assert!(!retired());
        assert!(quiescence.inside().eq([CpuId::new(0)]));
        assert!(quiescence.away(&Fixed(0), || {
            // As a handler does.
            drop((quiescence.pin(&Fixed(0)), quiescence.enter(&Fixed(0))));
            assert_eq!(quiescence.inside().count(), 0);
            retired()
        }));
        assert!(!retired(), "it is back");
        let guard = quiescence.pin(&Fixed(0));
        assert!(!quiescence.away(&Fixed(0), retired), "a guard is alive");
        drop(guard);
        assert!(quiescence.away(&Fixed(0), retired));
        drop(stay);
        assert!(retired() && quiescence.away(&Fixed(0), retired));
        let stray = quiescence.pin(&Fixed(7));
        assert!(!quiescence.away(&Fixed(7), retired));
        drop(stray);
    }

    #[test]
    fn a_guard_outlives_its_stay() {
        let quiescence = Quiescence::new(2).unwrap();
        let stay = quiescence.enter(&Fixed(0));
        let guard = quiescence.pin(&Fixed(0));
        drop(stay);
        let epoch = quiescence.retire_epoch();
        assert!(!quiescence.pass(&Fixed(0)), "it is no stay");
        assert!(!passes(&quiescence, epoch));
        drop(guard);
        assert!(passes(&quiescence, epoch));
    }

    #[test]
    fn an_unknown_cpu_holds_everything_back() {
        let quiescence = Quiescence::new(2).unwrap();
        let stray = quiescence.pin(&Fixed(7));
        let epoch = quiescence.retire_epoch();
        assert!(!passes(&quiescence, epoch));
        drop(stray);
        assert!(passes(&quiescence, epoch));
    }
}
