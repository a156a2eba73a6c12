//! Shared ranges: one range of a domain that several CPUs map single pages in.

#![expect(
    unsafe_code,
    reason = "takes a frame back that a table entry was the record of"
)]

use core::fmt;

use hv_core::{
    FrameRun, Iova, IovaRange, OutOfMemory, Owner, PageCount, PageSize, Perms, PhysAddr, PhysRange,
    Shared,
};
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::dirty::DirtyBitmap;
use crate::flush::{FlushError, Need, Receipt};
use crate::pending::RedeemRefusal;
use crate::range::{Free, MapRefusal, Range, check_frames};
use crate::table::TableError;

/// A handle to a range that several users map pages in at once. Clones lead to the same range.
///
/// Each page goes in and out by compare-and-swap: who comes second is told of the overlap and gets
/// the frames back. For whole runs, an exclusive [`Range`] is cheaper.
#[must_use = "a dropped range is lost to its domain"]
pub struct SharedRange<O: Owner, B: Backend> {
    range: Shared<Range<O, B, Free>>,
}

impl<O: Owner, B: Backend> Clone for SharedRange<O, B> {
    fn clone(&self) -> Self {
        Self {
            range: self.range.clone(),
        }
    }
}

/// Why a page of a shared range was neither mapped nor unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SharedError {
    /// The page is not in the range.
    #[error("a page of {size} at {at} is not in {range}, or not aligned")]
    Outside {
        /// Where it was asked for.
        at: Iova,
        /// How large.
        size: PageSize,
        /// The range.
        range: IovaRange,
    },
    /// Frames or table refuse.
    #[error(transparent)]
    Refused(#[from] MapRefusal),
    /// The page is mapped, but a unit that must be told did not take that: it is wedged, or was busy.
    #[error(transparent)]
    NotVisible(#[from] FlushError),
}

/// A page that was not mapped, or is mapped and not visible, and why.
pub struct SharedMapError<O: Owner> {
    /// The frames; `None` when they are mapped and only not visible.
    pub frames: Option<FrameRun<O::Memory>>,
    /// Why.
    pub reason: SharedError,
}

impl<O: Owner> SharedMapError<O> {
    fn refused(frames: FrameRun<O::Memory>, reason: SharedError) -> Self {
        let frames = Some(frames);
        Self { frames, reason }
    }
}

impl<O: Owner> fmt::Display for SharedMapError<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.reason, f)
    }
}

impl<O: Owner> fmt::Debug for SharedMapError<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner> core::error::Error for SharedMapError<O> {}

impl<O: Owner, B: Backend> Range<O, B, Free> {
    /// Turns the range into one that several users map pages in.
    ///
    /// # Errors
    /// The range, when the heap is exhausted.
    pub fn share(self) -> Result<SharedRange<O, B>, (Self, OutOfMemory)> {
        Ok(SharedRange {
            range: Shared::try_new(self)?,
        })
    }
}

impl<O: Owner, B: Backend> SharedRange<O, B> {
    /// The addresses.
    pub fn span(&self) -> IovaRange {
        self.range.span()
    }

    /// Makes the range exclusive again.
    ///
    /// # Errors
    /// The handle, while there are others or while something in the range is mapped or pending.
    pub fn unshare(self) -> Result<Range<O, B, Free>, Self> {
        // Alone first, vacant second: another handle could map after the range was seen vacant. A sole
        // handle stays sole, since only it could be cloned and it is consumed.
        let vacant = Shared::is_sole_owner(&self.range) && {
            let core = self.range.core();
            core.table.is_vacant(&core.pin(), self.range.span())
        };
        if !vacant {
            return Err(self);
        }
        Shared::try_unwrap(self.range).map_err(|range| Self { range })
    }

    /// Maps one page at `at` to `frames`, whose length is the page's size: one that the domain's tables have.
    ///
    /// # Errors
    /// [`SharedMapError`], with the frames unless the page is mapped and only not visible.
    pub fn map(
        &self,
        at: Iova,
        frames: FrameRun<O::Memory>,
        perms: Perms,
    ) -> Result<(), SharedMapError<O>> {
        let core = self.range.core();
        let (size, page) = match self.sized_page(at, frames.pages()) {
            Ok(found) => found,
            Err(reason) => return Err(SharedMapError::refused(frames, reason)),
        };
        let fits = frames.range().start().is_aligned(size) && size <= core.caps.largest_page;
        let checked = check_frames::<O, B>(core, self.range.owner(), page.pages(), &frames);
        let refusal = match checked {
            Ok(()) if fits => None,
            Ok(()) => Some(self.outside(at, size)),
            Err(refusal) => Some(refusal.into()),
        };
        if let Some(reason) = refusal {
            return Err(SharedMapError::refused(frames, reason));
        }
        let to = frames.range().start();
        let mapped = core
            .table
            .map_shared(&core.pin(), at, to, core.granted(perms), size);
        if let Err(error) = mapped {
            let reason = MapRefusal::Table(error).into();
            return Err(SharedMapError::refused(frames, reason));
        }
        // The leaf just written is the record of this run from here on.
        frames.into_range();
        core.sync_map(page).map_err(|error| SharedMapError {
            frames: None,
            reason: error.into(),
        })
    }

    /// Takes the page of `size` at `at` out of reach for walks from now on.
    ///
    /// # Errors
    /// [`SharedError`] when no such page is mapped, also when another user was faster.
    pub fn unmap(&self, at: Iova, size: PageSize) -> Result<PendingPage<'_, O, B>, SharedError> {
        let page = self.page(at, size)?;
        let core = self.range.core();
        let unmapped = core.table.unmap_shared(&core.pin(), at, size);
        let to = unmapped.map_err(MapRefusal::Table)?;
        Ok(PendingPage {
            range: &self.range,
            page,
            size,
            to,
            need: Need {
                sequence: core.note_unmap(),
                span: page,
                depth: FlushDepth::Leaves,
            },
        })
    }

    fn page(&self, at: Iova, size: PageSize) -> Result<IovaRange, SharedError> {
        let inside = IovaRange::new(at, PageCount::of(size))
            .ok()
            .filter(|page| at.is_aligned(size) && self.span().covers(page));
        inside.ok_or(self.outside(at, size))
    }

    /// The page at `at` that is `pages` long, if that is a page size.
    fn sized_page(&self, at: Iova, pages: PageCount) -> Result<(PageSize, IovaRange), SharedError> {
        let size = PageSize::ALL
            .into_iter()
            .find(|size| PageCount::of(*size) == pages);
        let size = size.ok_or(self.outside(at, PageSize::Size4K))?;
        Ok((size, self.page(at, size)?))
    }

    fn outside(&self, at: Iova, size: PageSize) -> SharedError {
        let range = self.span();
        SharedError::Outside { at, size, range }
    }
}

/// A page of a shared range that was unmapped and that hardware may still have cached. A receipt
/// opens it. Dropping or forgetting it is safe: the entry keeps naming the frames until the end of
/// the domain.
#[must_use = "the frames come back only with a receipt"]
pub struct PendingPage<'r, O: Owner, B: Backend> {
    range: &'r Range<O, B, Free>,
    page: IovaRange,
    size: PageSize,
    to: PhysAddr,
    need: Need,
}

/// The frames of a page, and whether a device wrote them.
type Opened<O> = (FrameRun<<O as Owner>::Memory>, bool);

impl<O: Owner, B: Backend> PendingPage<'_, O, B> {
    /// Opens the value: the page's place is empty again, and the frames come back. Where units note what devices
    /// write, it is forgotten: [`redeem_noting`](Self::redeem_noting) tells.
    ///
    /// # Errors
    /// This value, when the receipt does not cover it.
    pub fn redeem(self, receipt: &Receipt) -> Result<FrameRun<O::Memory>, (Self, RedeemRefusal)> {
        self.open(receipt).map(|(frames, _)| frames)
    }

    /// As [`redeem`](Self::redeem), and marks the page if a device wrote it since that was last cleared.
    ///
    /// # Errors
    /// As for [`redeem`](Self::redeem), and [`RedeemRefusal::BitmapTooSmall`] when the bitmap does not cover the
    /// page; nothing was marked then.
    pub fn redeem_noting(
        self,
        receipt: &Receipt,
        bitmap: &mut DirtyBitmap<'_>,
    ) -> Result<FrameRun<O::Memory>, (Self, RedeemRefusal)> {
        let range = self.page;
        if !bitmap.range().covers(&range) {
            let bitmap = bitmap.range();
            return Err((self, RedeemRefusal::BitmapTooSmall { range, bitmap }));
        }
        let (frames, written) = self.open(receipt)?;
        if written {
            bitmap.mark(range);
        }
        Ok(frames)
    }

    /// Empties the entry. The frames, and whether a device wrote them.
    fn open(self, receipt: &Receipt) -> Result<Opened<O>, (Self, RedeemRefusal)> {
        let core = self.range.core();
        if let Err(reason) = receipt.meets(core.uid, &self.need) {
            return Err((self, reason));
        }
        let not_mapped = TableError::NotMapped {
            at: self.page.start(),
        };
        let Ok(frames) = PhysRange::new(self.to, self.page.pages()) else {
            return Err((self, not_mapped.into()));
        };
        let redeemed = core
            .table
            .redeem_shared(&core.pin(), self.page.start(), self.to, self.size);
        let written = match redeemed {
            Ok(written) => written,
            Err(error) => return Err((self, error.into())),
        };
        // SAFETY: the entry was the record of a run of this owner, and was emptied just now by the
        // holder of the one pending value for it. The receipt proves that no device reaches the
        // frames any more.
        let frames = unsafe { FrameRun::from_raw(frames, self.range.owner()) };
        Ok((frames, written))
    }

    /// Flushes just this page and opens the value.
    ///
    /// # Errors
    /// This value, when the flush failed.
    pub fn flush(self) -> Result<FrameRun<O::Memory>, (Self, RedeemRefusal)> {
        let core = self.range.core();
        let flushed = core.flush(FlushSpan::Pages(self.page), self.need.depth);
        let redeemed = match flushed {
            Ok(receipt) => self.redeem(&receipt),
            Err(error) => Err((self, error.into())),
        };
        core.assist_reclaim();
        redeemed
    }
}

impl<O: Owner, B: Backend> fmt::Debug for PendingPage<'_, O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending page {} of {}", self.page, self.range.domain())
    }
}

impl<O: Owner, B: Backend> fmt::Debug for SharedRange<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shared {:?}", *self.range)
    }
}
