//! How a stream table entry becomes another one: which words are stored, and after which the unit has to be told.
//!
//! A unit reads the words of an entry in any order, each whole, keeps what it read, and goes on with it until it is
//! told to forget the entry and has said that it did. So a change of one word is seen whole or not at all, and words that
//! the present configuration does not look at may change at any time. [`Update::plan`] makes of that:
//!
//! | from → to | steps | syncs | a request in between |
//! |---|---|---|---|
//! | an entry → the same | none | 0 | goes on |
//! | words that decide differ in one word only (abort ↔ second stage, abort ↔ bypass, a bit of one word) | unused words, the one word, unused words to zero; empty steps fall away | 1 to 3 | goes by the old entry or the new one |
//! | words that decide differ in more (second stage → another one, stage 1 ↔ stage 2) | abort; the other words; word 0 | 3 | is aborted, and nothing is recorded |
//!
//! The table is pinned by this module's tests, pair by pair. Source of the rule: Linux `arm_smmu_write_entry`, which
//! quotes IHI 0070, 3.21.3; the way over abort instead of over an entry that is not valid is ours, since the latter
//! fills the event queue.

use arrayvec::ArrayVec;

use crate::spec::stream_entry::{StreamTableEntry, WORDS, used_bits};

/// Stores that may be seen in any order, and behind which the unit has to be told.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Step {
    /// The word's number, and what it becomes.
    pub stores: ArrayVec<(usize, u64), WORDS>,
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

    /// The way from some words to others.
    pub(crate) fn between(old: [u64; WORDS], new: [u64; WORDS]) -> Self {
        let (old_used, new_used) = (used_bits(&old), used_bits(&new));
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
                let [abort, ..] = StreamTableEntry::ABORT.words();
                let mut stopped = old;
                let mut ready = new;
                for words in [&mut stopped, &mut ready] {
                    let [word, ..] = words;
                    *word = abort;
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
mod tests {
    use hv_core::PhysAddr;

    use super::*;
    use crate::Vmid;
    use crate::spec::granule::{Granule, OutputSize};
    use crate::spec::id_registers::StallModel;
    use crate::spec::stream_entry::{
        ContextTableFormat, FirstStageContexts, Regime, SecondStageShape, SecondStageTables,
        StreamOptions, WithoutSubstream, without_records,
    };
    use crate::spec::walk::Walk;

    const OPTIONS: StreamOptions = StreamOptions {
        on_fault: match StallModel::Never.terminate() {
            Some(answer) => answer,
            None => unreachable!(),
        },
        translation_requests: None,
        merge_events: true,
    };

    fn tables(vmid: u16, root: u64) -> SecondStageTables {
        let shape = SecondStageShape::new(Granule::Size4K, 1, 39, OutputSize::Bits44).unwrap();
        SecondStageTables::new(Vmid::new(vmid), PhysAddr::new(root), shape, Walk::Coherent).unwrap()
    }

    fn contexts(table: u64) -> FirstStageContexts {
        let format = ContextTableFormat::Linear;
        FirstStageContexts::new(
            table,
            format,
            0,
            WithoutSubstream::Terminate,
            Walk::Coherent,
        )
        .unwrap()
    }

    fn second(vmid: u16, root: u64) -> StreamTableEntry {
        StreamTableEntry::second_stage(&tables(vmid, root), &OPTIONS)
    }

    fn first(table: u64) -> StreamTableEntry {
        StreamTableEntry::first_stage(&contexts(table), Regime::El1, Vmid::new(9), &OPTIONS)
    }

    fn nested(table: u64, vmid: u16) -> StreamTableEntry {
        StreamTableEntry::nested(&contexts(table), &tables(vmid, 0x8000_0000), &OPTIONS)
    }

    fn all() -> Vec<(&'static str, StreamTableEntry)> {
        vec![
            ("invalid", StreamTableEntry::INVALID),
            ("abort", StreamTableEntry::ABORT),
            ("bypass", StreamTableEntry::bypass(true)),
            ("stage 2", second(1, 0x8000_0000)),
            ("other stage 2", second(2, 0x9000_0000)),
            ("stage 1", first(0x7000_0000)),
            ("other stage 1", first(0x7100_0000)),
            ("nested", nested(0x7000_0000, 1)),
        ]
    }

    /// What a unit does by an entry: the words that it looks at.
    fn behaviour(words: [u64; WORDS]) -> [u64; WORDS] {
        let used = used_bits(&words);
        std::array::from_fn(|word| words[word] & used[word])
    }

    /// All that a unit can hold while the stores of a step arrive in any order.
    fn mixtures(before: [u64; WORDS], step: &Step) -> Vec<[u64; WORDS]> {
        (0..1u32 << step.stores.len())
            .map(|chosen| {
                let mut words = before;
                for (bit, (word, value)) in step.stores.iter().enumerate() {
                    if chosen >> bit & 1 != 0 {
                        words[*word] = *value;
                    }
                }
                words
            })
            .collect()
    }

    #[test]
    fn every_mixture_of_every_step_is_an_entry_that_was_meant() {
        let abort = behaviour(StreamTableEntry::ABORT.words());
        for (from_name, from) in all() {
            for (to_name, to) in all() {
                let update = Update::plan(&from.words(), &to);
                let mut words = from.words();
                for step in update.steps() {
                    for mixture in mixtures(words, step) {
                        let does = behaviour(mixture);
                        let meant = does == behaviour(from.words())
                            || does == behaviour(to.words())
                            || !update.is_hitless() && does == abort;
                        assert!(meant, "{from_name} to {to_name}: {mixture:x?}");
                    }
                    for (word, value) in &step.stores {
                        words[*word] = *value;
                    }
                }
                assert_eq!(words, to.words(), "{from_name} to {to_name} arrives");
            }
        }
    }

    /// The table in the module's documentation: syncs, and whether a request in between goes on.
    #[test]
    fn updates_take_as_many_syncs_as_they_must_and_are_hitless_where_they_can_be() {
        let table = |name: &str| {
            all()
                .into_iter()
                .find(|(known, _)| *known == name)
                .unwrap()
                .1
        };
        let expected = [
            ("abort", "abort", 0, true),
            ("abort", "stage 2", 2, true),
            ("stage 2", "abort", 2, true),
            ("abort", "bypass", 2, true),
            ("bypass", "abort", 2, true),
            ("abort", "stage 1", 2, true),
            ("stage 1", "abort", 2, true),
            ("abort", "nested", 2, true),
            ("bypass", "stage 2", 2, true),
            ("invalid", "stage 2", 2, true),
            ("invalid", "abort", 1, true),
            ("stage 2", "other stage 2", 3, false),
            ("stage 1", "other stage 1", 1, true),
            ("stage 1", "stage 2", 3, false),
            ("stage 2", "nested", 2, true),
            ("nested", "stage 2", 2, true),
            ("nested", "stage 1", 3, false),
        ];
        for (from, to, syncs, hitless) in expected {
            let update = Update::plan(&table(from).words(), &table(to));
            let found = (update.steps().len(), update.is_hitless());
            assert_eq!(found, (syncs, hitless), "{from} to {to}: {update:x?}");
        }
    }

    #[test]
    fn recording_is_switched_in_one_store() {
        let on = second(1, 0x8000_0000);
        let words = without_records(&on.words()).unwrap();
        assert_eq!(words[2], on.words()[2] & !(1 << 58));
        let update = Update::between(on.words(), words);
        assert!(update.is_hitless());
        assert_eq!(update.steps().len(), 1);
        assert_eq!(update.steps()[0].stores[..], [(2, words[2])]);
    }
}
