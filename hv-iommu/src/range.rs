//! Range tokens: exclusive ownership of addresses of one domain, mapped or free.

#![expect(
    unsafe_code,
    reason = "takes frames back that a table entry was the record of"
)]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::{
    FrameOwner, FrameRun, IovaRange, Owner, OwnerId, PageCount, PageSize, Perms, PhysRange, Shared,
};
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::domain::{DomainCore, DomainUid};
use crate::flush::{FlushError, Receipt};
use crate::iova::SpaceError;
use crate::table::TableError;

/// State of a [`Range`]: nothing is mapped in it.
#[derive(Debug)]
pub struct Free(pub(crate) ());

/// State of a [`Range`]: all of it is mapped, to one contiguous run of frames.
#[derive(Debug)]
pub struct Mapped {
    granted: Perms,
}

/// Exclusive ownership of a range of one domain's addresses.
///
/// It carries its domain, so it cannot be used on another. Neither copyable nor cloneable: it goes
/// from [`Free`] to [`Mapped`] with the frames that are mapped, and back through a
/// [`PendingUnmap`] and a receipt. A dropped range is lost to its domain until the domain ends.
///
/// # Invariants
/// No two live ranges or pending values of a domain overlap. The table's words under a free range
/// are empty; under a mapped one they are leaves that name one run of frames of the owner.
#[must_use = "a dropped range is lost to its domain"]
pub struct Range<O: Owner, B: Backend, S> {
    core: Shared<DomainCore<B>>,
    owner: O::Id,
    span: IovaRange,
    state: S,
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

    fn into_state<T>(self, state: T) -> Range<O, B, T> {
        Range::new(self.core, self.owner, self.span, state)
    }

    fn cut(self, pages: PageCount, left: S, right: S) -> Result<(Self, Self), Self> {
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
        self.map_with(frames, perms, PageSize::Size1G)
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
        self.into_state(Free(())).map_free(frames, perms, largest)
    }
}

impl<O: Owner, B: Backend> Range<O, B, Free> {
    fn map_free(
        self,
        frames: FrameRun<O::Memory>,
        perms: Perms,
        largest: PageSize,
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
        let mapped = self
            .core
            .table
            .map(&self.core.pin(), self.span, to, granted, largest);
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
        let range = self.into_state(Mapped { granted });
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
    /// The range, when the list of free ranges cannot grow.
    pub fn release(self) -> Result<(), (Self, SpaceError)> {
        let released = self.core.space.lock().release(self.span);
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
    /// The range, when either part would be empty or the cut would go through a large page.
    pub fn split_at(self, pages: PageCount) -> Result<(Self, Self), Self> {
        let Some(middle) = self.span.page(pages.get()) else {
            return Err(self);
        };
        if !self.core.table.is_leaf_boundary(&self.core.pin(), middle) {
            return Err(self);
        }
        let granted = self.state.granted;
        self.cut(pages, Mapped { granted }, Mapped { granted })
    }

    /// Makes the range unreachable for walks from now on. What is cached goes with the flush that
    /// the pending value asks for.
    pub fn unmap(self) -> PendingUnmap<O, B> {
        self.core.table.unmap(&self.core.pin(), self.span);
        let sequence = self.core.note_unmap();
        PendingUnmap {
            range: self.into_state(Unmapped(())),
            sequence,
        }
    }
}

/// State of the range inside a [`PendingUnmap`].
struct Unmapped(());

/// A range that was unmapped and that hardware may still have cached. Holds the range and, through
/// the table's entries, the frames; a receipt opens it.
///
/// Dropping or forgetting it is safe: the entries keep naming the frames, the range stays taken,
/// and the end of the domain gives the frames back.
#[must_use = "frames and range come back only with a receipt"]
pub struct PendingUnmap<O: Owner, B: Backend> {
    range: Range<O, B, Unmapped>,
    /// A receipt opens this if its flush has this number or a later one.
    sequence: u64,
}

/// Why a pending value stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RedeemRefusal {
    /// The receipt is of another domain.
    #[error("the receipt is of {found}, the range of {expected}")]
    OtherDomain {
        /// The range's domain.
        expected: DomainUid,
        /// The receipt's.
        found: DomainUid,
    },
    /// The flush was asked for before the unmap.
    #[error("the receipt is of flush {found}, the unmap needs flush {needed} or later")]
    TooOld {
        /// The first flush that serves.
        needed: u64,
        /// The receipt's flush.
        found: u64,
    },
    /// The flush did not cover the range.
    #[error("the flush did not cover all of {range}")]
    NotCovered {
        /// The range.
        range: IovaRange,
    },
    /// The flush failed.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// The entries are not as the unmap left them.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A pending value that could not be opened, and why.
pub struct RedeemError<O: Owner, B: Backend> {
    /// The pending value, unchanged.
    pub pending: PendingUnmap<O, B>,
    /// Why.
    pub reason: RedeemRefusal,
}

impl<O: Owner, B: Backend> fmt::Display for RedeemError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} stays pending: {}",
            self.pending.range.span, self.reason
        )
    }
}

impl<O: Owner, B: Backend> fmt::Debug for RedeemError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend> core::error::Error for RedeemError<O, B> {}

impl<O: Owner, B: Backend> PendingUnmap<O, B> {
    /// The addresses.
    pub fn span(&self) -> IovaRange {
        self.range.span
    }

    /// Opens the value: the range is free again, and the frames come back.
    ///
    /// # Errors
    /// [`RedeemError`] with this value, when the receipt does not cover it.
    pub fn redeem(self, receipt: &Receipt) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        if let Err(reason) = receipt.opens(self.range.core.uid, self.sequence, &self.range.span) {
            return Err(RedeemError {
                pending: self,
                reason,
            });
        }
        let redeemed = {
            let core = &self.range.core;
            core.table.redeem(&core.pin(), self.range.span)
        };
        let frames = match redeemed {
            Ok(start) => {
                let further = u64::from(Fault::RedeemWrongRange.is_on()) * PageSize::Size4K.bytes();
                let start = start.checked_add(further).unwrap_or(start);
                PhysRange::new(start, self.range.span.pages())
            }
            Err(error) => {
                let reason = error.into();
                return Err(RedeemError {
                    pending: self,
                    reason,
                });
            }
        };
        let Ok(frames) = frames else {
            // The entries named page-aligned frames when they were written.
            let reason = TableError::NotMapped {
                at: self.range.span.start(),
            }
            .into();
            return Err(RedeemError {
                pending: self,
                reason,
            });
        };
        // SAFETY: the entries under this range were the record of a run of `owner` that moved into
        // the mapping; they were emptied just now, by the one owner of the range, so this run is
        // the only one. The receipt proves that no device reaches the frames any more.
        let mut frames = unsafe { FrameRun::from_raw(frames, self.range.owner) };
        if Fault::LoseLastFrame.is_on()
            && let Some(all_but_one) = PageCount::new(frames.pages().get() - 1)
        {
            frames = frames
                .split_at(all_but_one)
                .map_or_else(|error| error.run, |(most, _lost)| most);
        }
        Ok((self.range.into_state(Free(())), frames))
    }

    /// Flushes just this range and opens the value.
    ///
    /// # Errors
    /// [`RedeemError`] with this value, when the flush failed.
    pub fn flush(self) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        // Only leaves went from present to not present, and no table was taken away.
        let flushed = self
            .range
            .core
            .flush(FlushSpan::Pages(self.range.span), FlushDepth::Leaves);
        match flushed {
            Ok(receipt) => self.redeem(&receipt),
            Err(error) => Err(RedeemError {
                pending: self,
                reason: error.into(),
            }),
        }
    }
}

/// What a receipt gives back: the range, free, and the frames.
pub type Redeemed<O, B> = (Range<O, B, Free>, FrameRun<<O as Owner>::Memory>);

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

impl<O: Owner, B: Backend> fmt::Debug for PendingUnmap<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending {} of {}", self.range.span, self.range.core.uid)
    }
}
