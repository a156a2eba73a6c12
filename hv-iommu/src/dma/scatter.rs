//! Scatter lists: many runs of frames lent to a device at once, behind one range of addresses where there is one.

#![expect(
    unsafe_code,
    reason = "takes runs of frames back that it gave up for a mapping"
)]

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::mem;

use hv_core::platform::CacheMaintenance;
use hv_core::{FrameRun, Hypervisor, IovaRange, OutOfMemory, PageCount, PhysRange};
use thiserror::Error;

use super::Hold;
use super::device::{DmaDevice, Snooping};
use super::direction::Direction;
use super::error::{DmaMapError, DmaRefusal, PendingError};
use super::parts::Placed;
use super::stream::alignment;
use crate::backend::Backend;
use crate::domain::DomainCore;
use crate::flush::Receipt;
use crate::pending::{RedeemRefusal, Seal};
use crate::range::MapRefusal;

/// Runs of frames that go to a device together. Its room is had beforehand, on the control path, and serves for
/// one mapping after the other.
///
/// # Invariants
/// Each of `runs` is a run of hypervisor frames that was given up for this value. There is room for `limit`
/// entries in both lists.
#[must_use = "dropping a list loses its runs for good"]
pub struct ScatterList {
    runs: Vec<PhysRange>,
    placed: Vec<Placed>,
    limit: usize,
}

/// A list has no room for another run, which comes back.
#[derive(Error)]
#[error("the list has its {limit} runs, {run} is one too many")]
pub struct ScatterFull {
    /// The run.
    pub run: FrameRun<Hypervisor>,
    /// How many runs the list was made for.
    pub limit: usize,
}

impl fmt::Debug for ScatterFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ScatterList {
    /// An empty list with room for this many runs.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn with_capacity(limit: usize) -> Result<Self, OutOfMemory> {
        let (mut runs, mut placed) = (Vec::new(), Vec::new());
        let bytes = limit.saturating_mul(size_of::<PhysRange>() + size_of::<Placed>());
        let out = |_| OutOfMemory { bytes };
        runs.try_reserve_exact(limit).map_err(out)?;
        placed.try_reserve_exact(limit).map_err(out)?;
        Ok(Self {
            runs,
            placed,
            limit,
        })
    }

    /// Adds a run at the end.
    ///
    /// # Errors
    /// [`ScatterFull`] with the run.
    pub fn push(&mut self, run: FrameRun<Hypervisor>) -> Result<(), ScatterFull> {
        if self.runs.len() >= self.limit {
            let limit = self.limit;
            return Err(ScatterFull { run, limit });
        }
        // INVARIANT: the run is given up for its place here; there is room.
        self.runs.push(run.into_range());
        Ok(())
    }

    /// Takes the last run off.
    pub fn pop(&mut self) -> Option<FrameRun<Hypervisor>> {
        let run = self.runs.pop()?;
        // SAFETY: by the invariant the run was given up for this value, which names it no more.
        Some(unsafe { FrameRun::from_raw(run, ()) })
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many pages there are in all runs together; `None` for none.
    pub fn pages(&self) -> Option<PageCount> {
        let pages = self.runs.iter().map(|run| run.pages().get());
        PageCount::new(pages.fold(0, u64::saturating_add))
    }

    /// The list, of which nothing is left here.
    fn take(&mut self) -> Self {
        Self {
            runs: mem::take(&mut self.runs),
            placed: mem::take(&mut self.placed),
            limit: self.limit,
        }
    }

    /// Each place with the runs that are there: all in one, or one in each.
    fn places(&mut self) -> impl Iterator<Item = (&mut Placed, &[PhysRange])> {
        let each = match self.placed.len() {
            0 | 1 => self.runs.len().max(1),
            _ => 1,
        };
        self.placed.iter_mut().zip(self.runs.chunks(each))
    }

    /// Gives the addresses back, under which the table holds nothing.
    fn let_go<B: Backend>(&mut self, core: &DomainCore<B>) {
        for placed in self.placed.drain(..) {
            core.free_iova(placed.span());
        }
    }
}

/// The runs of a list that a device has. The CPU has no view of them meanwhile.
///
/// Dropping it leaves them mapped until the domain ends.
#[must_use = "a dropped mapping keeps its memory until the domain ends"]
pub struct ScatterMapping<B: Backend, D: Direction> {
    hold: Hold<B>,
    list: ScatterList,
    /// The smallest range that covers all places.
    hull: IovaRange,
    snooping: Snooping,
    direction: PhantomData<D>,
}

/// A mapping of a list that was unmapped and that hardware may still have cached. One receipt gives all runs
/// back.
///
/// Dropping it loses nothing that the table holds: the end of the domain gives these frames back. What it does not hold
/// any more, after a [`redeem`](Self::redeem) that failed half-way ([`RedeemRefusal::Table`]), is lost with the value, as
/// with a dropped [`ScatterList`], and logged: call `redeem` again, which goes on where it was.
#[must_use = "the memory comes back only with a receipt"]
pub struct PendingScatter<B: Backend, D: Direction> {
    mapping: ScatterMapping<B, D>,
    seal: Seal,
}

/// What a failed map of a list gives back.
pub type ScatterError<B, D> = DmaMapError<ScatterList, ScatterMapping<B, D>, PendingScatter<B, D>>;

impl<B: Backend> DmaDevice<B> {
    /// Lends all runs of a list to the device, or none: behind one range of addresses, in order, or behind
    /// one range each where the domain has no range that long.
    ///
    /// # Errors
    /// [`ScatterError`], with the list.
    pub fn map_scatter<D: Direction>(
        &self,
        mut list: ScatterList,
        _direction: D,
    ) -> Result<ScatterMapping<B, D>, ScatterError<B, D>> {
        let hull = match self.place(&mut list) {
            Ok(hull) => hull,
            Err(reason) => {
                list.let_go(&self.core);
                let value = list;
                return Err(DmaMapError::Refused { value, reason });
            }
        };
        let mapping = ScatterMapping {
            hold: Hold::new(&self.core),
            list,
            hull,
            snooping: self.config.snooping,
            direction: PhantomData,
        };
        mapping.drop_lines();
        mapping.map()
    }

    /// Takes addresses for all runs. Gives the smallest range that covers them.
    fn place(&self, list: &mut ScatterList) -> Result<IovaRange, DmaRefusal> {
        let core = &self.core;
        let first = *list.runs.first().ok_or(DmaRefusal::Empty)?;
        if let Some(frames) = list.runs.iter().find(|run| !core.reaches(run)) {
            let (frames, bits) = (*frames, core.caps.phys_bits);
            return Err(MapRefusal::PhysTooWide { frames, bits }.into());
        }
        let whole = list
            .pages()
            .map(|pages| self.addresses(pages, alignment::<B::Format>(first)));
        match whole {
            // INVARIANT: the addresses are as long as all runs together; there is room.
            Some(Ok(span)) => list.placed.push(Placed::new(span)),
            Some(Err(error)) if list.runs.len() == 1 => return Err(error),
            _ => {
                for run in &list.runs {
                    let span = self.addresses(run.pages(), alignment::<B::Format>(*run))?;
                    // INVARIANT: as long as the run; one for each run, for which there is room.
                    list.placed.push(Placed::new(span));
                }
            }
        }
        let spans = list.placed.iter().map(Placed::span);
        spans
            .reduce(|hull, span| hull.hull(&span))
            .ok_or(DmaRefusal::Empty)
    }
}

impl<B: Backend, D: Direction> ScatterMapping<B, D> {
    fn map(mut self) -> Result<Self, ScatterError<B, D>> {
        let core = &self.hold;
        let mut places = self.list.places();
        let mapped =
            places.try_for_each(|(placed, runs)| placed.map(core, runs.iter().copied(), D::PERMS));
        drop(places);
        if let Err(error) = mapped {
            let reason = MapRefusal::from(error).into();
            if self.list.placed.iter().all(|placed| placed.mapped() == 0) {
                self.list.let_go(core);
                let value = self.list.take();
                return Err(DmaMapError::Refused { value, reason });
            }
            return Err(match self.unmap().flush() {
                Ok(value) => DmaMapError::Refused { value, reason },
                Err(error) => DmaMapError::Stuck {
                    pending: error.pending,
                    reason,
                    flush: error.reason,
                },
            });
        }
        // Once, for all runs.
        match core.sync_map(self.hull) {
            Ok(()) => Ok(self),
            Err(reason) => Err(DmaMapError::NotVisible {
                mapping: self,
                reason,
            }),
        }
    }

    /// The ranges that the device reaches the runs through, in the order of the runs: one, or one for each.
    pub fn segments(&self) -> impl Iterator<Item = IovaRange> {
        self.list.placed.iter().map(Placed::span)
    }

    /// The one range that all runs are behind, if they are.
    pub fn contiguous(&self) -> Option<IovaRange> {
        match self.list.placed.as_slice() {
            [one] => Some(one.span()),
            _ => None,
        }
    }

    /// Makes the memory unreachable for walks from now on. What is cached goes with the flush that the
    /// pending value asks for: one for all runs.
    pub fn unmap(mut self) -> PendingScatter<B, D> {
        let core = &self.hold;
        let places = self.list.places();
        let tables = places.fold(false, |tables, (placed, runs)| {
            tables | placed.unmap(core, runs.iter().copied())
        });
        let seal = Seal::of_unmap(core, self.hull, tables, None);
        PendingScatter {
            mapping: self,
            seal,
        }
    }

    /// As for a stream: memory and what the CPU sees are the same, and no line is cached.
    fn drop_lines(&self) {
        if self.snooping == Snooping::Snoops {
            return;
        }
        let platform = self.hold.system.backend.platform();
        for run in &self.list.runs {
            platform.write_back_and_drop(run.start(), run.pages().bytes());
        }
    }
}

impl<B: Backend, D: Direction> Drop for ScatterMapping<B, D> {
    /// The table keeps what it holds. Of all else, runs are named in the log: there is no list in the domain that had room
    /// made for them, and a drop makes none.
    fn drop(&mut self) {
        for (placed, runs) in self.list.places() {
            let lost = runs.iter().enumerate();
            for (_, run) in lost.filter(|(index, _)| !placed.is_held(*index)) {
                log::error!("{run} of a list is lost: it was dropped with its mapping");
            }
        }
    }
}

impl<B: Backend, D: Direction> PendingScatter<B, D> {
    /// What has to be flushed for it to open.
    pub fn flush_span(&self) -> IovaRange {
        self.seal.need.span
    }

    /// Opens the value: all runs come back, in the list that they were in, and the addresses are free again.
    ///
    /// # Errors
    /// [`PendingError`] with this value, when the receipt does not cover it.
    pub fn redeem(mut self, receipt: &Receipt) -> Result<ScatterList, PendingError<Self>> {
        match self.open(receipt) {
            Ok(()) => Ok(self.mapping.list.take()),
            Err(reason) => Err(PendingError {
                pending: self,
                reason,
            }),
        }
    }

    fn open(&mut self, receipt: &Receipt) -> Result<(), RedeemRefusal> {
        let mapping = &mut self.mapping;
        let core = &mapping.hold;
        self.seal.opens(core, receipt)?;
        for (placed, runs) in mapping.list.places() {
            // SAFETY: the receipt was just seen to open the seal of the unmap of all places.
            unsafe { placed.redeem(core, runs.iter().copied()) }?;
        }
        mapping.list.let_go(core);
        if D::PERMS.writable() {
            mapping.drop_lines();
        }
        Ok(())
    }

    /// Flushes once and opens the value.
    ///
    /// # Errors
    /// [`PendingError`] with this value, when the flush failed.
    pub fn flush(self) -> Result<ScatterList, PendingError<Self>> {
        let core = Hold::new(&self.mapping.hold);
        let opened = match self.seal.flush(&core) {
            Ok(receipt) => self.redeem(&receipt),
            Err(error) => Err(PendingError {
                reason: error.into(),
                pending: self,
            }),
        };
        core.assist_reclaim();
        opened
    }
}

impl fmt::Debug for ScatterList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.runs).finish()
    }
}

impl<B: Backend, D: Direction> fmt::Debug for ScatterMapping<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}", self.list, D::NAME)
    }
}

impl<B: Backend, D: Direction> fmt::Debug for PendingScatter<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pending {:?}", self.mapping)
    }
}
