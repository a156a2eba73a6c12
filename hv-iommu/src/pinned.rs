//! Firmware's regions in a domain: reserved first, then mapped one to one, and there until its end.

#![expect(
    unsafe_code,
    reason = "tells the table that the words under a free range are empty"
)]

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::platform::MemoryMap;
use hv_core::{KernelPaging, OutOfMemory, Owner, PageSize, Perms};

use crate::backend::Backend;
use crate::domain::{Domain, DomainError};
use crate::group::Inner;
use crate::pending::{PendingUnmap, RedeemRefusal};
use crate::range::{Free, Mapped, Range};
use crate::reserved::ReservedRegion;
use crate::shape::Pages;

/// A region of firmware in a domain. No caller can come by a range of its addresses, so none can unmap it.
///
/// # Invariants
/// The range covers the region, and nothing else.
pub(crate) struct PinnedRegion<O: Owner, B: Backend> {
    region: ReservedRegion,
    state: State<O, B>,
}

enum State<O: Owner, B: Backend> {
    /// Tracked, not mapped.
    Free(Range<O, B, Free>),
    Mapped(Range<O, B, Mapped>),
    /// The domain ends.
    Pending(PendingUnmap<O, B>),
}

/// A region that was not mapped, and why.
type NotMapped<B> = (Range<KernelPaging, B, Free>, DomainError);

impl<B: Backend> Domain<KernelPaging, B> {
    /// Reserves all regions of a group's devices, then maps each. The domain is new.
    ///
    /// # Errors
    /// [`DomainError`]. The regions that were mapped are still, and `unmap_regions` takes them out.
    pub(crate) fn map_regions(&mut self, group: &Inner<B>) -> Result<(), DomainError> {
        for region in group.regions_to_map() {
            let bytes = size_of::<PinnedRegion<KernelPaging, B>>();
            let room = self.held.pinned.try_reserve(1);
            room.map_err(|_| OutOfMemory { bytes })?;
            let range = self.reserve(region.range);
            let range = range.map_err(|why| DomainError::Region { region, why })?;
            // INVARIANT: just that range.
            let state = State::Free(range);
            self.held.pinned.push(PinnedRegion { region, state });
        }
        let count = self.held.pinned.len();
        let mut room = Vec::new();
        room.try_reserve_exact(count).map_err(|_| OutOfMemory {
            bytes: count * size_of::<PinnedRegion<KernelPaging, B>>(),
        })?;
        let pinned = core::mem::replace(&mut self.held.pinned, room);
        let mut failed = None;
        for PinnedRegion { region, state } in pinned {
            let state = match state {
                State::Free(range) if Fault::RegionNotMapped.is_on() => State::Free(range),
                State::Free(range) if failed.is_none() => match self.map_region(region, range) {
                    Ok(range) => State::Mapped(range),
                    Err((range, error)) => {
                        failed = Some(error);
                        State::Free(range)
                    }
                },
                other => other,
            };
            // Within the room that was made for it.
            self.held.pinned.push(PinnedRegion { region, state });
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let mut known = self.core.regions.lock();
        known.try_reserve(count).map_err(|_| OutOfMemory {
            bytes: count * size_of::<ReservedRegion>(),
        })?;
        known.extend(self.held.pinned.iter().map(|pinned| pinned.region));
        Ok(())
    }

    fn map_region(
        &self,
        region: ReservedRegion,
        range: Range<KernelPaging, B, Free>,
    ) -> Result<Range<KernelPaging, B, Mapped>, NotMapped<B>> {
        let core = &self.core;
        let Some(memory) = region.memory().filter(|memory| core.reaches(memory)) else {
            return Err((range, DomainError::RegionUnreachable { region }));
        };
        let platform = core.system.backend.platform();
        if !platform.firmware_may_use(memory) && !Fault::RegionNotCompared.is_on() {
            return Err((range, DomainError::RegionNotFirmwares { region }));
        }
        let (to, granted) = (memory.start(), core.granted(Perms::ReadWrite));
        let guard = core.pin();
        // SAFETY: the range was taken from the domain's free addresses, so no leaf is under it and nobody
        // else makes one. What it leads to is no run of frames of anybody: the platform says that it is firmware's.
        let mapped = unsafe {
            core.table
                .map_vacant(&guard, region.range, to, granted, PageSize::Size1G, None)
        };
        drop(guard);
        match mapped {
            // No unit has to be told: no device is attached to a new domain.
            Ok(_) => Ok(range.into_state(Mapped {
                granted,
                to,
                debt: None,
            })),
            Err(error) => Err((range, error.into())),
        }
    }
}

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// Takes firmware's regions out of the table, so that its end hands none of their memory out as frames. No
    /// device is attached.
    ///
    /// # Errors
    /// [`RedeemRefusal`]. Call again: what is left is still here.
    pub(crate) fn unmap_regions(&mut self) -> Result<(), RedeemRefusal> {
        while let Some(PinnedRegion { region, state }) = self.held.pinned.pop() {
            let pending = match state {
                State::Free(_) => continue,
                State::Mapped(_) if Fault::RegionHandedOut.is_on() => continue,
                State::Mapped(range) => range.unmap(),
                State::Pending(pending) => pending,
            };
            if let Err(error) = pending.flush_open() {
                let state = State::Pending(error.pending);
                // In the place that it was taken from.
                self.held.pinned.push(PinnedRegion { region, state });
                return Err(error.reason);
            }
        }
        // Their addresses are not given back: the domain ends.
        self.held.pinned = Vec::new();
        Ok(())
    }
}
