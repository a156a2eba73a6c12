//! How a stream table entry, or a context descriptor, becomes another one: which words are stored, and after which the unit
//! has to be told.
//!
//! A unit reads the words of an entry in any order, each whole, keeps what it read, and goes on with it until it is
//! told to forget the entry and has said that it did. So a change of one word is seen whole or not at all, and words that
//! the present configuration does not look at may change at any time. [`Update::plan`] makes of that, with a sync behind each
//! step:
//!
//! * Words that decide differ in one at most: what is unused, then the one word, then what has become unused. Empty steps fall
//!   away. A request in between goes by the old entry or by the new one.
//! * They differ in more: word 0, so that nothing passes; the others; word 0. A request in between is aborted.
//!
//! IHI 0070, 3.21.3.1, recommends the same. Source of the rule: Linux `arm_smmu_write_entry`, which quotes IHI 0070, 3.21.3;
//! the way over abort instead of over an entry that is not valid is ours, since the latter fills the event queue.
#![doc = include_str!("entry_update/pairs.md")]

use arrayvec::ArrayVec;

use crate::spec::context;
use crate::spec::stream_entry::{StreamTableEntry, WORDS, used_bits};

/// Stores that may be seen in any order, and behind which the unit has to be told.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Step {
    /// The word's number, and what it becomes.
    pub stores: ArrayVec<(usize, u64), WORDS>,
}

/// What an update has to know of a structure.
#[derive(Clone, Copy)]
struct Kind {
    /// The bits that a unit looks at.
    used: fn(&[u64; WORDS]) -> [u64; WORDS],
    /// The word 0 with which nothing passes, whatever the other words say.
    stopped: u64,
}

impl Kind {
    const STREAM: Self = Self {
        used: used_bits,
        stopped: {
            let [abort, ..] = StreamTableEntry::ABORT.words();
            abort
        },
    };
    const CONTEXT: Self = Self {
        used: context::used_bits,
        stopped: {
            let [invalid, ..] = context::ContextDescriptor::INVALID.words();
            invalid
        },
    };
}

/// How an entry becomes another one.
///
/// # Invariants
/// Each step makes an entry out of the last one's so that a unit which mixes old and new words of the step sees the old
/// configuration or the new one, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    steps: ArrayVec<Step, 3>,
    is_hitless: bool,
}

impl Update {
    /// The way from what stands in memory to `target`.
    pub fn plan(from: &[u64; WORDS], target: &StreamTableEntry) -> Self {
        Self::between(*from, target.words())
    }

    /// The way from some words of an entry to others.
    pub(crate) fn between(old: [u64; WORDS], new: [u64; WORDS]) -> Self {
        Self::of_kind(Kind::STREAM, old, new)
    }

    /// The way from some words of a context descriptor to others.
    pub(crate) fn of_context(old: [u64; WORDS], new: [u64; WORDS]) -> Self {
        Self::of_kind(Kind::CONTEXT, old, new)
    }

    fn of_kind(kind: Kind, old: [u64; WORDS], new: [u64; WORDS]) -> Self {
        let (old_used, new_used) = ((kind.used)(&old), (kind.used)(&new));
        // What it becomes when only bits that the present configuration does not look at are changed.
        let mut prepared = old;
        for ((word, used), target) in prepared.iter_mut().zip(old_used).zip(new) {
            *word = *word & used | target & !used;
        }
        let mut critical = (0..WORDS).filter(|word| {
            let (Some(have), Some(want)) = (prepared.get(*word), new.get(*word)) else {
                return false;
            };
            let looked_at = new_used.get(*word).copied().unwrap_or_default();
            (have ^ want) & looked_at != 0
        });
        let mut steps = ArrayVec::new();
        let mut push = |step: Step| {
            if !step.stores.is_empty() {
                // There are at most three.
                let _ = steps.try_push(step);
            }
        };
        let (first, second) = (critical.next(), critical.next());
        match (first, second) {
            (one, None) => {
                // The word that decides is left for last, so that it changes in one store.
                let mut unused = prepared;
                if let Some((at, (word, before))) =
                    one.and_then(|at| Some((at, (unused.get_mut(at)?, old.get(at)?))))
                {
                    *word = *before;
                    let mut decided = unused;
                    if let (Some(word), Some(value)) = (decided.get_mut(at), new.get(at)) {
                        *word = *value;
                    }
                    push(difference(&old, &unused));
                    push(difference(&unused, &decided));
                    push(difference(&decided, &new));
                } else {
                    push(difference(&old, &prepared));
                    push(difference(&prepared, &new));
                }
                Self {
                    steps,
                    is_hitless: true,
                }
            }
            (_, Some(_)) => {
                let mut stopped = old;
                let mut ready = new;
                for words in [&mut stopped, &mut ready] {
                    let [word, ..] = words;
                    *word = kind.stopped;
                }
                push(difference(&old, &stopped));
                push(difference(&stopped, &ready));
                push(difference(&ready, &new));
                Self {
                    steps,
                    is_hitless: false,
                }
            }
        }
    }

    /// The steps, in order. The unit is told behind each, and has said that it forgot before the next one.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether a request in between goes by the old entry or the new one; otherwise it may be aborted.
    pub const fn is_hitless(&self) -> bool {
        self.is_hitless
    }
}

/// The stores that make `to` of `from`. Word 0, where it is one of several, comes last.
fn difference(from: &[u64; WORDS], to: &[u64; WORDS]) -> Step {
    let mut stores = ArrayVec::new();
    for (word, (old, new)) in from.iter().zip(to).enumerate().rev() {
        if old != new {
            // There is one for each word at most.
            let _ = stores.try_push((word, *new));
        }
    }
    Step { stores }
}

#[cfg(test)]
mod tests;
