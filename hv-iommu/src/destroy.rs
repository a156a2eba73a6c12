//! The end of a domain: refused while anything uses it, then a teardown in steps.

#![expect(
    unsafe_code,
    reason = "hands the frames of an ended domain back to their owner"
)]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::{Ordering, spin_hint};
use hv_core::{FrameRun, Owner, Shared};
use thiserror::Error;

use crate::backend::Backend;
use crate::domain::{Domain, DomainCore};
use crate::ids::IdLease;
use crate::table::{Drain, DrainStep};

/// How many table words the iterator looks at between two looks at its own state.
const WORDS_AT_ONCE: usize = 4096;

impl<O: Owner, B: Backend> Domain<O, B> {
    /// Ends the domain, and gives what hands out all that it mapped.
    ///
    /// Ranges and pending values that still exist become useless, whether they were dropped, forgotten
    /// or kept: what they named comes back here.
    ///
    /// # Errors
    /// The domain, while a group is attached, while a value of its DMA API is alive (a device,
    /// a buffer, a mapping), or while a CPU walks its table for too long. Call again then. A buffer that was forgotten, not dropped, keeps
    /// the domain for good.
    pub fn destroy(mut self) -> Result<Teardown<O, B>, DestroyError<O, B>> {
        // ORDERING: Acquire pairs with the decrement at detach. Attaching needs `&Domain`, so the
        // count cannot grow again.
        let attachments = self.core.attachments.load(Ordering::Acquire);
        if attachments != 0 && !Fault::FreeTablesEarly.is_on() {
            let reason = DestroyRefusal::Attached { attachments };
            return Err(DestroyError {
                domain: self,
                reason,
            });
        }
        // ORDERING: Acquire pairs with the decrement when a buffer goes: the CPU's last access through
        // it has happened. Making buffers needs `&Domain`, so the count cannot grow again.
        let buffers = self.core.buffers.load(Ordering::Acquire);
        if buffers != 0 {
            let reason = DestroyRefusal::BuffersInUse { buffers };
            return Err(DestroyError {
                domain: self,
                reason,
            });
        }
        // Nothing can be added: that takes a mapping, and none is alive. No device is attached either, so no
        // unit has to be waited for.
        if self.core.flush_deferred().is_err() || self.core.deferred() != 0 {
            let reason = DestroyRefusal::Busy;
            return Err(DestroyError {
                domain: self,
                reason,
            });
        }
        self.core.drain_bounce_pool();
        self.closed = self.closed.or_else(|| self.core.table.close());
        let Some(root) = self.closed else {
            let reason = DestroyRefusal::Ended;
            return Err(DestroyError {
                domain: self,
                reason,
            });
        };
        let system = &self.core.system;
        let epoch = system.quiescence.retire_epoch();
        let clock = system.backend.platform();
        let deadline = clock.now().after(system.wait);
        while !system.has_passed(epoch) {
            if clock.now() > deadline {
                let reason = DestroyRefusal::Busy;
                return Err(DestroyError {
                    domain: self,
                    reason,
                });
            }
            spin_hint();
        }
        // SAFETY: the root came from `close` of this domain's table. The grace period is over. No
        // group is attached, and detaching waited for the unit to forget the entry, so no walker
        // reaches the table. `self` is consumed with its root, so there is no second drain.
        let drain = unsafe { Drain::new(root) };
        Ok(Teardown {
            core: self.core,
            owner: self.owner,
            rest: Some((drain, self.lease)),
            tables: 0,
        })
    }
}

/// Why a domain was not destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DestroyRefusal {
    /// Groups are attached, or were wedged while attached.
    #[error("{attachments} groups are attached to the domain or were never cleanly detached")]
    Attached {
        /// How many.
        attachments: usize,
    },
    /// The CPU still reaches memory of the domain through values of the DMA API, or could.
    #[error(
        "{buffers} buffers, mappings or devices of the domain's DMA API are still alive; free or drop them first"
    )]
    BuffersInUse {
        /// How many.
        buffers: usize,
    },
    /// A CPU did not leave the domain's table in time.
    #[error("a CPU is still walking the domain's table")]
    Busy,
    /// The domain has ended already.
    #[error("the domain has ended")]
    Ended,
}

/// A domain that could not be destroyed, and why.
pub struct DestroyError<O: Owner, B: Backend> {
    /// The domain.
    pub domain: Domain<O, B>,
    /// Why it was refused.
    pub reason: DestroyRefusal,
}

impl<O: Owner, B: Backend> fmt::Display for DestroyError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.domain.core.uid, self.reason)
    }
}

impl<O: Owner, B: Backend> fmt::Debug for DestroyError<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend> core::error::Error for DestroyError<O, B> {}

/// An ended domain. Each step frees tables and hands out one run of frames that was mapped or
/// pending. Leaving off early loses the rest; nothing is freed twice or too early.
#[must_use = "frames and tables come back only by going through it"]
pub struct Teardown<O: Owner, B: Backend> {
    core: Shared<DomainCore<B>>,
    owner: O::Id,
    rest: Option<(Drain, IdLease)>,
    tables: u64,
}

/// What a step of a teardown came to.
pub enum TeardownStep<O: Owner> {
    /// Frames that were mapped or pending, back with their owner.
    Frames(FrameRun<O::Memory>),
    /// As much was done as was asked for: call again.
    More,
    /// The domain is gone, and its id free.
    Done,
}

impl<O: Owner, B: Backend> Teardown<O, B> {
    /// Looks at no more than `words` table words, so that a CPU is not held for long: a domain of a
    /// terabyte has a quarter of a billion of them.
    pub fn step(&mut self, words: usize) -> TeardownStep<O> {
        let Some((drain, _)) = self.rest.as_mut() else {
            return TeardownStep::Done;
        };
        if let Some(kept) = self.core.dma.pool.lock().take_orphan() {
            // SAFETY: the frames were a run of this owner that moved into a mapping which was dropped; no table
            // holds them, the list named them once, and a buffer's hold would have kept the domain from ending.
            return TeardownStep::Frames(unsafe { FrameRun::from_raw(kept, self.owner) });
        }
        match drain.step(&self.core.table, words) {
            DrainStep::Frames(range) => {
                // SAFETY: the table's entry was the record of a run of this owner that moved into it
                // at map. The drain shows each entry once and the table has ended, so this run is the
                // only one for these frames (for a guest: the one that carries their pins).
                TeardownStep::Frames(unsafe { FrameRun::from_raw(range, self.owner) })
            }
            DrainStep::More => TeardownStep::More,
            DrainStep::Done => {
                self.tables = drain.tables_freed();
                if let Some((_, lease)) = self.rest.take() {
                    // The id is free again with the last table: no group is attached, and each detach
                    // waited for the unit to forget what it cached under the id.
                    self.core.system.ids.give_back(lease);
                }
                TeardownStep::Done
            }
        }
    }

    /// How many table pages were freed so far.
    pub fn tables_freed(&self) -> u64 {
        self.rest
            .as_ref()
            .map_or(self.tables, |(drain, _)| drain.tables_freed())
    }
}

impl<O: Owner, B: Backend> fmt::Debug for Teardown<O, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables_freed();
        write!(f, "end of {}, {tables} tables freed", self.core.uid)
    }
}

impl<O: Owner, B: Backend> Iterator for Teardown<O, B> {
    type Item = FrameRun<O::Memory>;

    /// The next run of frames, however many words have to be looked at for it.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step(WORDS_AT_ONCE) {
                TeardownStep::Frames(frames) => return Some(frames),
                TeardownStep::More => {}
                TeardownStep::Done => return None,
            }
        }
    }
}
