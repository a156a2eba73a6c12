//! Unmapping: whole mappings, with one flush for all that a call takes out.

use core::ops::Range as Indices;

use hv_core::{GpaRange, GuestMemory, IovaRange};

use super::areas::{Area, State};
use super::map::unpin;
use super::{AddressSpace, AddressSpaceError};
use crate::backend::Backend;
use crate::pending::{RedeemRefusal, Seal};

impl<B: Backend> AddressSpace<B> {
    /// Unmaps every mapping in `range` and gives their pins back. Gives how many bytes that were.
    ///
    /// # Errors
    /// [`AddressSpaceError::NotMapped`] when there is none, [`AddressSpaceError::Cuts`] when one is only partly in the
    /// range, [`AddressSpaceError::Pending`]; nothing was changed then. [`AddressSpaceError::Unit`] when a unit
    /// did not complete the flush: the mappings are gone, but their memory stays pinned until
    /// [`retry`](Self::retry) works.
    pub fn unmap(
        &mut self,
        memory: &GuestMemory,
        range: IovaRange,
    ) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
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
        self.take_down(memory, indices, |_| true)
    }

    /// Unmaps everything, which may be nothing. Gives how many bytes that were.
    ///
    /// # Errors
    /// [`AddressSpaceError::Unit`] as for [`unmap`](Self::unmap), [`AddressSpaceError::ForeignMemory`].
    pub fn unmap_all(&mut self, memory: &GuestMemory) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        self.areas.settle_vacant();
        self.take_down(memory, 0..self.areas.all().len(), |_| true)
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
        self.areas.settle_vacant();
        let reaches = |area: &Area<B>| {
            let behind = GpaRange::new(area.gpa, area.span.pages());
            behind.is_ok_and(|behind| behind.overlaps(&gpa))
        };
        self.take_down(memory, 0..self.areas.all().len(), reaches)
    }

    /// Flushes again for what stayed pending when a unit did not complete a flush, and gives its pins back. Gives how
    /// many bytes that were.
    ///
    /// # Errors
    /// [`AddressSpaceError::Unit`], [`AddressSpaceError::Redeem`]; what did not open stays pending.
    pub fn retry(&mut self, memory: &GuestMemory) -> Result<u64, AddressSpaceError> {
        self.check_memory(memory)?;
        self.areas.settle_vacant();
        self.take_down(memory, 0..self.areas.all().len(), |_| false)
    }

    /// Unmaps the chosen areas among `indices`, flushes once for these and for what is pending there already, and
    /// gives back what that opens. Gives how many bytes that were.
    pub(super) fn take_down(
        &mut self,
        memory: &GuestMemory,
        indices: Indices<usize>,
        chosen: impl Fn(&Area<B>) -> bool,
    ) -> Result<u64, AddressSpaceError> {
        let mut seal: Option<Seal> = None;
        for index in indices.clone() {
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
                let this = *pending.seal();
                seal = Some(seal.map_or(this, |seal| seal.and(this)));
            }
        }
        let Some(seal) = seal else {
            return Ok(0);
        };
        let core = self.domain.core.clone();
        // The one wait, for walkers too: below it is only seen whether they have left.
        let receipt = seal.flush(&core)?;
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
            match pending.redeem(&receipt) {
                Ok((range, run)) => {
                    bytes += range.span().pages().bytes();
                    unpin(memory, run);
                    self.areas.vacate(index, range);
                }
                Err(error) => {
                    refused = Some(error.reason);
                    area.state = State::Pending(error.pending);
                }
            }
        }
        self.areas.sweep(indices);
        core.assist_reclaim();
        self.settle();
        match refused {
            Some(reason) => Err(reason.into()),
            None => Ok(bytes),
        }
    }
}
