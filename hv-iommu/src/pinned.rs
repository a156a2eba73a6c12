//! Firmware's regions, and doorbells, in a domain: reserved first, then mapped one to one, and there until its end.

#![expect(
    unsafe_code,
    reason = "tells the table that the words under a free range are empty"
)]

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::platform::MemoryMap;
use hv_core::{IovaRange, OutOfMemory, Owner, OwnerId, PageSize, Perms, PhysAddr, PhysRange};

use crate::backend::Backend;
use crate::domain::{Domain, DomainError};
use crate::group::Inner;
use crate::iova::SpaceError;
use crate::pending::{PendingUnmap, RedeemRefusal};
use crate::range::{Free, Mapped, Range};
use crate::reserved::{ReservedKind, ReservedRegion};
use crate::shape::Pages;

/// A region of firmware, or a doorbell, in a domain. No caller can come by a range of its addresses, so none can unmap
/// it.
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

impl<O: Owner, B: Backend> PinnedRegion<O, B> {
    /// What it is.
    pub(crate) fn region(&self) -> ReservedRegion {
        self.region
    }

    /// The addresses that it takes.
    pub(crate) fn range(&self) -> IovaRange {
        self.region.range
    }
}

/// What became of a region that is not as it should be, and why.
type Failed<O, B> = (State<O, B>, DomainError);

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// The domain, which is new, with the regions of a group's devices: what firmware goes on using is for the
    /// hypervisor's drivers alone, since no guest can claim such a group.
    ///
    /// # Errors
    /// [`DomainError`]: nothing of the domain is left then.
    pub(crate) fn with_regions(mut self, group: &Inner<B>) -> Result<Self, DomainError> {
        let Err(error) = self.map_regions(group) else {
            return Ok(self);
        };
        match self.destroy() {
            Ok(teardown) => teardown.for_each(drop),
            Err(stays) => log::error!("a domain that failed is left over: {stays}"),
        }
        Err(error)
    }

    /// Reserves all regions, then maps each.
    fn map_regions(&mut self, group: &Inner<B>) -> Result<(), DomainError> {
        let for_firmware = O::owner_id(self.owner) == OwnerId::Hypervisor;
        let firmwares = group.firmwares_regions().filter(|_| for_firmware);
        for region in firmwares.chain(group.doorbells()) {
            let bytes = size_of::<PinnedRegion<O, B>>();
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
            bytes: count * size_of::<PinnedRegion<O, B>>(),
        })?;
        let pinned = core::mem::replace(&mut self.held.pinned, room);
        let mut failed = None;
        for PinnedRegion { region, state } in pinned {
            let state = match state {
                State::Free(range) if Fault::RegionNotMapped.is_on() => State::Free(range),
                State::Free(range) if failed.is_none() => match self.map_region(region, range) {
                    Ok(range) => State::Mapped(range),
                    Err((state, error)) => {
                        failed = Some(error);
                        state
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

    /// The error for an exact range that is not free, with what is in the way where that is not another range.
    #[cold]
    pub(crate) fn why_not(&self, wanted: IovaRange, error: SpaceError) -> SpaceError {
        let SpaceError::NotFree { .. } = error else {
            return error;
        };
        let last = self.core.caps.last;
        if wanted.last() > last {
            return SpaceError::Outside { wanted, last };
        }
        let windows = self.core.system.backend.reserved().iter();
        let windows = windows.map(|range| ReservedRegion {
            range: *range,
            kind: ReservedKind::InterruptWindow,
        });
        let pinned = self.held.pinned.iter().map(PinnedRegion::region);
        let mut reserved = windows.chain(pinned);
        match reserved.find(|region| region.range.overlaps(&wanted)) {
            Some(by) => SpaceError::Reserved { wanted, by },
            None => error,
        }
    }

    fn map_region(
        &self,
        region: ReservedRegion,
        range: Range<O, B, Free>,
    ) -> Result<Range<O, B, Mapped>, Failed<O, B>> {
        let core = &self.core;
        let Some(memory) = region.memory().filter(|memory| core.reaches(memory)) else {
            let error = DomainError::RegionUnreachable { region };
            return Err((State::Free(range), error));
        };
        if let Err(error) = self.compare(region, memory) {
            return Err((State::Free(range), error));
        }
        let is_doorbell = region.kind == ReservedKind::Doorbell;
        let (perms, largest) = match is_doorbell {
            true => (Perms::Write, PageSize::Size4K),
            false => (Perms::ReadWrite, PageSize::LARGEST),
        };
        let (mut to, granted) = (memory.start(), core.granted(perms));
        if is_doorbell && Fault::DoorbellOnePageOff.is_on() {
            to = PhysAddr::new(to.as_u64() + memory.pages().bytes());
        }
        let guard = core.pin();
        // SAFETY: the range was taken from the domain's free addresses, so no leaf is under it and nobody
        // else makes one. What it leads to is no run of frames of anybody: the platform says that it is firmware's, or
        // that it takes messages.
        let mapped = unsafe {
            core.table
                .map_vacant(&guard, region.range, to, granted, largest, None)
        };
        if let Err(error) = mapped {
            return Err((State::Free(range), error.into()));
        }
        // No unit has to be told: no device is attached to a new domain.
        let mapped = range.into_state(Mapped {
            granted,
            to,
            debt: None,
        });
        match is_doorbell {
            false => Ok(mapped),
            true if Fault::DoorbellIsMemory.is_on() => Ok(mapped),
            true => match core.table.make_doorbell(&guard, region.range) {
                Ok(()) => Ok(mapped),
                Err(error) => Err((State::Mapped(mapped), error.into())),
            },
        }
    }

    /// Compares firmware's word with what the platform knows.
    fn compare(&self, region: ReservedRegion, memory: PhysRange) -> Result<(), DomainError> {
        let platform = self.core.system.backend.platform();
        let known = match region.kind {
            ReservedKind::Doorbell => platform.takes_messages(memory),
            _ => platform.firmware_may_use(memory),
        };
        match region.kind {
            _ if known || Fault::RegionNotCompared.is_on() => Ok(()),
            ReservedKind::Doorbell => Err(DomainError::NoDoorbell { region }),
            _ => Err(DomainError::RegionNotFirmwares { region }),
        }
    }

    /// Takes firmware's regions, and doorbells, out of the table, so that its end hands none of their memory out as frames. No
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
