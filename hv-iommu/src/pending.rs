//! Pending values: ranges that were unmapped and that hardware may still have cached.

#![expect(
    unsafe_code,
    reason = "takes frames back that a table entry was the record of"
)]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::spin_hint;
use hv_core::{FrameRun, Iova, IovaRange, Owner, PageCount, PageSize, PhysAddr, PhysRange};
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::dirty::{DirtyBitmap, leaf_at};
use crate::domain::{DomainCore, DomainUid};
use crate::flush::{FlushError, Need, Receipt};
use crate::format::Level;
use crate::quiesce::RetireEpoch;
use crate::range::{Free, Mapped, Range};
use crate::table::TableError;

/// How often a redeem tries to bring a grace period to its end by itself.
const NUDGES: usize = 3;

/// State of the range inside a [`PendingUnmap`].
struct Unmapped {
    /// The first of the frames that its entries name.
    to: PhysAddr,
}

/// A range that was unmapped and that hardware may still have cached. Holds the range and, through
/// the table's entries, the frames; a receipt opens it.
///
/// Dropping or forgetting it is safe: the entries keep naming the frames, the range stays taken,
/// and the end of the domain gives the frames back.
#[must_use = "frames and range come back only with a receipt"]
pub struct PendingUnmap<O: Owner, B: Backend> {
    range: Range<O, B, Unmapped>,
    seal: Seal,
}

/// What has to come to pass before something that was unmapped is forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal {
    /// The flush that it takes.
    pub(crate) need: Need,
    /// Where tables were detached: when every CPU that might walk in them has left.
    walkers: Option<RetireEpoch>,
}

/// A [`Seal`] without its span and without a debt, for who knows the span anyway: mappings are moved by the million.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    sequence: u64,
    walkers: Option<RetireEpoch>,
    depth: FlushDepth,
}

impl Mark {
    /// For the span that was just unmapped, with tables detached or not.
    #[inline(always)]
    pub(crate) fn of_unmap<B: Backend>(
        core: &DomainCore<B>,
        span: IovaRange,
        tables: bool,
    ) -> Self {
        let Seal { need, walkers } = Seal::of_unmap(core, span, tables, None);
        Self {
            sequence: need.sequence,
            walkers,
            depth: need.depth,
        }
    }

    /// The seal of the span that this was made of.
    #[inline(always)]
    pub(crate) fn seal(self, span: IovaRange) -> Seal {
        let need = Need {
            sequence: self.sequence,
            span,
            depth: self.depth,
        };
        let walkers = self.walkers;
        Seal { need, walkers }
    }
}

impl Seal {
    /// For `span`, which was just unmapped, with tables detached or not, and with what devices may still use
    /// of an earlier page size or permission.
    #[inline(always)]
    pub(crate) fn of_unmap<B: Backend>(
        core: &DomainCore<B>,
        span: IovaRange,
        tables: bool,
        debt: Option<Need>,
    ) -> Self {
        let depth = match tables && !Fault::DetachLeafHint.is_on() {
            true => FlushDepth::WalkCaches,
            // Only leaves went from present to not present, and no table was taken away.
            false => FlushDepth::Leaves,
        };
        let need = Need {
            sequence: core.note_unmap(),
            span,
            depth,
        };
        let need = match debt {
            Some(debt) if !Fault::DropDebt.is_on() => need.and(debt),
            _ => need,
        };
        let walkers = tables.then(|| core.system.quiescence.retire_epoch());
        Self { need, walkers }
    }

    /// What opens both: one flush for the two, and the younger of their grace periods.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            need: self.need.and(other.need),
            walkers: self.walkers.max(other.walkers),
        }
    }

    /// Whether `receipt` opens it.
    #[inline(always)]
    pub(crate) fn opens<B: Backend>(
        &self,
        core: &DomainCore<B>,
        receipt: &Receipt,
    ) -> Result<(), RedeemRefusal> {
        receipt.meets(core.uid, &self.need)?;
        match self.is_walked(core) {
            false => Ok(()),
            true => Err(RedeemRefusal::StillWalked),
        }
    }

    /// Flushes what it takes, and waits for CPUs that walk in detached tables as long as for a unit.
    pub(crate) fn flush<B: Backend>(&self, core: &DomainCore<B>) -> Result<Receipt, FlushError> {
        let receipt = core.flush(FlushSpan::Pages(self.need.span), self.need.depth)?;
        self.await_walkers(core);
        Ok(receipt)
    }

    #[inline(always)]
    fn is_walked<B: Backend>(&self, core: &DomainCore<B>) -> bool {
        if Fault::SkipDetachGrace.is_on() {
            return false;
        }
        let system = &core.system;
        self.walkers
            .is_some_and(|epoch| !(0..NUDGES).any(|_| system.has_passed(epoch)))
    }

    /// Waits until nobody walks in detached tables any more, or the time is up.
    pub(crate) fn await_walkers<B: Backend>(&self, core: &DomainCore<B>) {
        let clock = core.system.backend.platform();
        let deadline = clock.now().after(core.system.wait);
        while self.is_walked(core) && clock.now() <= deadline {
            spin_hint();
        }
    }
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
    /// The flush left walk caches alone, but tables were taken away or changed.
    #[error("the flush did not reach walk caches, which may hold tables of the range")]
    TooShallow,
    /// The bitmap for what devices wrote has no bits for part of the range.
    #[error("written pages of {range} cannot all be noted in a bitmap of {bitmap}")]
    BitmapTooSmall {
        /// The range.
        range: IovaRange,
        /// What the bitmap is of.
        bitmap: IovaRange,
    },
    /// A CPU may still walk in tables that were detached. Try again when it has left.
    #[error("a CPU is still walking the range's tables")]
    StillWalked,
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
    /// For a range whose entries were just made pending.
    pub(crate) fn new(range: Range<O, B, Mapped>, seal: Seal) -> Self {
        let to = range.state.to;
        Self {
            range: range.into_state(Unmapped { to }),
            seal,
        }
    }

    /// The addresses.
    pub fn span(&self) -> IovaRange {
        self.range.span
    }

    /// What has to be flushed for it to open. More than its addresses where page sizes or permissions
    /// were changed before.
    pub fn flush_span(&self) -> IovaRange {
        self.seal.need.span
    }

    /// What has to come to pass for it to open.
    pub(crate) fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Opens the value: the range is free again, and the frames come back. Where units note what devices write, it
    /// is forgotten: [`redeem_noting`](Self::redeem_noting) tells.
    ///
    /// # Errors
    /// [`RedeemError`] with this value, when the receipt does not cover it.
    pub fn redeem(self, receipt: &Receipt) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        self.redeem_showing(receipt, |_, _| ())
    }

    /// As [`redeem`](Self::redeem), and marks every page that a device wrote since that was last cleared: the last
    /// chance to hear of it. What was written of a large page counts for all of it.
    ///
    /// Marks nothing where the domain was not asked for with [`Needs::dirty_tracking`](crate::Needs).
    ///
    /// # Errors
    /// As for [`redeem`](Self::redeem), and [`RedeemRefusal::BitmapTooSmall`] when the bitmap does not cover the
    /// range; nothing was marked then.
    pub fn redeem_noting(
        self,
        receipt: &Receipt,
        bitmap: &mut DirtyBitmap<'_>,
    ) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        let range = self.range.span;
        if !bitmap.range().covers(&range) {
            let bitmap = bitmap.range();
            return Err(RedeemError {
                pending: self,
                reason: RedeemRefusal::BitmapTooSmall { range, bitmap },
            });
        }
        self.redeem_showing(receipt, |at, level| {
            // Leaves never reach beyond what mapped them.
            if let Some(leaf) = leaf_at::<B::Format>(at, level) {
                bitmap.mark(leaf);
            }
        })
    }

    /// As [`redeem`](Self::redeem), and shows every leaf that a device wrote through.
    pub(crate) fn redeem_showing(
        self,
        receipt: &Receipt,
        written: impl FnMut(Iova, Level),
    ) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        let (range, frames) = self.open(receipt, written)?;
        // SAFETY: the entries under this range were the record of a run of `owner` that moved into
        // the mapping; they were emptied just now, by the one owner of the range, so this run is
        // the only one. The receipt proves that no device reaches the frames any more.
        let mut frames = unsafe { FrameRun::from_raw(frames, range.owner) };
        if Fault::LoseLastFrame.is_on()
            && let Some(all_but_one) = PageCount::new(frames.pages().get() - 1)
        {
            frames = frames
                .split_at(all_but_one)
                .map_or_else(|error| error.run, |(most, _lost)| most);
        }
        Ok((range, frames))
    }

    /// Empties the entries, and says what they named.
    fn open(
        self,
        receipt: &Receipt,
        written: impl FnMut(Iova, Level),
    ) -> Result<Opened<O, B>, RedeemError<O, B>> {
        if let Err(reason) = self.seal.opens(&self.range.core, receipt) {
            return Err(RedeemError {
                pending: self,
                reason,
            });
        }
        let to = self.range.state.to;
        let redeemed = {
            let core = &self.range.core;
            // SAFETY: the receipt is of this domain's flush, on every unit that it reaches, begun after
            // the unmap, of the range, and of walk caches where tables were detached; the grace period
            // since then was just seen to be over.
            unsafe { core.table.redeem(&core.pin(), self.range.span, to, written) }
        };
        if let Err(error) = redeemed {
            let reason = error.into();
            return Err(RedeemError {
                pending: self,
                reason,
            });
        }
        let further = u64::from(Fault::RedeemWrongRange.is_on()) * PageSize::Size4K.bytes();
        let start = to.checked_add(further).unwrap_or(to);
        let frames = PhysRange::new(start, self.range.span.pages());
        let Ok(frames) = frames else {
            // The run was mapped from this very address.
            let reason = TableError::NotMapped {
                at: self.range.span.start(),
            }
            .into();
            return Err(RedeemError {
                pending: self,
                reason,
            });
        };
        Ok((self.range.into_state(Free(())), frames))
    }

    /// Flushes just this range and opens the value. Waits for CPUs that walk in detached tables as long
    /// as for a unit.
    ///
    /// # Errors
    /// [`RedeemError`] with this value, when the flush failed.
    pub fn flush(self) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        self.flush_and(Self::redeem)
    }

    /// As [`flush`](Self::flush), and marks what devices wrote as [`redeem_noting`](Self::redeem_noting).
    ///
    /// # Errors
    /// As for both.
    pub fn flush_noting(
        self,
        bitmap: &mut DirtyBitmap<'_>,
    ) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        self.flush_and(|pending, receipt| pending.redeem_noting(receipt, bitmap))
    }

    /// As [`flush`](Self::flush), and shows every leaf that a device wrote through.
    pub(crate) fn flush_showing(
        self,
        written: impl FnMut(Iova, Level),
    ) -> Result<Redeemed<O, B>, RedeemError<O, B>> {
        self.flush_and(|pending, receipt| pending.redeem_showing(receipt, written))
    }

    /// As [`flush`](Self::flush), where the entries named no frames of the owner.
    pub(crate) fn flush_open(self) -> Result<(), RedeemError<O, B>> {
        self.flush_and(|pending, receipt| pending.open(receipt, |_, _| ()))
            .map(drop)
    }

    fn flush_and<T>(
        self,
        open: impl FnOnce(Self, &Receipt) -> Result<T, RedeemError<O, B>>,
    ) -> Result<T, RedeemError<O, B>> {
        let core = self.range.core.clone();
        let redeemed = match self.seal.flush(&core) {
            Ok(receipt) => open(self, &receipt),
            Err(error) => Err(RedeemError {
                pending: self,
                reason: error.into(),
            }),
        };
        core.assist_reclaim();
        redeemed
    }
}

/// The range, free, and what its entries named.
type Opened<O, B> = (Range<O, B, Free>, PhysRange);

/// What a receipt gives back: the range, free, and the frames.
pub type Redeemed<O, B> = (Range<O, B, Free>, FrameRun<<O as Owner>::Memory>);

impl<O: Owner, B: Backend> fmt::Debug for PendingUnmap<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending {} of {}", self.range.span, self.range.core.uid)
    }
}
