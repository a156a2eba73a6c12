//! Pair by pair: what changes in how many steps, and that no mixture of a step is something that nobody meant.

use hv_core::PhysAddr;

use super::*;
use crate::spec::context::{ContextDescriptor, FirstStageTables, Half};
use crate::spec::granule::{Granule, OutputSize};
use crate::spec::id_registers::StallModel;
use crate::spec::stream_entry::{
    ContextTableFormat, FirstStageContexts, Regime, SecondStageShape, SecondStageTables,
    StreamOptions, WithoutSubstream,
};
use crate::spec::walk::Walk;
use crate::{Asid, Vmid};

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

fn contexts_of(table: u64, format: ContextTableFormat, log2: u8) -> FirstStageContexts {
    let without = WithoutSubstream::UseZero;
    FirstStageContexts::new(table, format, log2, without, Walk::Coherent).unwrap()
}

fn contexts(table: u64) -> FirstStageContexts {
    contexts_of(table, ContextTableFormat::Linear, 0)
}

fn substreams(table: u64, format: ContextTableFormat, log2: u8) -> StreamTableEntry {
    let contexts = contexts_of(table, format, log2);
    StreamTableEntry::first_stage(&contexts, Regime::El1, Vmid::new(9), &OPTIONS)
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
        (
            "stage 1, a page",
            substreams(0x7000_0000, ContextTableFormat::Linear, 6),
        ),
        (
            "stage 1, two levels",
            substreams(0x7200_0000, ContextTableFormat::TwoLevelsOfPages, 16),
        ),
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
        // The first substream of a stream, whose first descriptor stays where it is or is found another way.
        ("stage 1", "stage 1, a page", 1, true),
        ("stage 1", "stage 1, two levels", 1, true),
        ("stage 1, two levels", "stage 1", 1, true),
        ("stage 1, two levels", "abort", 2, true),
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

fn context(asid: u16, root: u64, output: OutputSize) -> [u64; WORDS] {
    let tables = FirstStageTables {
        asid: Asid::new(asid),
        lower: Half::new(Granule::Size4K, 48, PhysAddr::new(root)),
        upper: None,
        output,
        attributes: 0xff44_04ff,
        walk: Walk::Coherent,
        on_fault: OPTIONS.on_fault,
        dirty: None,
    };
    ContextDescriptor::new(&tables).words()
}

/// Descriptors by name. The second and third are not valid but have the words of a valid one, as after an unbind.
fn contexts_by_name() -> Vec<(&'static str, [u64; WORDS])> {
    let one = context(7, 0x4000_1000, OutputSize::Bits44);
    let [_, rest @ ..] = one;
    let mut down = one;
    down[0] = 0;
    let mut half_down = one;
    half_down[0] &= !(1 << 31);
    let mut unrecorded = one;
    unrecorded[0] &= !(1 << 45);
    let mut unread = [0; WORDS];
    unread[1..].copy_from_slice(&rest.map(|word| !word));
    vec![
        ("not valid", [0; WORDS]),
        ("taken down", down),
        ("V cleared", half_down),
        ("not valid, other words", unread),
        ("valid", one),
        ("without records", unrecorded),
        ("another id", context(8, 0x4000_1000, OutputSize::Bits44)),
        ("another root", context(7, 0x5000_1000, OutputSize::Bits44)),
        (
            "another domain",
            context(9, 0x6000_1000, OutputSize::Bits40),
        ),
    ]
}

/// What a unit does by a descriptor.
fn translation(words: [u64; WORDS]) -> [u64; WORDS] {
    let used = context::used_bits(&words);
    std::array::from_fn(|word| words[word] & used[word])
}

#[test]
fn every_mixture_of_every_step_is_a_descriptor_that_was_meant() {
    for (from_name, from) in contexts_by_name() {
        for (to_name, to) in contexts_by_name() {
            let update = Update::of_context(from, to);
            let mut words = from;
            for step in update.steps() {
                for mixture in mixtures(words, step) {
                    let does = translation(mixture);
                    let meant = does == translation(from)
                        || does == translation(to)
                        || !update.is_hitless() && !context::is_valid(&mixture);
                    assert!(meant, "{from_name} to {to_name}: {mixture:x?}");
                }
                for (word, value) in &step.stores {
                    words[*word] = *value;
                }
            }
            assert_eq!(words, to, "{from_name} to {to_name} arrives");
        }
    }
}

/// What a unit may hold that keeps words of before the last sync it was told of: with a sync behind each step nothing of
/// an older step is left, so a mixture over two steps is what a driver without those syncs would show.
#[test]
fn without_the_sync_between_a_mixture_is_a_descriptor_that_nobody_meant() {
    let to = context(7, 0x4000_1000, OutputSize::Bits44);
    let update = Update::of_context([0; WORDS], to);
    let all = Step {
        stores: update
            .steps()
            .iter()
            .flat_map(|step| step.stores.clone())
            .collect(),
    };
    let torn = mixtures([0; WORDS], &all).into_iter().any(|mixture| {
        let does = translation(mixture);
        does != translation([0; WORDS]) && does != translation(to)
    });
    assert!(torn);
}

/// The second table in the module's documentation.
#[test]
fn descriptors_take_as_many_syncs_as_they_must_and_are_hitless_where_they_can_be() {
    let all = contexts_by_name();
    let named = |name: &str| all.iter().find(|(known, _)| *known == name).unwrap().1;
    let expected = [
        ("not valid", "not valid", 0, true),
        ("not valid", "valid", 2, true),
        ("taken down", "valid", 1, true),
        ("V cleared", "valid", 1, true),
        ("taken down", "another id", 1, true),
        ("taken down", "another root", 2, true),
        ("not valid, other words", "valid", 2, true),
        ("valid", "taken down", 1, true),
        ("valid", "not valid", 2, true),
        ("valid", "without records", 1, true),
        ("valid", "another id", 1, true),
        ("valid", "another root", 1, true),
        ("valid", "another domain", 3, false),
    ];
    for (from, to, syncs, hitless) in expected {
        let update = Update::of_context(named(from), named(to));
        let found = (update.steps().len(), update.is_hitless());
        assert_eq!(found, (syncs, hitless), "{from} to {to}: {update:x?}");
    }
}

#[test]
fn a_descriptor_becomes_valid_by_its_last_store_and_alone() {
    let to = context(7, 0x4000_1000, OutputSize::Bits44);
    for (name, from) in contexts_by_name() {
        if context::is_valid(&from) {
            continue;
        }
        let update = Update::of_context(from, to);
        let (last, before) = update.steps().split_last().unwrap();
        assert_eq!(last.stores[..], [(0, to[0])], "{name}");
        let early = before.iter().flat_map(|step| &step.stores);
        for (word, _) in early {
            assert_ne!(*word, 0, "{name}");
        }
    }
}

#[test]
fn recording_is_switched_in_one_store() {
    let on = second(1, 0x8000_0000);
    let mut words = on.words();
    words[2] &= !(1 << 58);
    assert_ne!(words, on.words());
    let update = Update::between(on.words(), words);
    assert!(update.is_hitless());
    assert_eq!(update.steps().len(), 1);
    assert_eq!(update.steps()[0].stores[..], [(2, words[2])]);
}
