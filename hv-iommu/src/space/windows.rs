//! Ranges that a guest may use, and ranges that nobody may.

use core::fmt;

use hv_core::{IovaRange, OutOfMemory, UserManaged};

use super::{AddressSpace, AddressSpaceError};
use crate::backend::Backend;
use crate::pinned::PinnedRegion;
use crate::range::{Free, Range};
use crate::shape::Pages;

/// What a range of an address space is reserved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedFor {
    /// Interrupt messages, and whatever else units do not translate.
    Hardware,
    /// A region that firmware told of.
    Firmware,
    /// Something that the hypervisor wants to keep free.
    Hypervisor,
    /// Something that the guest wants to keep free.
    User,
}

impl fmt::Display for ReservedFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "for interrupt messages or other use by hardware",
            Self::Firmware => "by firmware",
            Self::Hypervisor => "by the hypervisor",
            Self::User => "by the guest",
        })
    }
}

/// A reserved range: its token is kept, so nothing can be mapped there.
pub(super) struct Window<B: Backend> {
    range: Range<UserManaged, B, Free>,
    why: ReservedFor,
}

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// Keeps `range` free from now on.
    ///
    /// # Errors
    /// [`AddressSpaceError::Allowed`] when it meets a range that was allowed,
    /// [`AddressSpaceError::Reserved`], [`AddressSpaceError::Overlap`],
    /// [`AddressSpaceError::Outside`], [`AddressSpaceError::OutOfMemory`].
    pub fn reserve(&mut self, range: IovaRange, why: ReservedFor) -> Result<(), AddressSpaceError> {
        self.check_free(range)?;
        if let Some(allowed) = self.allowed.iter().find(|allowed| allowed.overlaps(&range)) {
            let allowed = *allowed;
            return Err(AddressSpaceError::Allowed {
                wanted: range,
                allowed,
            });
        }
        let bytes = size_of::<Window<B>>();
        self.reserved
            .try_reserve(1)
            .map_err(|_| OutOfMemory { bytes })?;
        let range = self.domain.reserve(range)?;
        self.reserved.push(Window { range, why });
        Ok(())
    }

    /// Lets `range` be used again, all of a range that was [`reserve`](Self::reserve)d.
    ///
    /// # Errors
    /// [`AddressSpaceError::NoSuchWindow`]; [`AddressSpaceError::Space`] when the domain's list of free ranges
    /// cannot grow, and it stays reserved.
    pub fn unreserve(&mut self, range: IovaRange) -> Result<(), AddressSpaceError> {
        let is = |window: &Window<B>| window.range.span() == range;
        let index = self.reserved.iter().position(is);
        let index = index.ok_or(AddressSpaceError::NoSuchWindow { wanted: range })?;
        let Window { range, why } = self.reserved.swap_remove(index);
        match range.release() {
            Ok(()) => Ok(()),
            Err((range, error)) => {
                // Where it was a moment ago.
                self.reserved.push(Window { range, why });
                Err(error.into())
            }
        }
    }

    /// Promises `range` to the guest: nothing can be reserved there from now on. Once anything is allowed,
    /// mappings have to lie in what is allowed.
    ///
    /// # Errors
    /// [`AddressSpaceError::Reserved`] when it meets a reserved range, [`AddressSpaceError::Outside`],
    /// [`AddressSpaceError::OutOfMemory`].
    pub fn allow(&mut self, range: IovaRange) -> Result<(), AddressSpaceError> {
        self.check_reserved(range)?;
        let bytes = size_of::<IovaRange>();
        self.allowed
            .try_reserve(1)
            .map_err(|_| OutOfMemory { bytes })?;
        self.allowed.push(range);
        Ok(())
    }

    /// Takes back what [`allow`](Self::allow) promised. What is mapped stays.
    ///
    /// # Errors
    /// [`AddressSpaceError::NoSuchWindow`].
    pub fn disallow(&mut self, range: IovaRange) -> Result<(), AddressSpaceError> {
        let index = self.allowed.iter().position(|allowed| *allowed == range);
        let index = index.ok_or(AddressSpaceError::NoSuchWindow { wanted: range })?;
        self.allowed.swap_remove(index);
        Ok(())
    }

    /// Every reserved range, and what it is reserved for. Those for hardware are where the guest's own addresses must have
    /// no memory: a device's interrupt messages go there, some through the domain.
    pub fn reserved(&self) -> impl Iterator<Item = (IovaRange, ReservedFor)> {
        let hardware = self.domain.core.system.backend.reserved().iter().copied();
        let doorbells = self.domain.held.pinned.iter().map(PinnedRegion::range);
        let hardware = hardware.chain(doorbells);
        let hardware = hardware.map(|range| (range, ReservedFor::Hardware));
        let windows = self.reserved.iter();
        hardware.chain(windows.map(|window| (window.range.span(), window.why)))
    }

    /// Whether a mapping may lie there.
    pub(super) fn check_place(&mut self, wanted: IovaRange) -> Result<(), AddressSpaceError> {
        self.check_free(wanted)?;
        if !self.allowed.is_empty() && !self.allowed.iter().any(|range| range.covers(&wanted)) {
            return Err(AddressSpaceError::NotAllowed { wanted });
        }
        Ok(())
    }

    /// Whether nothing is reserved, mapped or pending there.
    fn check_free(&mut self, wanted: IovaRange) -> Result<(), AddressSpaceError> {
        self.check_reserved(wanted)?;
        self.areas.settle_vacant();
        let index = self.areas.meeting(wanted).next();
        match index.and_then(|index| self.areas.get(index)) {
            None => Ok(()),
            Some(area) if area.is_mapped() => Err(AddressSpaceError::Overlap {
                wanted,
                taken: area.span,
            }),
            Some(area) if area.is_pending() => Err(AddressSpaceError::Pending {
                wanted,
                pending: area.span,
            }),
            // Free, but the domain could not take it back.
            Some(_) => Err(OutOfMemory {
                bytes: size_of::<IovaRange>(),
            }
            .into()),
        }
    }

    fn check_reserved(&self, wanted: IovaRange) -> Result<(), AddressSpaceError> {
        let whole = crate::request::whole_space(self.domain.core.caps.last);
        if let Ok(whole) = whole
            && !whole.covers(&wanted)
        {
            return Err(AddressSpaceError::Outside { wanted, whole });
        }
        match self.reserved().find(|(range, _)| range.overlaps(&wanted)) {
            Some((by, why)) => Err(AddressSpaceError::Reserved { wanted, by, why }),
            None => Ok(()),
        }
    }
}
