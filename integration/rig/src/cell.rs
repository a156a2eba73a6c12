//! One word of memory that walkers may read: each access of the driver passes through the rig.

use std::sync::Weak;

use hv_core::EntryCell;
use hv_core::sync::Ordering;

use crate::core::{Core, STEP_NANOS};

/// A word of a frame. The rig orders every access by its lock, and delays what walkers see of it.
pub struct RigCell {
    pub(crate) at: u64,
    pub(crate) core: Weak<Core>,
}

impl RigCell {
    /// Does something with the word: gives what was there and what is to be there.
    fn change(&self, change: impl FnOnce(u64) -> Option<u64>) -> u64 {
        let Some(core) = self.core.upgrade() else {
            return 0;
        };
        core.let_in();
        let mut state = core.quiet();
        let old = state.bus.memory.load(self.at);
        let new = change(old);
        if new == Some(old) {
            // Zeros over zeros, mostly: nobody can tell, so nothing comes in between.
            return old;
        }
        state.happen(STEP_NANOS);
        if let Some(new) = new {
            state.acted();
            state.store(self.at, new);
            drop(state);
            core.give_way();
        }
        old
    }
}

impl EntryCell for RigCell {
    fn load(&self, _order: Ordering) -> u64 {
        self.change(|_| None)
    }

    fn store(&self, word: u64, _order: Ordering) {
        // What was found on the way to this word may be another by now.
        if word != 0
            && let Some(core) = self.core.upgrade()
        {
            core.give_way();
        }
        self.change(|_| Some(word));
    }

    fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        _success: Ordering,
        _failure: Ordering,
    ) -> Result<u64, u64> {
        let old = self.change(|old| (old == current).then_some(new));
        if old == current { Ok(old) } else { Err(old) }
    }

    fn fetch_or(&self, bits: u64, _order: Ordering) -> u64 {
        self.change(|old| Some(old | bits))
    }

    fn fetch_and(&self, bits: u64, _order: Ordering) -> u64 {
        self.change(|old| Some(old & bits))
    }

    fn swap(&self, word: u64, _order: Ordering) -> u64 {
        self.change(|_| Some(word))
    }
}
