//! `CATALOGUE.md` and the README say what the code does: their tables and examples are compared with it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use hv_rig::planted::{ELSEWHERE, PLANTED};

#[expect(dead_code, reason = "as an example it starts at `main`")]
#[path = "../examples/wedged.rs"]
mod wedged;

#[expect(dead_code, reason = "as an example it starts at `main`")]
#[path = "../examples/groups.rs"]
mod groups;

#[expect(dead_code, reason = "as an example it starts at `main`")]
#[path = "../examples/arm.rs"]
mod arm;

#[expect(dead_code, reason = "as an example it starts at `main`")]
#[path = "../examples/arm_trouble.rs"]
mod arm_trouble;
#[expect(dead_code, reason = "as an example it starts at `main`")]
#[path = "../examples/keeping.rs"]
mod keeping;

#[expect(dead_code, reason = "as an example it starts at `main`")]
#[path = "../examples/nesting.rs"]
mod nesting;

/// A file of the rig's folder, or of the workspace.
fn text(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The table of planted faults as the code has it.
fn planted() -> String {
    let mut table =
        String::from("| fault | what the driver does wrong | broken rules |\n|---|---|---|\n");
    for planted in PLANTED {
        let rules: Vec<String> = planted
            .rules
            .iter()
            .map(|rule| format!("{rule:?}"))
            .collect();
        let (name, what) = (planted.fault.name(), planted.fault.what());
        writeln!(table, "| `{name}` | {what} | {} |", rules.join(", ")).unwrap();
    }
    for (fault, who) in ELSEWHERE {
        writeln!(
            table,
            "| `{}` | {} | not for the rig: {who} |",
            fault.name(),
            fault.what()
        )
        .unwrap();
    }
    table
}

#[test]
fn the_catalogue_lists_every_planted_fault_with_what_catches_it() {
    let (found, expected) = (text("CATALOGUE.md"), planted());
    assert!(
        found.contains(&expected),
        "CATALOGUE.md has another table of planted faults; expected\n\n{expected}"
    );
}

#[test]
fn the_number_of_planted_faults_is_the_same_everywhere() {
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let said = format!("{} deliberate", PLANTED.len());
        let found = text(&format!("../../{page}"));
        assert!(found.contains(&said), "{page} does not say {said:?}");
    }
}

#[test]
fn the_catalogue_names_every_test_of_a_class_and_no_other() {
    let catalogue = text("CATALOGUE.md");
    let mut tests = Vec::new();
    let folder = |name: &str| fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(name));
    let folders = [
        "tests/catalogue",
        "tests/catalogue/first",
        "tests/catalogue/vtd",
        "tests/catalogue/smmu",
    ];
    let files = folders.into_iter().flat_map(|name| folder(name).unwrap());
    for file in files.map(|file| file.unwrap().path()) {
        if file.is_dir() {
            continue;
        }
        let source = fs::read_to_string(file).unwrap();
        for line in source.lines().filter_map(|line| line.strip_prefix("fn ")) {
            let name = line.split('(').next().unwrap_or_default();
            if name.starts_with("bc") || name.starts_with("wedged_") {
                tests.push(name.to_owned());
            }
        }
    }
    assert!(tests.len() >= 15, "{tests:?}");
    for test in &tests {
        assert!(
            catalogue.contains(&format!("`{test}`")),
            "CATALOGUE.md does not name {test}"
        );
    }
    for word in catalogue
        .split('`')
        .filter(|word| word.starts_with("bc") || word.starts_with("wedged_"))
    {
        assert!(
            tests.iter().any(|test| test == word),
            "CATALOGUE.md names {word}, which is no test"
        );
    }
}

#[test]
fn the_readme_shows_the_example_as_it_is_compiled() {
    let readme = text("../../README.md");
    let example = text("examples/embed.rs");
    assert!(
        example.lines().count() < 100,
        "the example has {} lines",
        example.lines().count()
    );
    // The first line says what the file is; the README says that in its own words.
    let shown = example.split_once("\n\n").map_or("", |(_, rest)| rest);
    assert!(
        readme.contains(shown),
        "README.md shows another example than examples/embed.rs"
    );
}

/// The index of `hv-iommu`, from what is wanted to what is called: each type and each function is there.
#[test]
fn the_index_of_calls_names_what_there_is() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../hv-iommu/src");
    let mut sources = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => sources.extend(fs::read_to_string(path)),
            }
        }
    }
    let lib = text("../../hv-iommu/src/lib.rs");
    let rows = lib.lines().filter(|line| line.starts_with("//! | "));
    let called: Vec<&str> = rows
        .flat_map(|row| row.split("[`").skip(1))
        .filter_map(|link| link.split("`]").next())
        .collect();
    assert!(called.len() > 40, "{called:?}");
    let is_there = |wanted: &[String]| {
        sources
            .iter()
            .any(|source| wanted.iter().any(|words| source.contains(words)))
    };
    for call in called {
        let (of, function) = call.split_once("::").unwrap_or((call, ""));
        let kinds = ["struct", "enum", "trait", "mod"];
        let defined: Vec<_> = kinds
            .into_iter()
            .flat_map(|kind| ["<", "(", " ", ";"].map(|end| format!("pub {kind} {of}{end}")))
            .collect();
        assert!(is_there(&defined), "{call}: there is no {of}");
        let methods: Vec<_> = ["fn", "const fn"]
            .into_iter()
            .flat_map(|kind| ["<", "("].map(|end| format!("pub {kind} {function}{end}")))
            .collect();
        let by_type: Vec<&String> = sources
            .iter()
            .filter(|source| methods.iter().any(|method| source.contains(method)))
            .collect();
        let implemented = [format!("{of}<"), format!("{of} {{")];
        let has = |source: &&String| implemented.iter().any(|words| source.contains(words));
        assert!(
            function.is_empty() || by_type.iter().any(has),
            "{call}: there is no such function"
        );
    }
}

#[test]
fn the_second_example_works_on_every_machine() {
    for seed in 0..40 {
        let lived = wedged::live_through(seed);
        assert!(lived.is_ok(), "seed {seed}: {}", lived.unwrap_err());
    }
}

#[test]
fn the_table_of_groups_works() {
    let lived = groups::run();
    assert!(lived.is_ok(), "{}", lived.unwrap_err());
}

#[test]
fn the_way_on_arm_works() {
    let lived = arm::run();
    assert!(lived.is_ok(), "{}", lived.unwrap_err());
}

#[test]
fn firmwares_device_is_kept_running_on_both_vendors_machines() {
    let lived = keeping::run();
    assert!(lived.is_ok(), "{}", lived.unwrap_err());
}

#[test]
fn a_guest_has_a_first_stage_of_its_own() {
    let lived = nesting::run();
    assert!(lived.is_ok(), "{}", lived.unwrap_err());
}

#[test]
fn two_guests_live_through_what_goes_wrong_on_arm() {
    let lived = arm_trouble::run();
    assert!(lived.is_ok(), "{}", lived.unwrap_err());
}
