//! Words of memory that walkers may read, as the driver has them: each of its accesses passes through the rig.
//!
//! Words are made in sheets, of one frame or of several in a row. As far as types say, who has a word has it for as long
//! as the machine lives, and a machine whose devices stay attached at the end of a test lives for ever. So sheets are
//! never freed: those of a machine that is retired or gone play the next one's frames. A word that outlives its machine all
//! the same is a word of nobody's, or of a frame of that machine, and never one of no memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use hashbrown::HashMap;
use hv_core::EntryCell;
use hv_core::sync::Ordering;

use crate::core::{Core, STEP_NANOS};
use crate::memory::{FRAME_BYTES, WORDS};

/// How many frames are reached at once at most: the largest table.
const TOGETHER: u64 = 16;

/// A word of a frame. The rig orders every access by its lock, and delays what walkers see of it.
pub struct RigCell {
    plays: &'static Mutex<Plays>,
    /// Which word of its sheet it is.
    index: u16,
}

/// Whose frames a sheet plays, and which: the address of its first word.
#[derive(Default)]
struct Plays {
    core: Weak<Core>,
    first: u64,
}

/// The words of some frames in a row.
#[derive(Clone, Copy)]
struct Sheet {
    plays: &'static Mutex<Plays>,
    cells: &'static [RigCell],
}

/// Sheets that play no machine's frames, by how many frames they are for.
static SPARE: Mutex<BTreeMap<u64, Vec<Sheet>>> = Mutex::new(BTreeMap::new());

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sheet {
    fn new(frames: u64) -> Self {
        let plays: &'static Mutex<Plays> = Box::leak(Box::default());
        let words = 0..(WORDS as u64 * frames) as u16;
        let cells = words.map(|index| RigCell { plays, index });
        let cells: Box<[RigCell]> = cells.collect();
        let cells = Box::leak(cells);
        Self { plays, cells }
    }

    /// One that plays nobody's frames yet.
    fn take(frames: u64) -> Self {
        let mut spare = locked(&SPARE);
        let found = spare.get_mut(&frames).and_then(Vec::pop);
        found.unwrap_or_else(|| Self::new(frames))
    }
}

/// The sheets of one machine, by first frame and count.
#[derive(Default)]
pub(crate) struct Sheets {
    played: HashMap<(u64, u64), Sheet>,
    /// For what is no frame, and for everything once the machine is retired: words that are read as zero, and take
    /// nothing.
    nowhere: Option<Sheet>,
    retired: bool,
}

impl Sheets {
    /// The words of frames in a row, which are memory of the machine or are not. `None` for more than the largest table
    /// has.
    pub(crate) fn of(
        &mut self,
        frame: u64,
        frames: u64,
        is_memory: bool,
        core: &Arc<Core>,
    ) -> Option<&'static [RigCell]> {
        if frames > TOGETHER {
            return None;
        }
        if self.retired || !is_memory {
            let nowhere = self.nowhere.get_or_insert_with(|| Sheet::take(TOGETHER));
            return nowhere.cells.get(..frames as usize * WORDS);
        }
        let sheet = self.played.entry((frame, frames)).or_insert_with(|| {
            let sheet = Sheet::take(frames);
            *locked(sheet.plays) = Plays {
                core: Arc::downgrade(core),
                first: frame * FRAME_BYTES,
            };
            sheet
        });
        Some(sheet.cells)
    }

    /// The machine is done: its sheets are for others.
    pub(crate) fn retire(&mut self) {
        self.retired = true;
        let mut spare = locked(&SPARE);
        for ((_, frames), sheet) in self.played.drain() {
            *locked(sheet.plays) = Plays::default();
            spare.entry(frames).or_default().push(sheet);
        }
        if let Some(sheet) = self.nowhere.take() {
            spare.entry(TOGETHER).or_default().push(sheet);
        }
    }
}

impl Drop for Sheets {
    fn drop(&mut self) {
        self.retire();
    }
}

impl RigCell {
    /// Does something with the word: gives what was there and what is to be there.
    fn change(&self, change: impl FnOnce(u64) -> Option<u64>) -> u64 {
        let Some((core, at)) = self.place() else {
            return 0;
        };
        core.let_in();
        let mut state = core.quiet();
        let old = state.bus.memory.load(at);
        let new = change(old);
        if new == Some(old) {
            // Zeros over zeros, mostly: nobody can tell, so nothing comes in between.
            return old;
        }
        state.happen(STEP_NANOS);
        if let Some(new) = new {
            state.acted();
            state.store(at, new);
            drop(state);
            core.give_way();
        }
        old
    }

    /// Whose word it is, and where.
    fn place(&self) -> Option<(Arc<Core>, u64)> {
        let plays = locked(self.plays);
        let core = plays.core.upgrade()?;
        Some((core, plays.first + u64::from(self.index) * 8))
    }
}

impl EntryCell for RigCell {
    fn load(&self, _order: Ordering) -> u64 {
        self.change(|_| None)
    }

    fn store(&self, word: u64, _order: Ordering) {
        // What was found on the way to this word may be another by now.
        if word != 0
            && let Some((core, _)) = self.place()
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
