//! How many hold on to a domain: counted where their addresses are taken and given back, under the claim that this
//! takes anyway.

use hv_core::fault::Fault;
use hv_core::sync::{AtomicU64, Ordering};

/// Who began to hold on to the domain, and who ended, both counted up: on one CPU in its cache's claim, or anywhere by
/// exchanges. Who begins on one CPU may end on another, so only the sums over all tallies say anything.
pub(super) struct Tally {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    /// One more, for who has the claim that this tally is written under.
    #[inline]
    pub(super) fn begin_claimed(&self) {
        // ORDERING: Relaxed: the claim puts its holders in one order. Whoever counts learns of this by what came
        // after it: the end of this hold, or of the one, or the reference, that it was made from.
        let begun = self.begun.load(Ordering::Relaxed);
        // ORDERING: Relaxed, as above.
        self.begun.store(begun.wrapping_add(1), Ordering::Relaxed);
    }

    /// One less, for who has the claim that this tally is written under.
    #[inline]
    pub(super) fn end_claimed(&self) {
        // ORDERING: Relaxed, as in `begin_claimed`.
        let ended = self.ended.load(Ordering::Relaxed);
        // ORDERING: Release: all that was done under this hold, and that it began, happens before whoever counts
        // it as ended. Ends of before, by others, are published too: the claim orders them before this one.
        self.ended.store(
            ended.wrapping_add(1),
            Fault::HoldEndsRelaxed.weakens(Ordering::Release),
        );
    }

    /// One more, without a claim.
    #[inline]
    pub(super) fn begin(&self) {
        // ORDERING: Relaxed, as in `begin_claimed`.
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// One less, without a claim. Nothing of the domain may be looked at after this.
    #[inline]
    pub(super) fn end(&self) {
        // ORDERING: Release, as in `end_claimed`; an exchange goes on what others released.
        self.ended.fetch_add(1, Ordering::Release);
    }
}

/// How many hold on, as of a moment during the call. Zero is lasting if nobody has another way to begin than from a hold.
///
/// All ends are read before the first beginning: an end that is seen has its beginning seen, and so have those that
/// were made from that hold. So nobody who goes on is missed, wherever beginnings and ends were counted.
pub(super) fn held<'t>(tallies: impl Iterator<Item = &'t Tally> + Clone) -> u64 {
    let sum = |counts: &mut dyn Iterator<Item = u64>| counts.fold(0, u64::wrapping_add);
    // ORDERING: Acquire pairs with the end: its hold's beginning, and those made from it, are seen below.
    let ended = || {
        sum(&mut tallies
            .clone()
            .map(|tally| tally.ended.load(Ordering::Acquire)))
    };
    // ORDERING: Relaxed, ordered behind the loads of ends.
    let begun = || {
        sum(&mut tallies
            .clone()
            .map(|tally| tally.begun.load(Ordering::Relaxed)))
    };
    if Fault::HoldsBegunFirst.is_on() {
        let begun = begun();
        return begun.wrapping_sub(ended());
    }
    let ended = ended();
    begun().wrapping_sub(ended)
}
