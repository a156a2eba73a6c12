//! The hypervisor's view through a guest's mappings: bytes, and which pages devices wrote.

use hv_core::platform::PhysMemory;
use hv_core::{GuestMemory, Iova, IovaRange, PageCount, PageSize, UserManaged};

use super::{AddressSpace, AddressSpaceError, SpaceMapping, gpa_after};
use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::format::Level;
use crate::shape::Pages;

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// Copies bytes out of guest memory, as a device would read them at `at`.
    ///
    /// # Errors
    /// [`AddressSpaceError::NotMapped`], [`AddressSpaceError::NotPermitted`] or [`AddressSpaceError::Memory`];
    /// what comes before the first such place was copied.
    pub fn read<M: PhysMemory>(
        &self,
        memory: &GuestMemory,
        platform: &M,
        at: Iova,
        out: &mut [u8],
    ) -> Result<(), AddressSpaceError> {
        self.check_memory(memory)?;
        let mut rest = out;
        let mut at = at;
        while !rest.is_empty() {
            let found = self.mapping_at(at)?;
            if !found.perms.readable() {
                return Err(found.not_permitted());
            }
            let (piece, more) = rest.split_at_mut(found.bytes_from(at, rest.len()));
            memory.read(platform, found.gpa_of(at), piece)?;
            at = behind(at, piece.len());
            rest = more;
        }
        Ok(())
    }

    /// Copies bytes into guest memory, as a device would write them at `at`.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn write<M: PhysMemory>(
        &self,
        memory: &GuestMemory,
        platform: &M,
        at: Iova,
        bytes: &[u8],
    ) -> Result<(), AddressSpaceError> {
        self.check_memory(memory)?;
        let mut rest = bytes;
        let mut at = at;
        while !rest.is_empty() {
            let found = self.mapping_at(at)?;
            if !found.perms.writable() {
                return Err(found.not_permitted());
            }
            let (piece, more) = rest.split_at(found.bytes_from(at, rest.len()));
            memory.write(platform, found.gpa_of(at), piece)?;
            at = behind(at, piece.len());
            rest = more;
        }
        Ok(())
    }

    /// Shows every page in `range`, of whatever size, that a device wrote since that was last cleared: a doorbell too, which
    /// is no memory of the guest's, once a device has sent a message. Holds the domain's tables for bounded steps only.
    ///
    /// What is unmapped is not shown: [`finish_noting`](Self::finish_noting) tells of it.
    ///
    /// # Errors
    /// [`AddressSpaceError::NoDirtyTracking`] where the domain does not note it.
    pub fn dirty(
        &self,
        range: IovaRange,
        mut show: impl FnMut(Iova, Level),
    ) -> Result<(), AddressSpaceError> {
        self.check_dirty()?;
        let core = &self.domain.core;
        core.take_merged_bits(range)?;
        core.show_written(range, false, &mut show);
        Ok(())
    }

    /// As [`dirty`](Self::dirty), and forgets it: when this returns, what devices write is noted again.
    ///
    /// # Errors
    /// [`AddressSpaceError::NoDirtyTracking`]; [`AddressSpaceError::Cuts`] when a large page is only partly in the
    /// range, since what was written of its rest would be forgotten with it: [`split`](Self::split) it, or ask for
    /// all of it. [`AddressSpaceError::Unit`] when a unit did not complete the flush, after
    /// the pages were shown: devices may write without that being noted again until a flush of the range works.
    pub fn dirty_and_clear(
        &mut self,
        range: IovaRange,
        mut show: impl FnMut(Iova, Level),
    ) -> Result<(), AddressSpaceError> {
        self.check_dirty()?;
        let core = &self.domain.core;
        let behind = range.last().checked_add(1);
        for border in [Some(range.start()), behind].into_iter().flatten() {
            if !core.table.is_leaf_boundary(&core.pin(), border) {
                let mapping = self.mapping_at(border)?.span;
                return Err(AddressSpaceError::Cuts {
                    wanted: range,
                    mapping,
                });
            }
        }
        core.take_merged_bits(range)?;
        core.show_written(range, true, &mut show);
        let _ = core.flush(FlushSpan::Pages(range), FlushDepth::Leaves)?;
        Ok(())
    }

    pub(super) fn check_dirty(&self) -> Result<(), AddressSpaceError> {
        match self.domain.geometry().dirty {
            true => Ok(()),
            false => Err(AddressSpaceError::NoDirtyTracking),
        }
    }

    fn mapping_at(&self, at: Iova) -> Result<SpaceMapping, AddressSpaceError> {
        let page = IovaRange::new(at.align_down(PageSize::Size4K), PageCount::ONE)?;
        self.find(at)
            .ok_or(AddressSpaceError::NotMapped { wanted: page })
    }
}

impl SpaceMapping {
    fn offset(&self, at: Iova) -> u64 {
        at.as_u64().saturating_sub(self.span.start().as_u64())
    }

    fn gpa_of(&self, at: Iova) -> hv_core::Gpa {
        gpa_after(self.gpa.start(), self.offset(at))
    }

    /// How many of `wanted` bytes from `at` on lie in the mapping: at least one.
    fn bytes_from(&self, at: Iova, wanted: usize) -> usize {
        let left = self.span.pages().bytes().saturating_sub(self.offset(at));
        usize::try_from(left).unwrap_or(usize::MAX).clamp(1, wanted)
    }

    fn not_permitted(&self) -> AddressSpaceError {
        AddressSpaceError::NotPermitted {
            at: self.span,
            found: self.perms,
        }
    }
}

/// The address behind these bytes. Where the space ends no mapping goes on, which the next look finds.
fn behind(at: Iova, bytes: usize) -> Iova {
    Iova::new(at.as_u64().wrapping_add(bytes as u64))
}
