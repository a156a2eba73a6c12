//! The table's protocol names its loom models: each one that it names exists, and each model that must pass
//! is named there, by itself or by the model that it is a variant of, or in the source of what it models.

#![cfg(not(hv_loom))]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// What further models of the same name are called, as the document says in brackets.
const VARIANTS: [&str; 4] = ["noting", "memory", "iotlb", "evictions"];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The models that the race table names.
fn named() -> BTreeSet<String> {
    let document = read("../../hv-iommu/src/table/PROTOCOL.md");
    let races = document.split("# Races").nth(1).unwrap();
    let races = races.split("# Orderings").next().unwrap();
    let last = races.lines().filter_map(|line| line.split('|').nth(4));
    let names = last.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names
        .filter(|name| !name.contains('/'))
        .map(str::to_owned)
        .collect()
}

/// The models that there are, without those that only a deliberate fault or a missing wait makes.
fn models() -> BTreeSet<String> {
    let mut models = BTreeSet::new();
    let mut text = String::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/loom"),
        &mut text,
    );
    for line in text.lines() {
        let Some((name, rest)) = line.trim().split_once(": ") else {
            continue;
        };
        let bound = ["Two(", "Three(", "Exhaustive,"];
        // Models that must pass say what has to be seen.
        if bound.iter().any(|bound| rest.starts_with(bound)) && !name.contains(' ') {
            models.insert(name.to_owned());
        }
    }
    models
}

/// All sources of these folders and of those in them.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn the_protocol_names_models_that_exist() {
    let (named, models) = (named(), models());
    assert!(named.len() > 50, "{} names", named.len());
    let unknown: Vec<_> = named.difference(&models).collect();
    assert!(unknown.is_empty(), "{unknown:?} are no models");
}

#[test]
fn every_model_is_named_by_the_protocol() {
    let named = named();
    let mut documents = String::new();
    for folder in [
        "../../hv-core/src",
        "../../hv-iommu/src",
        "../../hv-vtd/src",
    ] {
        sources(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &mut documents,
        );
    }
    // Those that must fail show that the others see something.
    let must_fail = [
        "no_",
        "the_end_does_not_wait",
        "split_and_flush",
        "merge_and_flush",
    ];
    let alone: Vec<_> = models()
        .into_iter()
        .filter(|name| !named.contains(name) && !documents.contains(&format!("`{name}`")))
        .filter(|name| !must_fail.iter().any(|start| name.starts_with(start)))
        .filter(|name| !VARIANTS.iter().any(|variant| name.contains(variant)))
        .collect();
    assert!(
        alone.is_empty(),
        "{alone:?} are in no row, and no source names them"
    );
}
