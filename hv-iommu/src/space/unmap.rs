//! Unmapping: whole mappings, with one flush for all that a call takes out, and without the space while it lasts.

use core::fmt;
use core::ops::Range as Indices;

use hv_core::{GpaRange, GuestMemory, IovaRange, Shared, UserManaged};

use super::areas::{Area, State};
use super::map::unpin;
use super::{AddressSpace, AddressSpaceError, gpa_after};
use crate::backend::Backend;
use crate::dirty::leaf_at;
use crate::domain::{DomainCore, DomainUid};
use crate::flush::{FlushError, Receipt};
use crate::pending::{RedeemRefusal, Seal};
use crate::shape::Pages;

/// Mappings that were taken out of a space and that units may still have cached: to be [flushed](Self::flush), which
/// does not need the space, and [finished](AddressSpace::finish).
///
/// Dropping it loses nothing: places stay taken and memory pinned until [`AddressSpace::retry`].
#[must_use = "what was unmapped stays pinned until it is flushed and finished"]
pub struct Unmapping<B: Backend> {
    core: Shared<DomainCore<B>>,
    /// What it takes, and where the areas are; `None` when there is nothing to wait for.
    wait: Option<(Seal, IovaRange)>,
}

/// Units have forgotten what an [`Unmapping`] took out.
#[must_use = "what was unmapped stays pinned until it is finished"]
#[derive(Clone, Copy, Debug)]
pub struct Flushed {
    domain: DomainUid,
    opened: Option<(Receipt, IovaRange)>,
}

impl<B: Backend> Unmapping<B> {
    /// Waits until no unit knows of the mappings any more, and no CPU walks in their tables. Others may change the
    /// space meanwhile.
    ///
    /// # Errors
    /// [`FlushError`] when a unit did not complete the flush. Call again, or leave it to [`AddressSpace::retry`].
    pub fn flush(&self) -> Result<Flushed, FlushError> {
        let domain = self.core.uid;
        let opened = match &self.wait {
            Some((seal, span)) => Some((seal.flush(&self.core)?, *span)),
            None => None,
        };
        Ok(Flushed { domain, opened })
    }
}

impl<B: Backend> fmt::Debug for Unmapping<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wait {
            Some((_, span)) => write!(f, "unmapped in {span} of {}", self.core.uid),
            None => write!(f, "nothing unmapped of {}", self.core.uid),
        }
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// Unmaps every mapping in `range` and gives their pins back. Gives how many bytes that were.
    ///
    /// # Errors
    /// As for [`begin_unmap`](Self::begin_unmap) and [`AddressSpaceError::ForeignMemory`]; nothing was changed then.
    /// [`AddressSpaceError::Unit`] when a unit did not complete the flush: the mappings are gone, but their memory
    /// stays pinned until [`retry`](Self::retry) works.
    pub fn unmap(
        &mut self,
        memory: &GuestMemory,
        range: IovaRange,
    ) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        let begun = self.begin_unmap(range)?;
        self.complete(memory, &begun)
    }

    /// Unmaps everything, which may be nothing. Gives how many bytes that were.
    ///
    /// # Errors
    /// [`AddressSpaceError::Unit`] as for [`unmap`](Self::unmap), [`AddressSpaceError::ForeignMemory`].
    pub fn unmap_all(&mut self, memory: &GuestMemory) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        let begun = self.begin_unmap_all();
        self.complete(memory, &begun)
    }

    /// Unmaps every mapping, whole, that reaches anything of the guest in `gpa`: before memory is taken back, a loan
    /// handed back, or registers stop to be decoded. Gives how many bytes that were; none is fine.
    ///
    /// # Errors
    /// [`AddressSpaceError::Unit`] as for [`unmap`](Self::unmap), [`AddressSpaceError::ForeignMemory`].
    pub fn revoke(
        &mut self,
        memory: &GuestMemory,
        gpa: GpaRange,
    ) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        let begun = self.begin_revoke(gpa);
        self.complete(memory, &begun)
    }

    /// Flushes again for what stayed pending when a unit did not complete a flush, and gives its pins back. Gives how
    /// many bytes that were.
    ///
    /// # Errors
    /// [`AddressSpaceError::Unit`], [`AddressSpaceError::Redeem`]; what did not open stays pending.
    pub fn retry(&mut self, memory: &GuestMemory) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        let begun = self.begin_retry();
        self.complete(memory, &begun)
    }

    /// Takes every mapping in `range` out, and leaves the wait for units to the caller: [`Unmapping::flush`], while
    /// which the space can be used, and then [`finish`](Self::finish).
    ///
    /// # Errors
    /// [`AddressSpaceError::NotMapped`] when there is none, [`AddressSpaceError::Cuts`] when one is only partly in the
    /// range, [`AddressSpaceError::Pending`]; nothing was changed then.
    pub fn begin_unmap(&mut self, range: IovaRange) -> Result<Unmapping<B>, AddressSpaceError> {
        self.areas.settle_vacant();
        let indices = self.areas.meeting(range);
        let mut any = false;
        for area in self.areas.all().get(indices.clone()).unwrap_or(&[]) {
            if area.is_pending() {
                return Err(AddressSpaceError::Pending {
                    wanted: range,
                    pending: area.span,
                });
            }
            if area.is_mapped() && !range.covers(&area.span) {
                return Err(AddressSpaceError::Cuts {
                    wanted: range,
                    mapping: area.span,
                });
            }
            any |= area.is_mapped();
        }
        if !any {
            return Err(AddressSpaceError::NotMapped { wanted: range });
        }
        Ok(self.begin(indices, |_| true))
    }

    /// As [`begin_unmap`](Self::begin_unmap) of everything, which may be nothing.
    pub fn begin_unmap_all(&mut self) -> Unmapping<B> {
        self.areas.settle_vacant();
        self.begin(0..self.areas.all().len(), |_| true)
    }

    /// As [`begin_unmap`](Self::begin_unmap) of what [`revoke`](Self::revoke) unmaps, which may be nothing.
    pub fn begin_revoke(&mut self, gpa: GpaRange) -> Unmapping<B> {
        self.areas.settle_vacant();
        let reaches = |area: &Area<B>| {
            let behind = GpaRange::new(area.gpa, area.span.pages());
            behind.is_ok_and(|behind| behind.overlaps(&gpa))
        };
        self.begin(0..self.areas.all().len(), reaches)
    }

    /// What is pending already, to be flushed again.
    pub fn begin_retry(&mut self) -> Unmapping<B> {
        self.areas.settle_vacant();
        self.begin(0..self.areas.all().len(), |_| false)
    }

    /// Gives the pins of what was taken out and flushed back. Gives how many bytes that were. What a later call took
    /// out meanwhile waits for its own flush.
    ///
    /// # Errors
    /// [`AddressSpaceError::ForeignMemory`], [`AddressSpaceError::OtherDomain`]; nothing was changed then.
    /// [`AddressSpaceError::Redeem`] when something did not open, and stays pending.
    pub fn finish(
        &mut self,
        memory: &GuestMemory,
        flushed: &Flushed,
    ) -> Result<u64, AddressSpaceError> {
        self.finish_noting(memory, flushed, &mut |_| ())
    }

    /// As [`finish`](Self::finish), and tells of the guest's pages that devices wrote through the mappings since that
    /// was last cleared: the last chance to hear of it. What was written of a large page counts for all of it. Tells
    /// nothing where the domain does not note it.
    ///
    /// # Errors
    /// As for [`finish`](Self::finish).
    pub fn finish_noting(
        &mut self,
        memory: &GuestMemory,
        flushed: &Flushed,
        written: &mut dyn FnMut(GpaRange),
    ) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        let (expected, found) = (self.domain.uid(), flushed.domain);
        if expected != found {
            return Err(AddressSpaceError::OtherDomain { expected, found });
        }
        let Some((receipt, span)) = &flushed.opened else {
            return Ok(0);
        };
        let indices = self.areas.meeting(*span);
        let mut bytes = 0;
        let mut refused: Option<RedeemRefusal> = None;
        for index in indices.clone() {
            let Some(area) = self.areas.get_mut(index) else {
                continue;
            };
            let pending = match area.take() {
                State::Pending(pending) => pending,
                other => {
                    area.state = other;
                    continue;
                }
            };
            let (start, gpa) = (area.span.start().as_u64(), area.gpa);
            let redeemed = pending.redeem_showing(receipt, |at, level| {
                let Some(leaf) = leaf_at::<B::Format>(at, level) else {
                    return;
                };
                let gpa = gpa_after(gpa, leaf.start().as_u64().saturating_sub(start));
                if let Ok(gpas) = GpaRange::new(gpa, leaf.pages()) {
                    written(gpas);
                }
            });
            match redeemed {
                Ok((range, run)) => {
                    bytes += range.span().pages().bytes();
                    let span = range.span();
                    let emptied = self.most_tables(span, run.range().start());
                    self.emptied.add(emptied);
                    unpin(memory, run);
                    self.areas.vacate(index, range);
                }
                Err(error) => {
                    // What was taken out after this flush began is for another.
                    let later = matches!(
                        error.reason,
                        RedeemRefusal::TooOld { .. }
                            | RedeemRefusal::TooShallow
                            | RedeemRefusal::NotCovered { .. }
                    );
                    refused = refused.or((!later).then_some(error.reason));
                    if let Some(area) = self.areas.get_mut(index) {
                        area.state = State::Pending(error.pending);
                    }
                }
            }
        }
        self.areas.sweep(indices);
        self.domain.core.assist_reclaim();
        self.settle();
        match refused {
            Some(reason) => Err(reason.into()),
            None => Ok(bytes),
        }
    }

    /// Flushes and finishes.
    fn complete(
        &mut self,
        memory: &GuestMemory,
        begun: &Unmapping<B>,
    ) -> Result<u64, AddressSpaceError> {
        let flushed = begun.flush()?;
        self.finish(memory, &flushed)
    }

    /// Gives back what a call mapped that failed, if the flush works. Not where units note what devices write: what
    /// they wrote there is told by whoever retries.
    pub(super) fn call_back(&mut self, memory: &GuestMemory, begun: Unmapping<B>) {
        if self.check_dirty().is_err() {
            // What does not open stays pending: `retry`.
            let _ = self.complete(memory, &begun);
        }
        self.settle();
    }

    /// Takes the chosen areas among `indices` out, with one wait for these and for what is pending there already.
    pub(super) fn begin(
        &mut self,
        indices: Indices<usize>,
        chosen: impl Fn(&Area<B>) -> bool,
    ) -> Unmapping<B> {
        let mut wait: Option<(Seal, IovaRange)> = None;
        for index in indices {
            let Some(area) = self.areas.get_mut(index) else {
                continue;
            };
            if area.is_mapped() && !chosen(area) {
                continue;
            }
            area.state = match area.take() {
                State::Mapped(range) => State::Pending(range.unmap()),
                other => other,
            };
            if let State::Pending(pending) = &area.state {
                let this = (*pending.seal(), area.span);
                wait =
                    Some(wait.map_or(this, |(seal, span)| (seal.and(this.0), span.hull(&this.1))));
            }
        }
        let core = self.domain.core.clone();
        Unmapping { core, wait }
    }
}
