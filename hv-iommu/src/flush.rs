//! Flushes and receipts: the one place where proof is made that hardware forgot something.

use core::fmt;
use core::time::Duration;

use arrayvec::ArrayVec;
use hv_core::IovaRange;
use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::{Ordering, fence};
use thiserror::Error;

use crate::backend::{
    Backend, FlushDepth, FlushRequest, FlushSpan, FlushTicket, UnitError, UnitIndex,
};
use crate::domain::{DomainCore, DomainUid};
use crate::pending::RedeemRefusal;
use crate::system::System;

/// Proof that every unit a domain reaches has forgotten translations of it.
///
/// Only a completed flush makes one. It opens pending values whose unmap came before the flush was
/// asked for, and which it covers in span and depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a receipt opens what waits for this flush"]
pub struct Receipt {
    pub(crate) domain: DomainUid,
    /// The domain's flush counter when this flush began.
    pub(crate) sequence: u64,
    pub(crate) span: FlushSpan,
    pub(crate) depth: FlushDepth,
}

/// What a flush has to be like for something to be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// The first flush of the domain that is young enough.
    pub(crate) sequence: u64,
    /// What it has to cover.
    pub(crate) span: IovaRange,
    pub(crate) depth: FlushDepth,
}

impl Need {
    /// What meets both needs.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            sequence: self.sequence.max(other.sequence),
            span: self.span.hull(&other.span),
            depth: self.depth.max(other.depth),
        }
    }
}

impl Receipt {
    /// Whether it is of `domain` and meets `need`.
    #[inline]
    pub(crate) fn meets(&self, domain: DomainUid, need: &Need) -> Result<(), RedeemRefusal> {
        if self.domain != domain {
            return Err(RedeemRefusal::OtherDomain {
                expected: domain,
                found: self.domain,
            });
        }
        if self.sequence < need.sequence && !Fault::OldReceiptOpens.is_on() {
            return Err(RedeemRefusal::TooOld {
                needed: need.sequence,
                found: self.sequence,
            });
        }
        if self.depth < need.depth && !Fault::AnySpanOpens.is_on() {
            return Err(RedeemRefusal::TooShallow);
        }
        match &self.span {
            FlushSpan::Pages(flushed)
                if !flushed.covers(&need.span) && !Fault::AnySpanOpens.is_on() =>
            {
                Err(RedeemRefusal::NotCovered { range: need.span })
            }
            FlushSpan::Pages(_) | FlushSpan::Domain => Ok(()),
        }
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flush {} of {}", self.sequence, self.domain)
    }
}

/// Why there is no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FlushError {
    /// A unit did not complete the flush. Unless it was only busy, it is wedged from now on and its
    /// devices were cut off. Others may be too: [`Iommu::wedged_units`](crate::Iommu::wedged_units) tells.
    #[error("{error}{next}", error = .0, next = next_step(.0))]
    Unit(UnitError),
}

impl From<UnitError> for FlushError {
    fn from(error: UnitError) -> Self {
        Self::Unit(error)
    }
}

/// What to do about a flush that failed, where the unit's error does not say that itself.
fn next_step(error: &UnitError) -> &'static str {
    match error {
        UnitError::Timeout { .. } | UnitError::Hardware { .. } => {
            "; the unit is wedged, and what was to be flushed stays pending: `Iommu::reset_unit`, then flush anew"
        }
        _ => "",
    }
}

impl<B: Backend> System<B> {
    /// Waits until what `ticket` stands for is done. On failure the unit is wedged and every device
    /// behind it loses bus mastering. Devices that the unit gave up meanwhile are cut off, with their groups.
    pub(crate) fn wait(
        &self,
        unit: UnitIndex,
        ticket: FlushTicket,
        what: &'static str,
    ) -> Result<(), UnitError> {
        let done = self.wait_unless_refused(unit, ticket, what);
        if matches!(done, Err(UnitError::Refused { .. })) {
            self.cut_off(unit);
        }
        done
    }

    /// As [`wait`](Self::wait), for what leaves nothing behind that has to be forgotten, or is asked for once more, where
    /// the unit [refuses](UnitError::Refused) it: the unit goes on then.
    pub(crate) fn wait_unless_refused(
        &self,
        unit: UnitIndex,
        ticket: FlushTicket,
        what: &'static str,
    ) -> Result<(), UnitError> {
        if Fault::WaitNotAwaited.is_on() {
            return Ok(());
        }
        let clock = self.backend.platform();
        let start = clock.now();
        let mut deadline = start.after(self.wait);
        let (mut for_devices, mut steps) = (false, None);
        let resets = self.wedged.resets(unit);
        loop {
            // Also where it was so: the last of them may have been given up just now.
            for_devices |= self.backend.waits_for_devices(unit);
            let now = clock.now();
            if for_devices && !Fault::MendingIsNotWaitedFor.is_on() {
                // Whoever finds out which devices do not answer gives each its time.
                let found = self.backend.mending_steps(unit);
                if steps.replace(found).is_some_and(|before| before != found) {
                    deadline = now.after(self.wait);
                }
            }
            let expired = match for_devices {
                true => now > deadline.after(self.device_wait),
                false => now > deadline,
            };
            match self.away(|| self.backend.poll(unit, ticket)) {
                Ok(true) => {
                    self.hear_of_silent(unit);
                    return Ok(());
                }
                Ok(false) if expired && Fault::TimeoutIsSuccess.is_on() => return Ok(()),
                Ok(false) if expired => {
                    let waited: Duration = clock.now().since(start);
                    let late = UnitError::Timeout { unit, what, waited };
                    return self.given_up(unit, ticket, late, resets);
                }
                Ok(false) => {
                    self.backend.pause(unit);
                    if Fault::PauseIsCompletion.is_on() {
                        return Ok(());
                    }
                }
                // Not where that was what nothing can come in the place of: the unit is wedged then.
                Err(error @ UnitError::Refused { .. }) if !self.backend.is_wedged(unit) => {
                    return Err(error);
                }
                Err(error) => return self.given_up(unit, ticket, error, resets),
            }
        }
    }

    /// What a wait that has failed comes to. Where the unit was reset since it was looked at, that look says nothing of it any
    /// more, and what was waited for is done by the reset, or fails now.
    fn given_up(
        &self,
        unit: UnitIndex,
        ticket: FlushTicket,
        error: UnitError,
        resets: u64,
    ) -> Result<(), UnitError> {
        if self.request_failed(unit, error, resets) {
            return Err(error);
        }
        let resets = self.wedged.resets(unit);
        match self.away(|| self.backend.poll(unit, ticket)) {
            Ok(true) => {
                self.hear_of_silent(unit);
                Ok(())
            }
            Ok(false) => {
                self.cut_off(unit);
                Err(error)
            }
            Err(later) => {
                self.request_failed(unit, later, resets);
                Err(later)
            }
        }
    }

    /// Asks the unit for something. Who does walks in no table, or has a guard for what it walks in: its stay holds nobody
    /// back meanwhile, however long that takes. (Who finds the unit's queue full, or waits in between, may be the one that
    /// mends it, which takes as long as devices that do not answer are given.)
    pub(crate) fn away<R>(&self, ask: impl FnOnce() -> R) -> R {
        match Fault::MenderStays.is_on() {
            true => ask(),
            false => self.quiescence.away(self.backend.platform(), ask),
        }
    }
}

impl<B: Backend> System<B> {
    /// Asks a unit for a flush. It may have to wait for room in the unit's queue, or for who mends that: the caller's stay
    /// holds nobody back meanwhile; what the caller walks in, it has a guard for.
    fn submit(&self, unit: UnitIndex, request: FlushRequest) -> Result<FlushTicket, UnitError> {
        self.away(|| self.backend.submit(unit, request))
    }

    /// Asks for a flush once more that the unit refused, as wide and as deep as there is one: another command, which it may
    /// take. One that refuses that as well cannot be made to forget, and is wedged.
    fn flush_whole(&self, unit: UnitIndex, request: FlushRequest) -> Result<(), UnitError> {
        let whole = FlushRequest {
            span: FlushSpan::Domain,
            depth: FlushDepth::WalkCaches,
            ..request
        };
        let resets = self.wedged.resets(unit);
        match self.submit(unit, whole) {
            Ok(ticket) => self.wait(unit, ticket, "the invalidation of a whole domain"),
            Err(error) => {
                self.request_failed(unit, error, resets);
                Err(error)
            }
        }
    }
}

impl<B: Backend> DomainCore<B> {
    /// Flushes on every unit that the domain reaches and waits for all of them.
    pub(crate) fn flush(&self, span: FlushSpan, depth: FlushDepth) -> Result<Receipt, FlushError> {
        let sequence = self.flushes.begin();
        if !Fault::FreePageEarly.is_on() {
            self.flush_units(span, depth)?;
        }
        Ok(Receipt {
            domain: self.uid,
            sequence,
            span,
            depth,
        })
    }

    /// The flush counter to note after pending words were stored.
    #[inline]
    pub(crate) fn note_unmap(&self) -> u64 {
        self.flushes.note()
    }

    /// What a map owes: units that cache absent entries, or have a write buffer, forget the range.
    ///
    /// Links as well, also when this map linked no table: another CPU may have linked it just now and
    /// not have flushed yet.
    #[inline]
    pub(crate) fn sync_map(&self, range: IovaRange) -> Result<(), FlushError> {
        // ORDERING: SeqCst pairs with the fence of `Reach::enter`: either the unit that is entering is
        // seen here, or its walks, which begin after that fence, see the new leaves.
        fence(Ordering::SeqCst);
        if !self.reach.syncs_on_map() || Fault::SkipSyncMap.is_on() {
            return Ok(());
        }
        let depth = if Fault::LeafHintOnMap.is_on() {
            FlushDepth::Leaves
        } else {
            FlushDepth::WalkCaches
        };
        self.flush_units(FlushSpan::Pages(range), depth)
    }

    fn flush_units(&self, span: FlushSpan, depth: FlushDepth) -> Result<(), FlushError> {
        // What was translated through both stages is filed under the user's addresses, which pages of this
        // domain do not name; and units remember where they found the tables of a first stage.
        let has_nested = self.reach.has_nested() && !Fault::NestedFlushByPages.is_on();
        let (span, depth) = match has_nested {
            true => (FlushSpan::Domain, FlushDepth::WalkCaches),
            false => (span, depth),
        };
        let request = FlushRequest {
            domain: self.id,
            span,
            depth,
        };
        // As many as there may be units, so each has its place.
        let mut tickets = ArrayVec::<(UnitIndex, FlushTicket), { UnitIndex::LIMIT }>::new();
        let mut failed = None;
        for unit in self.reach.units() {
            if Fault::OneUnitFlushed.is_on() && !tickets.is_empty() {
                break;
            }
            let resets = self.system.wedged.resets(unit);
            match self.system.submit(unit, request) {
                Ok(ticket) => {
                    let _ = tickets.try_push((unit, ticket));
                }
                Err(error) => {
                    self.system.request_failed(unit, error, resets);
                    failed = Some(error);
                }
            }
        }
        for (unit, ticket) in tickets {
            let system = &self.system;
            let done = match system.wait_unless_refused(unit, ticket, "an invalidation") {
                Err(UnitError::Refused { .. }) => system.flush_whole(unit, request),
                done => done,
            };
            if let Err(error) = done {
                failed = Some(error);
            }
        }
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use hv_core::{Iova, PageCount};

    use super::*;

    /// Callers get receipts with walk caches only, so this is the one place where one without is seen.
    #[test]
    fn a_receipt_for_leaves_opens_nothing_that_needs_walk_caches() {
        let span = IovaRange::new(Iova::new(0x20_0000), PageCount::new(512).unwrap()).unwrap();
        let domain = DomainUid::fresh();
        let receipt = |depth| Receipt {
            domain,
            sequence: 7,
            span: FlushSpan::Domain,
            depth,
        };
        let need = |depth| Need {
            sequence: 7,
            span,
            depth,
        };
        let (leaves, all) = (FlushDepth::Leaves, FlushDepth::WalkCaches);
        let shallow = receipt(leaves).meets(domain, &need(all));
        assert_eq!(shallow, Err(RedeemRefusal::TooShallow));
        for (flushed, needed) in [(leaves, leaves), (all, leaves), (all, all)] {
            assert_eq!(receipt(flushed).meets(domain, &need(needed)), Ok(()));
        }
        // What needs both is the deeper, the younger and the wider of the two.
        let other = Need {
            sequence: 9,
            span: IovaRange::new(Iova::new(0x80_0000), PageCount::ONE).unwrap(),
            depth: leaves,
        };
        let both = need(all).and(other);
        assert_eq!((both.sequence, both.depth), (9, all));
        assert_eq!(both.span, span.hull(&other.span));
    }
}
