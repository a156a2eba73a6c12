//! Pair by pair: what changes in how many steps, and that no mixture of a step is something that nobody meant.

use hv_core::PhysAddr;

use super::*;
use crate::spec::context::{ContextDescriptor, FirstStageTables, Half};
use crate::spec::granule::{Granule, OutputSize};
use crate::spec::id_registers::{Idr0, StallModel};
use crate::spec::stream_entry::{
    ContextTableFormat, FirstStageContexts, Regime, SecondStageShape, SecondStageTables,
    StreamOptions, WithoutSubstream, asking,
};
use crate::spec::walk::Walk;
use crate::{Asid, Vmid};

/// The words of an entry.
type Words = [u64; WORDS];
/// The module's documentation.
const PAIRS: &str = include_str!("pairs.md");

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
    without(WithoutSubstream::UseZero, table, format, log2)
}

fn without(
    without: WithoutSubstream,
    table: u64,
    format: ContextTableFormat,
    log2: u8,
) -> FirstStageContexts {
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
    let parent = tables(vmid, u64::from(vmid) * 0x1000_0000 + 0x7000_0000);
    StreamTableEntry::nested(&contexts(table), &parent, &OPTIONS)
}

/// Entries that go by no substream do something else with requests that have none: one of the kinds that have a first stage.
fn nested_without(table: u64, of: WithoutSubstream) -> StreamTableEntry {
    let contexts = without(of, table, ContextTableFormat::Linear, 4);
    StreamTableEntry::nested(&contexts, &tables(1, 0x8000_0000), &OPTIONS)
}

/// The kinds of entries, by the names of the module's first table: the same second stage for each parent.
fn kinds() -> Vec<(&'static str, Words)> {
    let two_levels = ContextTableFormat::TwoLevelsOfPages;
    vec![
        ("invalid", StreamTableEntry::INVALID),
        ("abort", StreamTableEntry::ABORT),
        ("bypass", StreamTableEntry::bypass(true)),
        ("S1", first(0x7000_0000)),
        ("other S1", first(0x7100_0000)),
        (
            "S1, page",
            substreams(0x7000_0000, ContextTableFormat::Linear, 6),
        ),
        ("S1, levels", substreams(0x7200_0000, two_levels, 16)),
        ("S2", second(1, 0x8000_0000)),
        ("other S2", second(2, 0x9000_0000)),
        ("nested", nested(0x7000_0000, 1)),
        ("other user", nested(0x7100_0000, 1)),
        (
            "other S1DSS",
            nested_without(0x7100_0000, WithoutSubstream::Terminate),
        ),
        ("other parent", nested(0x7000_0000, 2)),
    ]
    .into_iter()
    .map(|(name, entry)| (name, entry.words()))
    .collect()
}

/// An entry of one kind, and what it is with one thing of it changed.
type Toggled = (&'static str, Words, Vec<(&'static str, Option<Words>)>);

/// What is changed within a kind, by the names of the module's second table; `None` where the kind does not have it.
fn toggles() -> Vec<Toggled> {
    let asks = Idr0::new().with_ats(true).translation_requests();
    let kinds: [(_, Option<(_, _)>); 5] = [
        ("bypass", None),
        ("S1", Some((true, false))),
        ("S2", Some((false, true))),
        ("nested", Some((true, true))),
        ("nested, S1DSS 1", Some((true, true))),
    ];
    let entry = |name: &str| {
        let kept = match name {
            "bypass" => StreamTableEntry::bypass(true),
            "S1" => substreams(0x7000_0000, ContextTableFormat::Linear, 6),
            "S2" => second(1, 0x8000_0000),
            "nested" => nested_without(0x7000_0000, WithoutSubstream::UseZero),
            _ => nested_without(0x7000_0000, WithoutSubstream::Bypass),
        };
        kept.words()
    };
    let with = |words: Words, word: usize, bits: u64| {
        let mut words = words;
        words[word] ^= bits;
        words
    };
    let of = |(name, stages): (&'static str, Option<(bool, bool)>)| {
        let (words, (first, second)) = (entry(name), stages.unwrap_or_default());
        let changed = vec![
            ("MEV", Some(with(words, 1, 1 << 19))),
            ("EATS", stages.map(|_| asking(&words, asks))),
            ("S1DSS", first.then(|| with(words, 1, words[1] & 0b11))),
            ("S1CDMax", first.then(|| with(words, 0, 1 << 60))),
            ("S2R", second.then(|| with(words, 2, 1 << 58))),
            ("S2FWB", second.then(|| with(words, 1, 1 << 25))),
            ("S2HD", second.then(|| with(words, 2, 3 << 55))),
            ("S2TTB", second.then(|| with(words, 3, 1 << 20))),
        ];
        (name, words, changed)
    };
    kinds.into_iter().map(of).collect()
}

/// All entries of both tables.
fn all() -> Vec<(String, Words)> {
    let mut all: Vec<_> = kinds()
        .into_iter()
        .map(|(name, words)| (name.to_owned(), words))
        .collect();
    for (kind, words, changed) in toggles() {
        all.push((kind.to_owned(), words));
        for (what, changed) in changed {
            all.extend(changed.map(|words| (format!("{kind} with other {what}"), words)));
        }
    }
    all
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
            let update = Update::between(from, to);
            let mut words = from;
            for step in update.steps() {
                for mixture in mixtures(words, step) {
                    let does = behaviour(mixture);
                    let meant = does == behaviour(from)
                        || does == behaviour(to)
                        || !update.is_hitless() && does == abort;
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

/// What an update takes, as the tables have it.
fn cost(update: &Update) -> String {
    let syncs = update.steps().len();
    match update.is_hitless() {
        true => syncs.to_string(),
        false => format!("{syncs} gap"),
    }
}

/// A table of Markdown with columns of one width each.
fn table(head: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let width = |column: usize| {
        let all = std::iter::once(&head).chain(&rows);
        all.map(|row| row[column].len()).max().unwrap()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let rows: String = rows.iter().map(|row| line(row)).collect();
    line(&head) + &line(&rule) + &rows
}

/// Each pair of these, by what `update` takes.
fn pairs(named: &[(&str, Words)], update: fn(Words, Words) -> Update) -> String {
    let names = named.iter().map(|(name, _)| (*name).to_owned());
    let head = std::iter::once("from \\ to".to_owned())
        .chain(names)
        .collect();
    let row = |(name, from): &(&str, Words)| {
        let to = named.iter().map(|(_, to)| cost(&update(*from, *to)));
        std::iter::once((*name).to_owned()).chain(to).collect()
    };
    table(head, named.iter().map(row).collect())
}

/// What is changed within a kind, and back.
fn changes() -> String {
    let all = toggles();
    let names = all[0].2.iter().map(|(what, _)| (*what).to_owned());
    let head = std::iter::once("within".to_owned()).chain(names).collect();
    let row = |(kind, words, changed): &Toggled| {
        let cell = |changed: &Option<Words>| match changed {
            None => String::new(),
            Some(changed) => {
                let forth = cost(&Update::between(*words, *changed));
                let back = cost(&Update::between(*changed, *words));
                match forth == back {
                    true => forth,
                    false => format!("{forth}, back {back}"),
                }
            }
        };
        let cells = changed.iter().map(|(_, changed)| cell(changed));
        std::iter::once((*kind).to_owned()).chain(cells).collect()
    };
    table(head, all.iter().map(row).collect())
}

/// The tables in the module's documentation are what updates take, pair by pair: all of them.
#[test]
fn updates_take_as_many_syncs_as_they_must_and_are_hitless_where_they_can_be() {
    let computed = [
        pairs(&kinds(), Update::between),
        changes(),
        pairs(&contexts_by_name(), Update::of_context),
    ];
    let told: Vec<&str> = PAIRS
        .split("\n\n")
        .filter(|part| part.starts_with('|'))
        .collect();
    let told = told.iter().map(|table| format!("{}\n", table.trim_end()));
    let told: Vec<String> = told.collect();
    assert!(told == computed, "the tables are\n{}", computed.join("\n"));
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
