//! Mapping guest memory, cutting mappings in two, and copying them.

use hv_core::{
    FrameRun, GpaRange, Guest, GuestMemory, Iova, IovaRange, PageCount, Perms, UserManaged,
};

use super::areas::{Area, State};
use super::{AddressSpace, AddressSpaceError, MappingKind, SpaceMapping, gpa_after};
use crate::backend::Backend;
use crate::range::MapError;
use crate::resize::CutError;
use crate::shape::Pages;

/// The most tables that cutting one mapping takes: one for each page size above the smallest.
const TABLES_OF_A_CUT: u64 = 2;

impl MappingKind {
    pub(super) fn pin(
        self,
        memory: &GuestMemory,
        gpa: GpaRange,
    ) -> Result<FrameRun<Guest>, AddressSpaceError> {
        Ok(match self {
            Self::Memory => memory.pin(gpa)?,
            Self::Registers => memory.pin_registers(gpa)?,
        })
    }
}

/// Gives back a pin that was just taken from this memory, or out of a mapping of it.
pub(super) fn unpin(memory: &GuestMemory, run: FrameRun<Guest>) {
    if let Err((run, error)) = memory.unpin(run) {
        // The caller passes the memory of one guest today and another one of the same guest tomorrow: the pin
        // stays with the memory that it is of.
        log::error!("{run:?} is lost: {error}");
    }
}

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// Maps `gpa`, which lies in one slot of the guest's memory, at `at`, with the largest pages that fit.
    ///
    /// # Errors
    /// [`AddressSpaceError`]; nothing was changed, but for [`AddressSpaceError::Unit`] of a unit that has to be told
    /// of new mappings and does not answer: what was mapped may be pending then.
    pub fn map(
        &mut self,
        memory: &GuestMemory,
        at: Iova,
        gpa: GpaRange,
        perms: Perms,
    ) -> Result<SpaceMapping, AddressSpaceError> {
        self.map_kind(memory, at, gpa, perms, MappingKind::Memory)
    }

    /// Maps the device registers that the guest has at `gpa`: requests from peer to peer.
    /// [`revoke`](Self::revoke) takes them out before the registers' function stops to decode them.
    ///
    /// # Errors
    /// As for [`map`](Self::map).
    pub fn map_registers(
        &mut self,
        memory: &GuestMemory,
        at: Iova,
        gpa: GpaRange,
        perms: Perms,
    ) -> Result<SpaceMapping, AddressSpaceError> {
        self.map_kind(memory, at, gpa, perms, MappingKind::Registers)
    }

    pub(crate) fn map_kind(
        &mut self,
        memory: &GuestMemory,
        at: Iova,
        gpa: GpaRange,
        perms: Perms,
        kind: MappingKind,
    ) -> Result<SpaceMapping, AddressSpaceError> {
        self.check_memory(memory)?;
        let span = IovaRange::new(at, gpa.pages())?;
        self.check_place(span)?;
        self.areas.reserve(1)?;
        let run = kind.pin(memory, gpa)?;
        let needed = self.most_tables(span, run.range().start());
        if let Err(error) = self.charge(needed, 1) {
            unpin(memory, run);
            return Err(error);
        }
        let mapped = self.map_run(memory, span, gpa, run, perms, kind);
        self.settle();
        mapped
    }

    fn map_run(
        &mut self,
        memory: &GuestMemory,
        span: IovaRange,
        gpa: GpaRange,
        run: FrameRun<Guest>,
        perms: Perms,
        kind: MappingKind,
    ) -> Result<SpaceMapping, AddressSpaceError> {
        let range = match self.domain.reserve(span) {
            Ok(range) => range,
            Err(error) => {
                unpin(memory, run);
                return Err(error.into());
            }
        };
        let area = |perms, state| Area {
            span,
            gpa: gpa.start(),
            perms,
            kind,
            slot: None,
            state,
        };
        match range.map(run, perms) {
            Ok(range) => {
                let perms = range.granted();
                self.areas.insert(area(perms, State::Mapped(range)));
                Ok(SpaceMapping {
                    span,
                    gpa,
                    perms,
                    kind,
                })
            }
            Err(MapError::Refused {
                range,
                frames,
                reason,
            }) => {
                unpin(memory, frames);
                if let Err((range, _)) = range.release() {
                    self.areas.insert(area(perms, State::Vacant(range)));
                }
                Err(reason.into())
            }
            Err(MapError::NotVisible { range, reason }) => {
                let index = self.areas.insert(area(perms, State::Mapped(range)));
                let begun = self.begin(index..index + 1, |_| true);
                self.call_back(memory, begun);
                Err(reason.into())
            }
        }
    }

    /// Cuts the mapping that `at` lies in, in two. Large pages that the cut goes through become smaller ones without
    /// a moment in which a device faults.
    ///
    /// # Errors
    /// [`AddressSpaceError::NotMapped`], [`AddressSpaceError::BeginsThere`],
    /// [`AddressSpaceError::TooManyMappings`], [`AddressSpaceError::Quota`], [`AddressSpaceError::Cut`] where a unit cannot follow a change of page size,
    /// [`AddressSpaceError::Range`] when `at` is not the begin of a page. Nothing was changed then, but perhaps the
    /// sizes of pages.
    pub fn split(&mut self, at: Iova) -> Result<(), AddressSpaceError> {
        let wanted = IovaRange::new(at, PageCount::ONE)?;
        let not_mapped = AddressSpaceError::NotMapped { wanted };
        let index = self.areas.with(at).ok_or(not_mapped)?;
        let area = self.areas.get(index).filter(|area| area.is_mapped());
        let area = area.ok_or(not_mapped)?;
        let (offset, gpa) = (at.as_u64() - area.span.start().as_u64(), area.gpa);
        let (perms, kind) = (area.perms, area.kind);
        let begins = AddressSpaceError::BeginsThere { at };
        let pages = PageCount::for_bytes(offset).ok_or(begins)?;
        self.areas.reserve(1)?;
        self.charge(TABLES_OF_A_CUT, 1)?;
        let Some(area) = self.areas.get_mut(index) else {
            return Err(not_mapped);
        };
        let state = area.take();
        let State::Mapped(range) = state else {
            area.state = state;
            self.settle();
            return Err(not_mapped);
        };
        let cut = match range.split_at(pages) {
            Ok(parts) => Ok(parts),
            Err(range) => range.split_large_at(pages),
        };
        let result = match cut {
            Ok((low, high)) => {
                area.span = low.span();
                area.state = State::Mapped(low);
                self.areas.insert(Area {
                    span: high.span(),
                    gpa: gpa_after(gpa, offset),
                    perms,
                    kind,
                    slot: None,
                    state: State::Mapped(high),
                });
                Ok(())
            }
            Err(CutError::Refused { range, reason }) => {
                area.state = State::Mapped(range);
                Err(reason.into())
            }
            Err(CutError::Pending(error)) => {
                area.state = State::Pending(error.pending);
                Err(error.reason.into())
            }
            // Only a cut with a gap maps again. The entries of the table remain the record.
            Err(CutError::Unmapped { .. }) => {
                self.areas.sweep(index..index + 1);
                Err(not_mapped)
            }
        };
        self.settle();
        result
    }

    /// Maps what `from` maps in `source`, which has to lie inside of one mapping there, at `at` here too. Each mapping
    /// holds its own pin.
    ///
    /// # Errors
    /// [`AddressSpaceError::ForeignMemory`] when the source is another guest's, [`AddressSpaceError::NotMapped`] or
    /// [`AddressSpaceError::Cuts`] when `from` is not inside of one mapping,
    /// [`AddressSpaceError::Widens`], and as for [`map`](Self::map).
    pub fn copy_from<T: Pages<UserManaged, B>>(
        &mut self,
        memory: &GuestMemory,
        source: &AddressSpace<B, T>,
        from: IovaRange,
        at: Iova,
        perms: Perms,
    ) -> Result<SpaceMapping, AddressSpaceError> {
        self.check_owner(source.vm())?;
        let (gpa, kind) = source.source_of(from, perms)?;
        self.map_kind(memory, at, gpa, perms, kind)
    }

    /// As [`copy_from`](Self::copy_from), within the space.
    ///
    /// # Errors
    /// As for [`copy_from`](Self::copy_from).
    pub fn copy_within(
        &mut self,
        memory: &GuestMemory,
        from: IovaRange,
        at: Iova,
        perms: Perms,
    ) -> Result<SpaceMapping, AddressSpaceError> {
        let (gpa, kind) = self.source_of(from, perms)?;
        self.map_kind(memory, at, gpa, perms, kind)
    }

    /// What of the guest is mapped at `from`.
    pub(crate) fn source_of(
        &self,
        from: IovaRange,
        perms: Perms,
    ) -> Result<(GpaRange, MappingKind), AddressSpaceError> {
        let found = self.find(from.start());
        let found = found.ok_or(AddressSpaceError::NotMapped { wanted: from })?;
        if !found.span.covers(&from) {
            return Err(AddressSpaceError::Cuts {
                wanted: from,
                mapping: found.span,
            });
        }
        let widens = (perms.readable() && !found.perms.readable())
            || (perms.writable() && !found.perms.writable());
        if widens {
            return Err(AddressSpaceError::Widens {
                found: found.perms,
                wanted: perms,
            });
        }
        let offset = from.start().as_u64() - found.span.start().as_u64();
        let gpa = GpaRange::new(gpa_after(found.gpa.start(), offset), from.pages())?;
        Ok((gpa, found.kind))
    }
}
