//! Giving a domain's empty tables back while it runs.

#![expect(
    unsafe_code,
    reason = "tells the table that a flush of its empty tables has completed"
)]

use core::sync::atomic::Ordering as MachineOrdering;

use hv_core::Owner;
use hv_core::fault::Fault;
use hv_core::platform::Clock;
use hv_core::sync::spin_hint;
use thiserror::Error;

use crate::backend::{Backend, FlushDepth, FlushSpan};
use crate::domain::{Domain, DomainCore};
use crate::flush::FlushError;
use crate::shape::Pages;
use crate::table::{BATCH, ReclaimStep};

/// A domain with no more table pages than this is left alone by unmaps.
pub(crate) const RECLAIM_FROM: u64 = 64;
/// How many steps one unmap helps with.
const STEPS_AT_ONCE: usize = 4;

/// Why not all empty tables came back. Those that did not are empty tables as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReclaimError {
    /// A unit did not complete the flush.
    #[error(transparent)]
    Flush(#[from] FlushError),
    /// A CPU walked in the domain's tables, or ran a step of its own, all the time.
    #[error("a CPU did not leave the domain's tables in time")]
    Busy,
}

impl<O: Owner, B: Backend, S: Pages<O, B>> Domain<O, B, S> {
    /// Gives every table back that maps nothing, and waits for that: for CPUs that walk in them, and for
    /// a flush for each batch. Gives how many fewer table pages the domain has.
    ///
    /// `flush` of pending values helps with this by itself when there are many tables, so that their number
    /// stays in proportion; this call is for the moment when a domain has little left to do. It takes no more batches
    /// than the tables of its beginning can need, so others who go on emptying tables do not keep it.
    ///
    /// # Errors
    /// [`ReclaimError`].
    pub fn reclaim(&self) -> Result<u64, ReclaimError> {
        let core = &self.core;
        let before = core.table.table_pages();
        core.table.reclaim_rewind();
        let clock = core.system.backend.platform();
        // Each batch has its own time, in which the wait for a unit is not one for CPUs. A sweep takes
        // full batches but for its last; there is a sweep for each level of tables.
        let levels = u64::from(core.table.geometry().root.number());
        let mut batches = before / BATCH as u64 + levels;
        let mut deadline = clock.now().after(core.system.wait);
        loop {
            match core.reclaim_step()? {
                ReclaimStep::Done => break,
                // Others empty tables as fast as they come back.
                ReclaimStep::Flush { .. } if batches == 0 => break,
                ReclaimStep::Flush { .. } => {
                    batches -= 1;
                    deadline = clock.now().after(core.system.wait);
                }
                _ if clock.now() > deadline => return Err(ReclaimError::Busy),
                _ => {}
            }
            spin_hint();
        }
        Ok(before.saturating_sub(core.table.table_pages()))
    }
}

/// What a bounded reclaim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reclaimed {
    /// No table of its beginning is empty any more.
    All,
    /// The steps were used up: call again.
    Some,
}

impl<B: Backend> DomainCore<B> {
    /// Gives empty tables back with no more than `steps` steps, each of which looks at a bounded number of tables.
    /// Goes on where the last one stopped. Waits for no CPU longer than the steps take.
    ///
    /// # Errors
    /// [`FlushError`]; what was unlinked is linked again.
    pub(crate) fn reclaim_some(&self, steps: u64) -> Result<Reclaimed, FlushError> {
        for _ in 0..steps {
            if self.reclaim_step()? == ReclaimStep::Done {
                return Ok(Reclaimed::All);
            }
            spin_hint();
        }
        Ok(Reclaimed::Some)
    }

    /// One step, with the flush that it may ask for: [`ReclaimStep::Flush`] says that it completed, and that
    /// this or another CPU's was taken.
    fn reclaim_step(&self) -> Result<ReclaimStep, FlushError> {
        let quiescence = &self.system.quiescence;
        let cpus = self.system.backend.platform();
        // This CPU's stay is not what the grace period is for.
        quiescence.pass(cpus);
        let step = self.table.reclaim(quiescence, cpus);
        match step {
            ReclaimStep::Flush { attempt, span } => {
                let depth = match Fault::ReclaimLeafHint.is_on() {
                    true => FlushDepth::Leaves,
                    false => FlushDepth::WalkCaches,
                };
                // Begun after the step that asked for it, on every unit that the domain reaches.
                let flushed = match Fault::SkipReclaimFlush.is_on() {
                    true => Ok(()),
                    false => self.flush(FlushSpan::Pages(span), depth).map(drop),
                };
                match flushed {
                    Ok(()) => {
                        // SAFETY: the flush that was asked for was begun after that, and has completed
                        // on every unit.
                        let taken =
                            unsafe { self.table.reclaim_flushed(quiescence, cpus, attempt) };
                        Ok(match taken {
                            ReclaimStep::Again => step,
                            other => other,
                        })
                    }
                    Err(error) => {
                        // Whoever runs a step now finds the same tables and fails by itself.
                        self.table.reclaim_cancel(quiescence, cpus, attempt);
                        Err(error)
                    }
                }
            }
            ReclaimStep::Done | ReclaimStep::Swept => {
                // What one look over all tables has left is mostly in use.
                let kept = self.table.table_pages();
                // ORDERING: Relaxed, a figure.
                self.reclaim_from
                    .store(2 * kept + RECLAIM_FROM, MachineOrdering::Relaxed);
                Ok(step)
            }
            ReclaimStep::Busy | ReclaimStep::Again => Ok(step),
        }
    }

    /// Helps with reclaiming when tables have become many. Waits for no CPU; a failed flush is for the
    /// next caller to find out.
    pub(crate) fn assist_reclaim(&self) {
        // ORDERING: Relaxed, a figure.
        if self.table.table_pages() <= self.reclaim_from.load(MachineOrdering::Relaxed) {
            return;
        }
        // One CPU at a time: the others would ask for the same flush.
        let _ = self.assist.with(|()| {
            // A look that was begun goes on with every unmap to its end, which sets the figure anew. If it
            // stopped below the figure, tables would come as fast as it goes, and it would double the figure
            // for what it found then.
            // ORDERING: Relaxed, a figure.
            self.reclaim_from.store(0, MachineOrdering::Relaxed);
            for _ in 0..STEPS_AT_ONCE {
                match self.reclaim_step() {
                    Ok(ReclaimStep::Again | ReclaimStep::Flush { .. }) => {}
                    Ok(ReclaimStep::Busy | ReclaimStep::Done | ReclaimStep::Swept) => return,
                    Err(_) => {
                        // Not with every unmap on a unit that is busy or wedged.
                        let later = self.table.table_pages() + RECLAIM_FROM;
                        // ORDERING: Relaxed, a figure.
                        self.reclaim_from.store(later, MachineOrdering::Relaxed);
                        return;
                    }
                }
            }
        });
    }
}
