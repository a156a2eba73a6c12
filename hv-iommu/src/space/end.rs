//! The end of an address space.

use core::fmt;

use hv_core::{GpaRange, GuestMemory, Shared, UserManaged};

use super::map::unpin;
use super::{AddressSpace, TableQuota};
use crate::backend::Backend;
use crate::destroy::{DestroyError, DestroyRefusal, Teardown, TeardownStep};
use crate::shape::Pages;

/// How many table words are looked at at once.
const WORDS_AT_ONCE: usize = 4096;

impl<B: Backend, S: Pages<UserManaged, B>> AddressSpace<B, S> {
    /// Ends the space with all that it maps. Mappings do not keep it; devices do.
    ///
    /// # Errors
    /// The space, while a group is attached to its domain, and for what else keeps a domain.
    pub fn destroy(self) -> Result<SpaceTeardown<B>, (Self, DestroyRefusal)> {
        let Self {
            domain,
            areas,
            allowed,
            reserved,
            quota,
            charged,
            charged_mappings,
            emptied,
            promised_tables,
        } = self;
        match domain.destroy() {
            Ok(teardown) => {
                // They take no heap any more: the entries of the tables remain the record.
                drop(areas);
                if let Some(quota) = &quota {
                    quota.give_back_mappings(charged_mappings);
                }
                Ok(SpaceTeardown {
                    teardown,
                    quota,
                    charged,
                })
            }
            Err(DestroyError { domain, reason, .. }) => {
                let space = Self {
                    domain,
                    areas,
                    allowed,
                    reserved,
                    quota,
                    charged,
                    charged_mappings,
                    emptied,
                    promised_tables,
                };
                Err((space, reason))
            }
        }
    }
}

/// An ended address space, whose memory and tables come back step by step.
#[must_use = "pins and tables come back only by going through it"]
pub struct SpaceTeardown<B: Backend> {
    teardown: Teardown<UserManaged, B>,
    quota: Option<Shared<TableQuota>>,
    charged: u64,
}

impl<B: Backend> SpaceTeardown<B> {
    /// Looks at no more than `words` table words, and gives pins back to the guest's memory. Whether that was all.
    pub fn step(&mut self, memory: &GuestMemory, words: usize) -> bool {
        self.step_noting(memory, words, &mut |_| ())
    }

    /// As [`step`](Self::step), and tells of the guest's pages that devices wrote since that was last cleared: the
    /// last chance to hear of it.
    pub fn step_noting(
        &mut self,
        memory: &GuestMemory,
        words: usize,
        written: &mut dyn FnMut(GpaRange),
    ) -> bool {
        match self.teardown.step(words) {
            TeardownStep::Frames(run) => {
                if self.teardown.is_written()
                    && let Some(gpas) = memory.place_of(run.range())
                {
                    written(gpas);
                }
                unpin(memory, run);
                false
            }
            TeardownStep::More => false,
            TeardownStep::Done => {
                if let Some(quota) = self.quota.take() {
                    quota.give_back(self.charged);
                }
                true
            }
        }
    }

    /// All steps.
    pub fn finish(mut self, memory: &GuestMemory) {
        while !self.step(memory, WORDS_AT_ONCE) {}
    }
}

impl<B: Backend> fmt::Debug for SpaceTeardown<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.teardown, f)
    }
}
