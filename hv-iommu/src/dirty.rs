//! Dirty tracking: which pages devices have written, of domains whose units note that.

#![expect(
    unsafe_code,
    reason = "tells the table that a flush of what merges replaced has completed"
)]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::spin_hint;
use hv_core::{Iova, IovaRange, Owner, PageCount, PageSize};
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::domain::{Domain, DomainCore};
use crate::flush::FlushError;
use crate::format::{Format, Level};
use crate::reclaim::ReclaimError;
use crate::shape::Pages;
use crate::table::MergedBits;

/// How many bytes are looked at under one guard: no look keeps empty tables from coming back for longer.
const STEP: u64 = 16 << 20;

/// A bitmap has not as many bits as its range has pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a bitmap of {pages} needs {needed} words, found {found}")]
pub struct BitmapError {
    /// The range's length.
    pub pages: PageCount,
    /// How many 64-bit words that needs.
    pub needed: u64,
    /// How many there are.
    pub found: usize,
}

/// One bit for each 4 KiB page of a range, in memory of the caller: bit 0 of the first word is its first
/// page.
///
/// Bits are only ever set, so looks add up until the caller clears the words.
pub struct DirtyBitmap<'w> {
    range: IovaRange,
    words: &'w mut [u64],
}

impl<'w> DirtyBitmap<'w> {
    /// A bitmap of `range` in `words`, of which it uses as many as it needs.
    ///
    /// # Errors
    /// [`BitmapError`] when there are too few.
    pub fn new(range: IovaRange, words: &'w mut [u64]) -> Result<Self, BitmapError> {
        let pages = range.pages();
        let needed = pages.get().div_ceil(u64::BITS.into());
        let found = words.len();
        if (found as u64) < needed {
            return Err(BitmapError {
                pages,
                needed,
                found,
            });
        }
        Ok(Self { range, words })
    }

    /// The pages that it has bits for.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// How many pages are marked.
    pub fn count(&self) -> u64 {
        self.pages().count() as u64
    }

    /// The pages that are marked, in order.
    pub fn pages(&self) -> impl Iterator<Item = Iova> + '_ {
        let all = 0..self.range.pages().get();
        all.filter(|page| self.is_marked(*page))
            .filter_map(|page| self.range.page(page))
    }

    fn is_marked(&self, page: u64) -> bool {
        let word = usize::try_from(page / u64::from(u64::BITS)).ok();
        let word = word.and_then(|word| self.words.get(word));
        word.is_some_and(|word| word >> (page % u64::from(u64::BITS)) & 1 != 0)
    }

    /// Marks the pages of a leaf that are in the range.
    pub(crate) fn mark(&mut self, leaf: IovaRange) {
        let size = PageSize::Size4K.bytes();
        let start = self.range.start().as_u64();
        let (first, last) = (
            leaf.start().max(self.range.start()),
            leaf.last().min(self.range.last()),
        );
        if first > last {
            return;
        }
        let (first, last) = (
            (first.as_u64() - start) / size,
            (last.as_u64() - start) / size,
        );
        for page in first..=last {
            let word = usize::try_from(page / u64::from(u64::BITS)).ok();
            if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
                *word |= 1 << (page % u64::from(u64::BITS));
            }
        }
    }
}

impl fmt::Debug for DirtyBitmap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} written pages of {}", self.count(), self.range)
    }
}

/// Why a look at what devices have written is not whole. What was found is in the bitmap all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DirtyError {
    /// A large page that was written reaches out of the bitmap's range. All of `written` counts as written.
    #[error(
        "a page that was written reaches out of the bitmap: all of {written} counts as written"
    )]
    ReachesOut {
        /// From the first such page to the last.
        written: IovaRange,
    },
    /// A unit did not complete the flush: what it writes from now on may not be noted again. Unless it
    /// was only busy, it is wedged, and its devices were cut off.
    #[error("what devices write from now on may not be noted: {reason}")]
    Flush {
        /// Why.
        reason: FlushError,
        /// As in [`DirtyError::ReachesOut`], if there is such a page.
        written: Option<IovaRange>,
    },
    /// Pages were merged into a large one, and a unit that still knew of the small ones could not be made to
    /// forget them: what was written through these is not known yet. Nothing was looked at or forgotten; call
    /// again.
    #[error("what was written through pages that were merged since is not known yet: {reason}")]
    Merged {
        /// Why.
        reason: ReclaimError,
    },
}

/// Witness that units note what devices write through a domain; the way to read that.
///
/// # Invariants
/// The domain was built for dirty tracking, so every unit that it is attached to writes dirty bits.
pub struct DirtyTracking<'d, B: Backend> {
    core: &'d DomainCore<B>,
}

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// What reads and clears dirty bits, if the domain was asked for with
    /// [`Needs::dirty_tracking`](crate::Needs).
    pub fn dirty(&self) -> Option<DirtyTracking<'_, B>> {
        let core = &self.core;
        core.caps.dirty.then_some(DirtyTracking { core })
    }
}

impl<B: Backend> DirtyTracking<'_, B> {
    /// Marks every page that a device has written since that was last cleared; of a doorbell, which is no memory and lies in
    /// a reserved range, that it has sent a message. Pages that are unmapped are
    /// not marked: [`PendingUnmap::redeem_noting`](crate::PendingUnmap::redeem_noting) does that.
    ///
    /// Flushes first where pages of the range were [merged](crate::Range::merge) since the last reclaim: until then
    /// units may note writes where the small pages were. What is merged during the call is for the next one.
    ///
    /// # Errors
    /// [`DirtyError::ReachesOut`], [`DirtyError::Merged`].
    pub fn read(&self, bitmap: &mut DirtyBitmap<'_>) -> Result<(), DirtyError> {
        let (mut out, range) = (None, bitmap.range());
        self.take_merged(range)?;
        let mut note = |at, level| note::<B::Format>(bitmap, &mut out, at, level);
        self.core.show_written(range, false, &mut note);
        reached(out)
    }

    /// As [`read`](Self::read), and forgets it: from now on only new writes are noted.
    ///
    /// Flushes before it returns. What a device writes in the meantime goes to pages that are marked, so
    /// pages are copied after this call, not before.
    ///
    /// # Errors
    /// [`DirtyError`]; nothing is lost: what was cleared is in the bitmap, or named by the error.
    pub fn read_and_clear(&self, bitmap: &mut DirtyBitmap<'_>) -> Result<(), DirtyError> {
        let (mut out, range) = (None, bitmap.range());
        self.take_merged(range)?;
        let mut note = |at, level| note::<B::Format>(bitmap, &mut out, at, level);
        self.core.show_written(range, true, &mut note);
        // Leaves alone: links are as they were. What reaches out was cleared too.
        let span = out.map_or(range, |out: IovaRange| range.hull(&out));
        let flushed = self.core.flush(FlushSpan::Pages(span), FlushDepth::Leaves);
        match flushed {
            Ok(_) => reached(out),
            Err(reason) => Err(DirtyError::Flush {
                reason,
                written: out,
            }),
        }
    }

    fn take_merged(&self, range: IovaRange) -> Result<(), DirtyError> {
        let taken = self.core.take_merged_bits(range);
        taken.map_err(|reason| DirtyError::Merged { reason })
    }
}

impl<B: Backend> DomainCore<B> {
    /// Shows every leaf in `range` that a device wrote through, the guard of each step apart; with `clear`,
    /// forgets that it did, and a leaf may be shown twice.
    pub(crate) fn show_written(
        &self,
        range: IovaRange,
        clear: bool,
        show: &mut dyn FnMut(Iova, Level),
    ) {
        let mut rest = Some(range);
        let mut told = None;
        while let Some(range) = rest {
            let part;
            (part, rest) = first_step(range);
            // A large page is met in each of its steps. What is found cleared and set again is news.
            let once = |at, level| {
                let last = leaf_at::<B::Format>(at, level).map(|leaf| leaf.last());
                if clear || told != last {
                    told = last;
                    show(at, level);
                }
            };
            let guard = self.pin();
            match clear {
                true => self.table.dirty_and_clear(&guard, part, once),
                false => self.table.dirty(&guard, part, once),
            }
        }
    }

    /// Has leaves in `range` get the dirty bits that units set in tables that merges replaced, after the flush
    /// that this takes.
    ///
    /// # Errors
    /// [`ReclaimError`]; nothing was changed then.
    pub(crate) fn take_merged_bits(&self, range: IovaRange) -> Result<(), ReclaimError> {
        let clock = self.system.backend.platform();
        let mut deadline = None;
        let mut busy = || {
            spin_hint();
            let now = clock.now();
            let end = *deadline.get_or_insert(now.after(self.system.wait));
            (now <= end).then_some(()).ok_or(ReclaimError::Busy)
        };
        let (merges, span) = loop {
            match self.table.merged_bits(range) {
                MergedBits::Told => return Ok(()),
                MergedBits::Busy => busy()?,
                MergedBits::Waiting { merges, span } => break (merges, span),
            }
        };
        let _ = self.flush(FlushSpan::Pages(span), FlushDepth::WalkCaches)?;
        // SAFETY: the flush of just that span, walk caches included, was begun after the question and has
        // completed on every unit.
        while !unsafe { self.table.take_merged_bits(&self.pin(), merges, range) } {
            busy()?;
        }
        Ok(())
    }
}

/// What is looked at first of a range, and what is left.
fn first_step(range: IovaRange) -> (IovaRange, Option<IovaRange>) {
    let ahead = STEP - range.start().as_u64() % STEP;
    let cut = PageCount::for_bytes(ahead).and_then(|pages| range.split_at(pages));
    cut.map_or((range, None), |(part, rest)| (part, Some(rest)))
}

/// The leaf of a level that `at` lies in, as large as leaves are in tables of format `F`: the engine names the first
/// address that it was asked about.
pub(crate) fn leaf_at<F: Format>(at: Iova, level: Level) -> Option<IovaRange> {
    let shift = match Fault::WrittenBySmallPages.is_on() {
        true => PageSize::Size4K.shift() + 9 * (u32::from(level.number()) - 1),
        false => F::PAGE_SHIFT + F::INDEX_BITS * (u32::from(level.number()) - 1),
    };
    let bytes = 1_u64.checked_shl(shift)?;
    let start = Iova::new(at.as_u64() & !(bytes - 1));
    IovaRange::new(start, PageCount::for_bytes(bytes)?).ok()
}

/// Marks a leaf that was written, and notes it when it reaches out of the bitmap.
fn note<F: Format>(
    bitmap: &mut DirtyBitmap<'_>,
    out: &mut Option<IovaRange>,
    at: Iova,
    level: Level,
) {
    let Some(leaf) = leaf_at::<F>(at, level) else {
        return;
    };
    bitmap.mark(leaf);
    if !bitmap.range().covers(&leaf) {
        *out = Some(out.map_or(leaf, |out| out.hull(&leaf)));
    }
}

fn reached(out: Option<IovaRange>) -> Result<(), DirtyError> {
    out.map_or(Ok(()), |written| Err(DirtyError::ReachesOut { written }))
}

impl<B: Backend> fmt::Debug for DirtyTracking<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dirty tracking of {}", self.core.uid)
    }
}
