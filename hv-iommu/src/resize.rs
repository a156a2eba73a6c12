//! Changes of what a range is mapped with: page sizes and permissions. Each leaves a debt that a flush
//! pays, and that an unmap inherits.

use core::fmt;

use hv_core::fault::Fault;
use hv_core::{Iova, IovaRange, Owner, PageCount, PageSize, Perms};
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::dirty::leaf_at;
use crate::flush::{FlushError, Need, Receipt};
use crate::format::Level;
use crate::pending::{RedeemError, RedeemRefusal, Redeemed};
use crate::range::{MapError, MapRefusal, Mapped, Range, TableFrames, owed};
use crate::table::TableError;

/// Why a mapped range was not cut.
pub enum CutError<O: Owner, B: Backend> {
    /// Nothing was changed, or only page sizes.
    Refused {
        /// The range, mapped as before.
        range: Range<O, B, Mapped>,
        /// Why.
        reason: CutRefusal,
    },
    /// The range was unmapped for the cut, and a unit did not complete the flush.
    Pending(RedeemError<O, B>),
    /// One of the parts could not be mapped again, or not be made visible.
    Unmapped {
        /// That part.
        failed: MapError<O, B>,
        /// The first part, where it was the second one that failed.
        mapped: Option<Range<O, B, Mapped>>,
        /// The second part, where it was the first one that failed.
        rest: Option<Redeemed<O, B>>,
    },
}

/// Why a cut was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CutRefusal {
    /// One part would be empty.
    #[error("a cut after {pages} leaves no page in one part of {range}")]
    NothingLeft {
        /// The range.
        range: IovaRange,
        /// Where the cut was asked for.
        pages: PageCount,
    },
    /// The table refused.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl<O: Owner, B: Backend> fmt::Display for CutError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { range, reason } => write!(f, "{} was not cut: {reason}", range.span),
            Self::Pending(error) => fmt::Display::fmt(error, f),
            Self::Unmapped { failed, .. } => write!(f, "after a cut, {failed}"),
        }
    }
}

impl<O: Owner, B: Backend> fmt::Debug for CutError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend> core::error::Error for CutError<O, B> {}

/// A range that was cut in two.
pub type Cut<O, B> = (Range<O, B, Mapped>, Range<O, B, Mapped>);

impl<O: Owner, B: Backend> Range<O, B, Mapped> {
    /// The first `pages` pages and the rest, both mapped all the time: large pages that the cut goes
    /// through are replaced by smaller ones, where the units can follow that.
    ///
    /// # Errors
    /// [`CutError::Refused`]; with [`TableError::Breaks`] where a unit cannot follow:
    /// [`split_with_gap_at`](Self::split_with_gap_at) then; with [`TableError::CutsPage`] where the smallest page would be
    /// cut. Some pages may be smaller than before.
    pub fn split_large_at(mut self, pages: PageCount) -> Result<Cut<O, B>, CutError<O, B>> {
        let Some(middle) = self.span.page(pages.get()) else {
            let range = self;
            let reason = CutRefusal::NothingLeft {
                range: range.span,
                pages,
            };
            return Err(CutError::Refused { range, reason });
        };
        if let Err(error) = self.core.table.check_boundary(middle) {
            let range = self;
            let reason = error.into();
            return Err(CutError::Refused { range, reason });
        }
        // One step per page size above the smallest.
        loop {
            let core = &self.core;
            let guard = core.pin();
            let Some(found) = core.table.translate(&guard, middle) else {
                break;
            };
            let size = found.level.size::<B::Format>();
            let Some(size) = size.filter(|size| !middle.is_aligned(*size)) else {
                break;
            };
            let leaf = middle.align_down(size);
            let split = core.table.split(&guard, leaf, size);
            drop(guard);
            if let Err(error) = split {
                let range = self;
                let reason = error.into();
                return Err(CutError::Refused { range, reason });
            }
            // All of the leaf lies in the range: leaves never reach beyond what mapped them.
            let span = IovaRange::new(leaf, PageCount::of(size)).unwrap_or(self.span);
            self.owe(span);
        }
        let range = self.span;
        self.split_at(pages)
            .map_err(|range_back| CutError::Refused {
                range: range_back,
                reason: CutRefusal::NothingLeft { range, pages },
            })
    }

    /// As [`split_large_at`](Self::split_large_at), for units that cannot follow a change of page size:
    /// the range is unmapped, flushed and mapped again in two parts. **Meanwhile devices fault on it**, and are
    /// charged with that (`FaultBudget`), since such a fault looks like any other. Pages that a
    /// device had written are noted as written again, and so are those between them.
    ///
    /// # Errors
    /// [`CutError`]: in the later cases the range is not mapped any more.
    pub fn split_with_gap_at(self, pages: PageCount) -> Result<Cut<O, B>, CutError<O, B>> {
        let (span, granted) = (self.span, self.state.granted);
        let Some(middle) = span.page(pages.get()) else {
            let range = self;
            let reason = CutRefusal::NothingLeft { range: span, pages };
            return Err(CutError::Refused { range, reason });
        };
        if let Err(error) = self.core.table.check_boundary(middle) {
            // Mapping the parts again would be refused, when devices had lost the range.
            let range = self;
            let reason = error.into();
            return Err(CutError::Refused { range, reason });
        }
        let core = self.core.clone();
        // Frames for the worst case first: mapping again must not fail for want of them.
        let mut tables = TableFrames::of(&core);
        let (to, largest) = (self.state.to, PageSize::LARGEST);
        let needed = core.table.most_tables(span, to, pages, largest);
        if let Err(error) = tables.reserve(needed) {
            let range = self;
            let reason = error.into();
            return Err(CutError::Refused { range, reason });
        }
        let mut written: Option<IovaRange> = None;
        let pending = self.unmap();
        let flushed = pending.flush_showing(|at, level| {
            written = match (written, leaf_at::<B::Format>(at, level)) {
                (Some(before), Some(leaf)) => Some(before.hull(&leaf)),
                (before, leaf) => before.or(leaf),
            };
        });
        let free = flushed.map_err(CutError::Pending)?;
        let cut = Self::map_cut(free, pages, granted, &mut tables);
        if let Some(written) = written {
            core.table.mark_written(&core.pin(), written);
        }
        cut
    }

    /// Maps what was unmapped for a cut again, in two parts.
    fn map_cut(
        (range, frames): Redeemed<O, B>,
        pages: PageCount,
        granted: Perms,
        tables: &mut TableFrames<'_, B>,
    ) -> Result<Cut<O, B>, CutError<O, B>> {
        let (span, largest) = (range.span, PageSize::LARGEST);
        // Neither cut fails: that of the addresses was checked above, and the run is as long.
        let length = MapRefusal::Length {
            range: span.pages(),
            frames: pages,
        };
        let refused = |range, frames| CutError::Unmapped {
            failed: MapError::Refused {
                range,
                frames,
                reason: length,
            },
            mapped: None,
            rest: None,
        };
        let (low, high) = match frames.split_at(pages) {
            Ok(parts) => parts,
            Err(error) => return Err(refused(range, error.run)),
        };
        let (first, second) = match range.split_at(pages) {
            Ok(parts) => parts,
            Err(range) => {
                let whole = low.join(high).unwrap_or_else(|(low, _)| low);
                return Err(refused(range, whole));
            }
        };
        let first = match first.map_from(low, granted, largest, tables) {
            Ok(first) => first,
            Err(failed) => {
                return Err(CutError::Unmapped {
                    failed,
                    mapped: None,
                    rest: Some((second, high)),
                });
            }
        };
        match second.map_from(high, granted, largest, tables) {
            Ok(second) => Ok((first, second)),
            Err(failed) => Err(CutError::Unmapped {
                failed,
                mapped: Some(first),
                rest: None,
            }),
        }
    }

    /// Replaces smaller pages by large ones wherever the range allows it and the units can follow. How
    /// many large pages were made, and why it stopped before the end, if it did: [`TableError::Breaks`]
    /// where a unit cannot follow, [`TableError::ReclaimPending`] when too many merged tables wait:
    /// [`Domain::reclaim`](crate::Domain::reclaim) then, and call again.
    pub fn merge(&mut self) -> (u64, Result<(), TableError>) {
        let mut merged = 0;
        let largest = self.core.caps.largest_page;
        let above_smallest = [2, 3].map(|number| Level::new(number)?.size::<B::Format>());
        for size in above_smallest.into_iter().flatten() {
            if size > largest {
                break;
            }
            let first = self.span.start().as_u64().div_ceil(size.bytes());
            let end = (self.span.last().as_u64() / size.bytes())
                + u64::from((self.span.last().as_u64() + 1).is_multiple_of(size.bytes()));
            for number in first..end {
                let at = Iova::new(number * size.bytes());
                let core = &self.core;
                let outcome = core.table.merge(&core.pin(), at, size);
                match outcome {
                    Ok(()) => {
                        merged += 1;
                        let span = IovaRange::new(at, PageCount::of(size)).unwrap_or(self.span);
                        self.owe(span);
                    }
                    // A large page already, or pages that do not fit together.
                    Err(TableError::NotMapped { .. } | TableError::NotContiguous { .. }) => {}
                    Err(error) => return (merged, Err(error)),
                }
            }
        }
        (merged, Ok(()))
    }

    /// Changes what devices may do with the range. They may go on as before until
    /// [`settle`](Self::settle).
    ///
    /// # Errors
    /// [`TableError`]; nothing was changed then.
    pub fn protect(&mut self, perms: Perms) -> Result<(), TableError> {
        let granted = self.core.granted(perms);
        let changed = self
            .core
            .table
            .protect(&self.core.pin(), self.span, granted)?;
        self.state.granted = granted;
        if changed.any {
            self.owe(self.span);
        }
        Ok(())
    }

    /// Whether devices may still use earlier page sizes or permissions of the range.
    pub fn is_in_debt(&self) -> bool {
        self.state.debt.is_some()
    }

    /// Flushes what earlier changes of page size and permissions left behind.
    ///
    /// # Errors
    /// [`FlushError`]; the debt stays.
    pub fn settle(&mut self) -> Result<(), FlushError> {
        if let Some(debt) = self.state.debt {
            if Fault::SettleSkipsFlush.is_on() {
                self.state.debt = None;
                return Ok(());
            }
            let receipt = self.core.flush(FlushSpan::Pages(debt.span), debt.depth)?;
            // The flush was just made to measure.
            let _ = self.settle_with(&receipt);
        }
        Ok(())
    }

    /// Pays the debt with a receipt that is there already.
    ///
    /// # Errors
    /// [`RedeemRefusal`] when it does not cover the debt, which stays.
    pub fn settle_with(&mut self, receipt: &Receipt) -> Result<(), RedeemRefusal> {
        if let Some(debt) = &self.state.debt {
            receipt.meets(self.core.uid, debt)?;
            self.state.debt = None;
        }
        Ok(())
    }

    /// Notes that devices may still use what was in `span` before the change that was just made.
    fn owe(&mut self, span: IovaRange) {
        let need = Need {
            sequence: self.core.note_unmap(),
            span: match Fault::NarrowDebt.is_on() {
                true => IovaRange::new(span.start(), PageCount::ONE).unwrap_or(span),
                false => span,
            },
            depth: match Fault::ShallowDebt.is_on() {
                true => FlushDepth::Leaves,
                false => FlushDepth::WalkCaches,
            },
        };
        self.state.debt = owed(self.state.debt, Some(need));
    }
}
