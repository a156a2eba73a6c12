//! The end of a domain: refused while anything uses it, then a teardown in steps.

#![expect(
    unsafe_code,
    reason = "hands the frames of an ended domain back to their owner"
)]

use core::fmt;

use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::spin_hint;
use hv_core::{FrameRun, Owner, Shared};
use thiserror::Error;

use crate::backend::Backend;
use crate::domain::{Domain, DomainCore, DomainUid};
use crate::group::GroupId;
use crate::ids::IdLease;
use crate::shape::{Pages, Paging, Shape};
use crate::system::System;
use crate::table::{Drain, DrainStep};

/// How many table words the iterator looks at between two looks at its own state.
const WORDS_AT_ONCE: usize = 4096;

impl<O: Owner, B: Backend, S: Shape<O, B>> Domain<O, B, S> {
    /// Ends the domain. One with tables gives what hands out all that it mapped, step by step.
    ///
    /// Ranges and pending values that still exist become useless, whether they were dropped, forgotten
    /// or kept: what they named comes back here.
    ///
    /// # Errors
    /// The domain, while a group is attached, while a nested domain stands on it, while a value of its DMA API is alive
    /// (a device, a buffer, a mapping), or while a CPU walks its table for too long. Call again then. A buffer that was
    /// forgotten, not dropped, keeps the domain for good.
    pub fn destroy(self) -> Result<S::Ended, DestroyError<O, B, S>> {
        S::end(self)
    }
}

/// Ends a domain with tables.
pub(crate) fn end_tables<O: Owner, B: Backend, S: Pages<O, B>>(
    mut domain: Domain<O, B, S>,
) -> Result<Teardown<O, B>, DestroyError<O, B, S>> {
    let attachments = domain.core.attachments.count();
    if attachments != 0 && !Fault::FreeTablesEarly.is_on() {
        let group = domain.core.system.attached_to(domain.core.uid);
        return Err(DestroyError::attached(domain, attachments, group));
    }
    // The CPU's last access through each has happened. Making the first takes `&Domain`, and further ones one that is
    // alive, so the count cannot grow again.
    let buffers = domain.core.space.holders();
    if buffers != 0 {
        let reason = DestroyRefusal::BuffersInUse { buffers };
        return Err(DestroyError::of(domain, reason));
    }
    let children = domain.core.children.count();
    if children != 0 {
        let reason = DestroyRefusal::HasChildren { children };
        return Err(DestroyError::of(domain, reason));
    }
    // Nothing can be added: that takes a mapping, and none is alive. No device is attached either, so no
    // unit has to be waited for.
    if domain.core.flush_deferred().is_err() || domain.core.deferred() != 0 {
        let reason = DestroyRefusal::Busy;
        return Err(DestroyError::of(domain, reason));
    }
    domain.core.drain_bounce_pool();
    // From here on the domain takes no group that needs a region, also if its end is put off.
    domain.core.regions.lock().clear();
    if let Err(why) = domain.unmap_regions() {
        let uid = domain.core.uid;
        log::warn!("{uid}: firmware's regions are still mapped: {why}");
        let reason = DestroyRefusal::Busy;
        return Err(DestroyError::of(domain, reason));
    }
    domain.held.closed = domain.held.closed.or_else(|| domain.core.table.close());
    let Some(root) = domain.held.closed else {
        let reason = DestroyRefusal::Ended;
        return Err(DestroyError::of(domain, reason));
    };
    let system = &domain.core.system;
    let epoch = system.quiescence.retire_epoch();
    let clock = system.backend.platform();
    let deadline = clock.now().after(system.wait);
    while !system.has_passed(epoch) {
        if clock.now() > deadline {
            let reason = DestroyRefusal::Busy;
            return Err(DestroyError::of(domain, reason));
        }
        spin_hint();
    }
    // SAFETY: the root came from `close` of this domain's table. The grace period is over. No
    // group is attached, and detaching waited for the unit to forget the entry, so no walker
    // reaches the table. The domain is consumed with its root, so there is no second drain.
    let drain = unsafe { Drain::new(root) };
    Ok(Teardown {
        core: domain.core,
        owner: domain.owner,
        rest: Some((drain, domain.held.lease)),
        tables: 0,
    })
}

/// Why a domain was not destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DestroyRefusal {
    /// Groups, or PASIDs of them, are attached, or were wedged while attached.
    #[error(
        "the domain is in use; groups or PASIDs that are attached to it or were never cleanly detached: {attachments}"
    )]
    Attached {
        /// How many.
        attachments: usize,
    },
    /// Nested domains stand on it.
    #[error("nested domains that stand on the domain, to be destroyed first: {children}")]
    HasChildren {
        /// How many.
        children: usize,
    },
    /// The CPU still reaches memory of the domain through values of the DMA API, or could.
    #[error(
        "buffers, mappings and devices of the domain's DMA API that are still alive, to be freed or dropped first: \
         {buffers}"
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
pub struct DestroyError<O: Owner, B: Backend, S: Shape<O, B> = Paging> {
    /// The domain.
    pub domain: Domain<O, B, S>,
    /// Why it was refused.
    pub reason: DestroyRefusal,
    /// One of the groups that are attached or parked, or were wedged while attached; `None` if it is none of these. More
    /// may come to light when this one is gone.
    pub group: Option<GroupId>,
}

impl<O: Owner, B: Backend, S: Shape<O, B>> DestroyError<O, B, S> {
    /// Where it is no group's doing.
    fn of(domain: Domain<O, B, S>, reason: DestroyRefusal) -> Self {
        let group = None;
        Self {
            domain,
            reason,
            group,
        }
    }

    /// Where so many groups are attached.
    pub(crate) fn attached(
        domain: Domain<O, B, S>,
        attachments: usize,
        group: Option<GroupId>,
    ) -> Self {
        let reason = DestroyRefusal::Attached { attachments };
        Self {
            group,
            ..Self::of(domain, reason)
        }
    }
}

impl<B: Backend> System<B> {
    /// A group that has entries of this domain.
    pub(crate) fn attached_to(&self, domain: DomainUid) -> Option<GroupId> {
        let registry = self.registry.lock();
        let mut bound = registry.bound.iter();
        let found = bound.find(|bound| bound.domain == domain)?;
        Some(found.group)
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Display for DestroyError<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.domain.uid(), self.reason)?;
        match self.group {
            Some(group) => write!(
                f,
                ", {group} among them: `detach` it, or `recover` it if it is wedged"
            ),
            None => Ok(()),
        }
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> fmt::Debug for DestroyError<O, B, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<O: Owner, B: Backend, S: Shape<O, B>> core::error::Error for DestroyError<O, B, S> {}

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

    /// Whether a device wrote the frames that the last step handed out, since that was last cleared; where units
    /// note that.
    pub fn is_written(&self) -> bool {
        let drain = self.rest.as_ref().map(|(drain, _)| drain);
        drain.is_some_and(Drain::is_written)
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
