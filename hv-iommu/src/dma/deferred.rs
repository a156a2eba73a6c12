//! Deferred flush: the CPU has a buffer back before units have forgotten it, its addresses come back after.

#![expect(
    unsafe_code,
    reason = "takes a run of frames back that a pending entry of the table still names"
)]

use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroUsize;
use core::time::Duration;

use hv_core::fault::Fault;
use hv_core::platform::{Clock, Instant};
use hv_core::sync::Mutex;
use hv_core::{FrameRun, Hypervisor, OutOfMemory, Owner};
use thiserror::Error;

use super::DmaOwner;
use super::body::Body;
use super::bounce::Pool;
use super::direction::Direction;
use super::parts::Placed;
use super::stream::StreamMapping;
use super::trust::{Gate, Trust};
use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::domain::{Domain, DomainCore};
use crate::flush::{FlushError, Receipt};
use crate::pending::Seal;

/// What the DMA API keeps for a domain.
pub(crate) struct DmaState {
    pub(crate) pool: Mutex<Pool>,
    pub(crate) gate: Gate,
    deferred: Queue,
}

impl DmaState {
    pub(crate) fn new() -> Self {
        Self {
            pool: Mutex::new(Pool::new()),
            gate: Gate::new(),
            deferred: Queue(Mutex::new(QueueState {
                config: None,
                waiting: Vec::new(),
                slots: 0,
                oldest: None,
            })),
        }
    }
}

/// How much a domain may put off, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeferredConfig {
    /// How many mappings may wait for one flush. When that many do, the next one flushes first.
    pub mappings: NonZeroUsize,
    /// How long a mapping may wait. Nobody comes by itself: the next deferred unmap after that flushes first,
    /// and [`Domain::flush_deferred_if_due`] does.
    pub deadline: Duration,
}

/// Why a domain has no deferred flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeferredError {
    /// It was allowed already, and stays as it was.
    #[error("deferred flush is allowed already, for {mappings} mappings")]
    AlreadyAllowed {
        /// How many may wait.
        mappings: NonZeroUsize,
    },
    /// The list of what waits cannot be had.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why an unmap was not deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeferRefusal {
    /// Nobody allowed it for this domain.
    #[error("the domain flushes strictly: `Domain::allow_deferred_flush` was not called")]
    NotAllowed,
    /// An untrusted device would keep the buffer while the CPU uses it for something else.
    #[error(
        "the device is not trusted: unmap, and wait for the receipt; or map by a `Domain::trusting_dma_device`"
    )]
    Untrusted,
    /// The flush that had to come first failed.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// As many wait as may, and a flush did not open them: CPUs walk in their tables, or other CPUs were
    /// faster.
    #[error("as many mappings wait as may; try again, or unmap strictly")]
    Full,
}

/// A mapping that was not unmapped, and why.
pub struct DeferError<B: Backend, D: Direction> {
    /// The mapping, as it was.
    pub mapping: StreamMapping<B, D>,
    /// Why.
    pub reason: DeferRefusal,
}

impl<B: Backend, D: Direction> fmt::Display for DeferError<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} stays mapped: {}", self.mapping, self.reason)
    }
}

impl<B: Backend, D: Direction> fmt::Debug for DeferError<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<B: Backend, D: Direction> core::error::Error for DeferError<B, D> {}

/// A mapping whose run is with the CPU again and that waits for a flush.
///
/// # Invariants
/// The addresses are nobody else's. The table's words under them name the body's parts and are pending. Of the
/// run nothing is made from here: it was handed out.
struct Waiting {
    placed: Placed,
    body: Body,
    seal: Seal,
    since: Instant,
}

/// What waits in a domain. It lives as long as the domain does, so that nothing that waits can be dropped.
///
struct Queue(Mutex<QueueState>);

/// # Invariants
/// `waiting` has room for as many as `config` lets wait, and no more than that are in it and in `slots` together.
struct QueueState {
    /// `None` while nothing may wait.
    config: Option<DeferredConfig>,
    waiting: Vec<Waiting>,
    /// Places that are kept for mappings on their way in or out.
    slots: usize,
    /// Since when the oldest waits, or one that was older.
    oldest: Option<Instant>,
}

impl<O: Owner, B: Backend> Domain<O, B> {
    /// Lets mappings of this domain's trusted devices put off the flush of their unmap
    /// ([`StreamMapping::unmap_deferred`]). Until it comes, a device may still reach the buffer, whatever the
    /// CPU uses it for by then; the addresses lead nowhere else.
    ///
    /// # Errors
    /// [`DeferredError`].
    pub fn allow_deferred_flush(&self, config: DeferredConfig) -> Result<(), DeferredError>
    where
        O: DmaOwner,
    {
        let mappings = config.mappings.get();
        let mut waiting = Vec::new();
        let bytes = mappings.saturating_mul(size_of::<Waiting>());
        waiting
            .try_reserve_exact(mappings)
            .map_err(|_| OutOfMemory { bytes })?;
        {
            let mut state = self.core.dma.deferred.0.lock();
            if let Some(DeferredConfig { mappings, .. }) = state.config {
                return Err(DeferredError::AlreadyAllowed { mappings });
            }
            // INVARIANT: the room was just had.
            state.waiting = waiting;
            state.config = Some(config);
        }
        log::info!(
            "{}: trusted devices keep up to {mappings} buffers for up to {:?} after their unmap",
            self.uid(),
            config.deadline
        );
        Ok(())
    }

    /// Flushes what was deferred, if anything was. Gives how many mappings wait no more.
    ///
    /// # Errors
    /// [`FlushError`]; what waits goes on waiting.
    pub fn flush_deferred(&self) -> Result<usize, FlushError>
    where
        O: DmaOwner,
    {
        self.core.flush_deferred()
    }

    /// As [`flush_deferred`](Self::flush_deferred), if the deadline of the oldest has passed.
    ///
    /// # Errors
    /// [`FlushError`]; what waits goes on waiting.
    pub fn flush_deferred_if_due(&self) -> Result<usize, FlushError>
    where
        O: DmaOwner,
    {
        let clock = self.core.system.backend.platform();
        match self.deferred_due() {
            Some(due) if clock.now() >= due => self.core.flush_deferred(),
            _ => Ok(0),
        }
    }

    /// When the deadline of the oldest mapping that waits passes; `None` while none does.
    pub fn deferred_due(&self) -> Option<Instant>
    where
        O: DmaOwner,
    {
        self.core.dma.deferred.0.lock().due()
    }
}

impl QueueState {
    /// When the oldest has waited its time.
    fn due(&self) -> Option<Instant> {
        Some(self.oldest?.after(self.config?.deadline))
    }

    /// Whether there is room for one more.
    fn has_room(&self) -> bool {
        let taken = self.waiting.len() + self.slots;
        self.config
            .is_some_and(|config| taken < config.mappings.get())
    }
}

impl<B: Backend> DomainCore<B> {
    /// How many mappings wait, with those on their way.
    pub(crate) fn deferred(&self) -> usize {
        let state = self.dma.deferred.0.lock();
        state.waiting.len() + state.slots
    }

    pub(crate) fn flush_deferred(&self) -> Result<usize, FlushError> {
        let (depth, last) = {
            let state = self.dma.deferred.0.lock();
            let depths = state.waiting.iter().map(|waiting| waiting.seal.need.depth);
            let walked = state
                .waiting
                .iter()
                .rev()
                .find(|waiting| waiting.seal.need.depth == FlushDepth::WalkCaches);
            match depths.max() {
                Some(depth) => (depth, walked.map(|waiting| waiting.seal)),
                None => return Ok(0),
            }
        };
        // No lock is held while units work.
        let receipt = self.flush(FlushSpan::Domain, depth)?;
        if let Some(seal) = last {
            seal.await_walkers(self);
        }
        let opened = self.dma.deferred.open(self, &receipt);
        self.assist_reclaim();
        Ok(opened)
    }
}

impl Queue {
    /// Takes a place for one more, unless there is none, or the oldest is due at `now`.
    fn slot(&self, now: Option<Instant>) -> bool {
        let mut state = self.0.lock();
        let due = state.due();
        let due = due.is_some_and(|due| now.is_some_and(|now| now >= due));
        if due || !state.has_room() {
            return false;
        }
        state.slots += 1;
        true
    }

    /// Puts one into the place that was kept for it.
    fn put(&self, waiting: Waiting) {
        let mut state = self.0.lock();
        state.slots -= 1;
        let since = waiting.since;
        state.oldest = Some(state.oldest.map_or(since, |oldest| oldest.min(since)));
        // INVARIANT: the place was counted in `slots`, so there is room.
        state.waiting.push(waiting);
    }

    /// The deliberate fault: the addresses come back before the flush.
    fn release_early<B: Backend>(&self, core: &DomainCore<B>, mut waiting: Waiting) {
        // SAFETY: none; the deliberate fault.
        let redeemed = unsafe { waiting.placed.redeem(core, waiting.body.parts()) };
        if redeemed.is_ok() {
            core.free_iova(waiting.placed.span());
            self.0.lock().slots -= 1;
        }
    }

    /// Gives back the addresses of all that the receipt opens. One at a time: the lock is short.
    fn open<B: Backend>(&self, core: &DomainCore<B>, receipt: &Receipt) -> usize {
        let (mut index, mut opened) = (0, 0);
        loop {
            let mut waiting = {
                let mut state = self.0.lock();
                let Some(next) = state.waiting.get(index) else {
                    state.oldest = state.waiting.iter().map(|waiting| waiting.since).min();
                    return opened;
                };
                if next.seal.opens(core, receipt).is_err() {
                    index += 1;
                    continue;
                }
                state.slots += 1;
                state.waiting.swap_remove(index)
            };
            // SAFETY: the receipt was just seen to open the seal of this unmap.
            let redeemed = unsafe { waiting.placed.redeem(core, waiting.body.parts()) };
            match redeemed {
                Ok(()) => {
                    waiting.body.put_bounce_pages(core);
                    core.free_iova(waiting.placed.span());
                    self.0.lock().slots -= 1;
                    opened += 1;
                }
                Err(error) => {
                    // A step of reclaim is in the way: the next flush comes by again.
                    log::debug!("{} waits for another flush: {error}", waiting.placed.span());
                    self.put(waiting);
                    index += 1;
                }
            }
        }
    }
}

impl<B: Backend, D: Direction> StreamMapping<B, D> {
    /// Unmaps, and gives the run back before units have forgotten it: until the domain's next flush of what
    /// is deferred, the device may still reach its memory. The addresses stay taken until then.
    ///
    /// Flushes first when as many mappings wait as may, or when the oldest has waited its time.
    ///
    /// # Errors
    /// [`DeferError`] with the mapping, which is as it was.
    pub fn unmap_deferred(mut self) -> Result<FrameRun<Hypervisor>, DeferError<B, D>> {
        if let Err(reason) = self.take_slot() {
            let mapping = self;
            return Err(DeferError { mapping, reason });
        }
        let stream = &mut self.stream;
        let tables = stream.placed.unmap(&stream.hold, stream.body.parts());
        let seal = Seal::of_unmap(&stream.hold, stream.placed.span(), tables, None);
        if D::PERMS.writable() {
            stream.copy_back();
        }
        let run = stream.body.run;
        let since = stream.hold.system.backend.platform().now();
        // INVARIANT: the stream goes home without its addresses, run and bounce pages: the run is handed out
        // below, and what is put here has the rest.
        let waiting = Waiting {
            placed: stream.placed.clone(),
            body: stream.body,
            seal,
            since,
        };
        // SAFETY: the stream is consumed, and not looked at again.
        let hold = unsafe { stream.leave() };
        let queue = &hold.dma.deferred;
        if Fault::DeferredReleasesRangeEarly.is_on() {
            queue.release_early(&hold, waiting);
        } else {
            queue.put(waiting);
        }
        // SAFETY: the run was given up for the mapping, which is consumed. The table still names it, but what
        // waits in the queue, which nobody can drop, only empties these entries, and the domain does not end
        // before it has. So this run is the only one. What a device may still do to its bytes is what
        // deferred flush was allowed for by name, of a device that is trusted.
        Ok(unsafe { FrameRun::from_raw(run, ()) })
    }

    /// Takes a place in the queue, after a flush if it takes one.
    fn take_slot(&self) -> Result<(), DeferRefusal> {
        let core = &*self.stream.hold;
        let queue = &core.dma.deferred;
        if queue.0.lock().config.is_none() {
            return Err(DeferRefusal::NotAllowed);
        }
        if self.stream.trust != Trust::Trusted {
            return Err(DeferRefusal::Untrusted);
        }
        let now = core.system.backend.platform().now();
        if queue.slot(Some(now)) {
            return Ok(());
        }
        core.flush_deferred()?;
        match queue.slot(None) {
            true => Ok(()),
            false => Err(DeferRefusal::Full),
        }
    }
}
