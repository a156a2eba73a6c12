//! Range tokens: exclusive ownership of addresses of one domain, mapped or free.

#![expect(
    unsafe_code,
    reason = "tells the table that the words under a free range are empty"
)]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::{
    FrameOwner, FrameRun, Hypervisor, IovaRange, Owner, OwnerId, PageCount, PageSize, Perms,
    PhysAddr, PhysRange, Shared,
};
use thiserror::Error;

use crate::backend::Backend;
use crate::domain::{DomainCore, DomainUid};
use crate::flush::{FlushError, Need};
use crate::iova::SpaceError;
use crate::pending::{PendingUnmap, Seal};
use crate::table::{Spares, TableError};

/// State of a [`Range`]: nothing is mapped in it.
#[derive(Debug)]
pub struct Free(pub(crate) ());

/// State of a [`Range`]: all of it is mapped, to one contiguous run of frames.
#[derive(Debug)]
pub struct Mapped {
    pub(crate) granted: Perms,
    /// The first of the frames.
    pub(crate) to: PhysAddr,
    /// What devices may still use of an earlier page size or permission, until a flush: a debt that
    /// the unmap inherits.
    pub(crate) debt: Option<Need>,
}

/// Exclusive ownership of a range of one domain's addresses.
///
/// It carries its domain, so it cannot be used on another. Neither copyable nor cloneable: it goes
/// from [`Free`] to [`Mapped`] with the frames that are mapped, and back through a
/// [`PendingUnmap`] and a receipt. A dropped range is lost to its domain until the domain ends.
///
/// # Invariants
/// No two live ranges or pending values of a domain overlap. No leaf and nothing pending stands in the
/// table under a free range, unless it was shared; a mapped one has leaves that name one run of frames of
/// the owner.
#[must_use = "a dropped range is lost to its domain"]
pub struct Range<O: Owner, B: Backend, S> {
    pub(crate) core: Shared<DomainCore<B>>,
    pub(crate) owner: O::Id,
    pub(crate) span: IovaRange,
    pub(crate) state: S,
}

impl<O: Owner, B: Backend, S> Range<O, B, S> {
    pub(crate) fn new(
        core: Shared<DomainCore<B>>,
        owner: O::Id,
        span: IovaRange,
        state: S,
    ) -> Self {
        // INVARIANT: callers pass a span just taken from the domain's space, or the parts of ranges
        // that they consume.
        Self {
            core,
            owner,
            span,
            state,
        }
    }

    /// The addresses.
    pub fn span(&self) -> IovaRange {
        self.span
    }

    /// The domain that they belong to.
    pub fn domain(&self) -> DomainUid {
        self.core.uid
    }

    pub(crate) fn core(&self) -> &DomainCore<B> {
        &self.core
    }

    pub(crate) fn owner(&self) -> O::Id {
        self.owner
    }

    pub(crate) fn into_state<T>(self, state: T) -> Range<O, B, T> {
        Range::new(self.core, self.owner, self.span, state)
    }

    pub(crate) fn cut(self, pages: PageCount, left: S, right: S) -> Result<(Self, Self), Self> {
        match self.span.split_at(pages) {
            Some((first, second)) => Ok((
                Self::new(self.core.clone(), self.owner, first, left),
                Self::new(self.core, self.owner, second, right),
            )),
            None => Err(self),
        }
    }
}

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapRefusal {
    /// Range and frames differ in length.
    #[error("the range has {range}, the run of frames {frames}")]
    Length {
        /// The range's length.
        range: PageCount,
        /// The run's length.
        frames: PageCount,
    },
    /// The frames belong to another guest.
    #[error("frames of {frames} cannot be mapped into a domain of {domain}")]
    ForeignFrames {
        /// Whose domain it is.
        domain: OwnerId,
        /// Whose frames they are.
        frames: OwnerId,
    },
    /// The unit cannot address the frames.
    #[error("frames {frames} are beyond the {bits} physical address bits of the unit")]
    PhysTooWide {
        /// The frames.
        frames: PhysRange,
        /// What the unit has.
        bits: u8,
    },
    /// The table refused.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// What a failed map gives back.
pub enum MapError<O: Owner, B: Backend> {
    /// Nothing was mapped.
    Refused {
        /// The range, still free.
        range: Range<O, B, Free>,
        /// The frames.
        frames: FrameRun<O::Memory>,
        /// Why.
        reason: MapRefusal,
    },
    /// The mapping is in the table, but a unit that must be told of new mappings did not take that: it
    /// is wedged, or was busy. Devices behind it may fault on the range.
    NotVisible {
        /// The range, mapped.
        range: Range<O, B, Mapped>,
        /// Why.
        reason: FlushError,
    },
}

impl<O: Owner, B: Backend> fmt::Display for MapError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { range, reason, .. } => {
                write!(f, "{} was not mapped: {reason}", range.span)
            }
            Self::NotVisible { range, reason } => {
                write!(f, "{} is mapped but not visible: {reason}", range.span)
            }
        }
    }
}

impl<O: Owner, B: Backend> fmt::Debug for MapError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend> core::error::Error for MapError<O, B> {}

/// States of a range that can be mapped: [`Free`] alone. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "a range can be mapped while it is `Free`, this one is `{Self}`",
    label = "this range holds frames already",
    note = "`unmap` it and `flush` the pending value: the free range comes back, with the frames"
)]
pub trait Mappable {}
impl Mappable for Free {}

impl<O: Owner, B: Backend, S> Range<O, B, S> {
    /// Maps the range to `frames`, with the largest pages that fit.
    ///
    /// # Errors
    /// [`MapError`], with range and frames.
    pub fn map(
        self,
        frames: FrameRun<O::Memory>,
        perms: Perms,
    ) -> Result<Range<O, B, Mapped>, MapError<O, B>>
    where
        S: Mappable,
    {
        self.map_with(frames, perms, PageSize::LARGEST)
    }

    /// Maps the range to `frames`, with pages of at most `largest`.
    ///
    /// # Errors
    /// [`MapError`], with range and frames.
    pub fn map_with(
        self,
        frames: FrameRun<O::Memory>,
        perms: Perms,
        largest: PageSize,
    ) -> Result<Range<O, B, Mapped>, MapError<O, B>>
    where
        S: Mappable,
    {
        // Nobody else can make a range of a state of their own, so `S` is `Free`.
        self.into_state(Free(()))
            .map_free(frames, perms, largest, None)
    }

    /// Maps the range to `frames`, with pages of at most `largest`; what tables it takes comes from
    /// `tables` first, and from the platform only for the rest.
    ///
    /// # Errors
    /// [`MapError`], with range and frames.
    pub fn map_from(
        self,
        frames: FrameRun<O::Memory>,
        perms: Perms,
        largest: PageSize,
        tables: &mut TableFrames<'_, B>,
    ) -> Result<Range<O, B, Mapped>, MapError<O, B>>
    where
        S: Mappable,
    {
        self.into_state(Free(()))
            .map_free(frames, perms, largest, Some(tables))
    }
}

impl<O: Owner, B: Backend> Range<O, B, Free> {
    fn map_free(
        self,
        frames: FrameRun<O::Memory>,
        perms: Perms,
        largest: PageSize,
        tables: Option<&mut TableFrames<'_, B>>,
    ) -> Result<Range<O, B, Mapped>, MapError<O, B>> {
        let granted = self.core.granted(perms);
        if let Err(reason) =
            check_frames::<O, B>(&self.core, self.owner, self.span.pages(), &frames)
        {
            let range = self;
            return Err(MapError::Refused {
                range,
                frames,
                reason,
            });
        }
        let to = frames.range().start();
        let guard = self.core.pin();
        let (table, spares) = (&self.core.table, tables.map(|tables| &mut tables.spares));
        // SAFETY: by its invariant the range lies in the domain's space, which is what the table translates,
        // no leaf is under it, and nobody else makes one: it came from the domain's free
        // addresses, from a redeemed pending value, or from a shared range that was seen vacant.
        let mapped = unsafe { table.map_vacant(&guard, self.span, to, granted, largest, spares) };
        drop(guard);
        if let Err(error) = mapped {
            let range = self;
            let reason = error.into();
            return Err(MapError::Refused {
                range,
                frames,
                reason,
            });
        }
        // INVARIANT: the leaves just written are the record of this run from here on.
        frames.into_range();
        let debt = None;
        let range = self.into_state(Mapped { granted, to, debt });
        match range.core.sync_map(range.span) {
            Ok(()) => Ok(range),
            Err(reason) => Err(MapError::NotVisible { range, reason }),
        }
    }

    /// The first `pages` pages and the rest.
    ///
    /// # Errors
    /// The range, when either part would be empty.
    pub fn split_at(self, pages: PageCount) -> Result<(Self, Self), Self> {
        self.cut(pages, Free(()), Free(()))
    }

    /// One range of both, when `next` starts right behind this one in the same domain.
    ///
    /// # Errors
    /// Both ranges.
    pub fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        match self.span.join(&next.span) {
            Some(span) if Shared::ptr_eq(&self.core, &next.core) => {
                Ok(Self::new(self.core, self.owner, span, Free(())))
            }
            _ => Err((self, next)),
        }
    }

    /// Gives the addresses back to the domain.
    ///
    /// # Errors
    /// The range, when it is a piece of one that was cut, and there is no memory to note one more free range.
    pub fn release(self) -> Result<(), (Self, SpaceError)> {
        let released = self.core.release_iova(self.span);
        released.map_err(|error| (self, error))
    }
}

/// Whether these frames may be mapped into that domain.
pub(crate) fn check_frames<O: Owner, B: Backend>(
    core: &DomainCore<B>,
    owner: O::Id,
    pages: PageCount,
    frames: &FrameRun<O::Memory>,
) -> Result<(), MapRefusal> {
    if frames.pages() != pages {
        return Err(MapRefusal::Length {
            range: pages,
            frames: frames.pages(),
        });
    }
    if frames.owner() != owner {
        return Err(MapRefusal::ForeignFrames {
            domain: core.owner,
            frames: O::owner_id(frames.owner()),
        });
    }
    if !core.reaches(&frames.range()) {
        return Err(MapRefusal::PhysTooWide {
            frames: frames.range(),
            bits: core.caps.phys_bits,
        });
    }
    Ok(())
}

impl<O: Owner, B: Backend> Range<O, B, Mapped> {
    /// What devices may do with the range. Wider than what was asked for where the unit has no
    /// write-only mappings.
    pub fn granted(&self) -> Perms {
        self.state.granted
    }

    /// The first `pages` pages and the rest, both mapped as before. No entry changes.
    ///
    /// # Errors
    /// The range, when either part would be empty or the cut would go through a large page:
    /// [`split_large_at`](Self::split_large_at) then.
    pub fn split_at(self, pages: PageCount) -> Result<(Self, Self), Self> {
        let Some(middle) = self.span.page(pages.get()) else {
            return Err(self);
        };
        if !self.core.table.is_leaf_boundary(&self.core.pin(), middle) {
            return Err(self);
        }
        let (left, right) = self.state.cut(pages);
        self.cut(pages, left, right)
    }

    /// One range of both, when `next` starts right behind this one in the same domain and its frames
    /// right behind this one's, with the same permissions.
    ///
    /// # Errors
    /// Both ranges.
    pub fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        let joined = self.span.join(&next.span);
        let frames_go_on =
            self.state.to.checked_add(self.span.pages().bytes()) == Some(next.state.to);
        match joined {
            Some(span)
                if Shared::ptr_eq(&self.core, &next.core)
                    && frames_go_on
                    && self.state.granted == next.state.granted =>
            {
                let state = Mapped {
                    debt: match Fault::JoinForgetsDebt.is_on() {
                        true => self.state.debt,
                        false => owed(self.state.debt, next.state.debt),
                    },
                    ..self.state
                };
                // INVARIANT: the parts are consumed, and map one run together.
                Ok(Self::new(self.core, self.owner, span, state))
            }
            _ => Err((self, next)),
        }
    }

    /// Makes the range unreachable for walks from now on. What is cached goes with the flush that
    /// the pending value asks for.
    pub fn unmap(self) -> PendingUnmap<O, B> {
        let core = &self.core;
        let unmapped = core.table.unmap(&core.pin(), self.span);
        let seal = Seal::of_unmap(core, self.span, unmapped.tables, self.state.debt);
        PendingUnmap::new(self, seal)
    }
}

impl Mapped {
    /// The states of the first `pages` pages and of the rest.
    pub(crate) fn cut(&self, pages: PageCount) -> (Self, Self) {
        // The run of frames is as long as the range, so its address space does not end in between.
        let to = self.to.checked_add(pages.bytes()).unwrap_or(self.to);
        let part = |to, debt| Self {
            granted: self.granted,
            to,
            debt,
        };
        let rest = self.debt.filter(|_| !Fault::CutForgetsDebt.is_on());
        (part(self.to, self.debt), part(to, rest))
    }
}

/// What two debts are together.
pub(crate) fn owed(one: Option<Need>, other: Option<Need>) -> Option<Need> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.and(other)),
        (one, other) => one.or(other),
    }
}

/// Frames for the tables of a domain, taken or handed in before they are needed, so that a map does not
/// have to look for any. Dropping gives back what is left.
pub struct TableFrames<'d, B: Backend> {
    pub(crate) spares: Spares<'d, B::Platform>,
}

impl<'d, B: Backend> TableFrames<'d, B> {
    pub(crate) fn of(core: &'d DomainCore<B>) -> Self {
        let spares = core.table.spares();
        Self { spares }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.spares.count()
    }

    /// Hands frames in.
    pub fn add(&mut self, frames: FrameRun<Hypervisor>) {
        self.spares.add(frames);
    }

    /// Takes as many from the platform as are missing to have `count`.
    ///
    /// # Errors
    /// [`TableError::OutOfFrames`]; nothing was taken then.
    pub fn reserve(&mut self, count: u64) -> Result<(), TableError> {
        self.spares
            .reserve(count)
            .map_err(|missing| TableError::OutOfFrames { missing })
    }
}

impl<O: Owner, B: Backend, S> fmt::Debug for Range<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "range {} of {} ({})",
            self.span,
            self.core.uid,
            O::Memory::NAME
        )
    }
}
