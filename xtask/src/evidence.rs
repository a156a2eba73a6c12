//! `cargo xtask evidence`: which test shows what, from the tests' own names, as tables for README and `EVIDENCE.md`.

mod checks;
mod classes;
mod scan;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::house;
use crate::workspace;
use checks::CHECKS;
use classes::CLASSES;
use scan::Shown;

/// A kind of evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It does not compile.
    Type,
    /// All interleavings were explored, to a printed bound.
    Loom,
    /// It was tried on the worst legal hardware.
    Rig,
    /// Tests, property tests, damaged input.
    Test,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Type, Self::Loom, Self::Rig, Self::Test];

    const fn name(self) -> &'static str {
        match self {
            Self::Type => "does not compile",
            Self::Loom => "model-checked",
            Self::Rig => "on the rig",
            Self::Test => "tests",
        }
    }
}

/// Options of `cargo xtask evidence`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write the tables into README.md and EVIDENCE.md
    #[arg(long)]
    write: bool,
}

const README: &str = "README.md";
const PAGE: &str = "EVIDENCE.md";
const BEGIN: &str = "<!-- evidence: written by `cargo xtask evidence --write` -->\n";
const END: &str = "<!-- end of evidence -->\n";

/// Prints the table, or writes it where people read it.
///
/// # Errors
/// When sources cannot be read, or pages not be written.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = workspace::root();
    let found = collect(&root)?;
    if !options.write {
        print!("{}", short(&found));
        return Ok(ExitCode::SUCCESS);
    }
    let readme = root.join(README);
    let text = fs::read_to_string(&readme).context(README)?;
    fs::write(&readme, spliced(&text, &short(&found))?).context(README)?;
    fs::write(root.join(PAGE), page(&found)).context(PAGE)?;
    println!("written: {README}, {PAGE}");
    Ok(ExitCode::SUCCESS)
}

/// What is wrong with the pages: they are of other tests than there are.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn stale(root: &Path) -> Result<Vec<String>> {
    let found = collect(root)?;
    let readme = fs::read_to_string(root.join(README)).context(README)?;
    let written = fs::read_to_string(root.join(PAGE)).unwrap_or_default();
    let mut stale = Vec::new();
    if spliced(&readme, &short(&found))? != readme {
        stale.push(README);
    }
    if written != page(&found) {
        stale.push(PAGE);
    }
    Ok(stale
        .into_iter()
        .map(|page| format!("{page} has another table of evidence than the tests: `cargo xtask evidence --write`"))
        .collect())
}

fn collect(root: &Path) -> Result<Vec<Shown>> {
    let mut found = Vec::new();
    for path in house::files(root)? {
        let sources = path.starts_with("integration/") || path.starts_with("hv-");
        if sources && path.ends_with(".rs") {
            let text = fs::read_to_string(root.join(&path)).with_context(|| path.clone())?;
            found.extend(scan::file(&path, &text));
        }
    }
    found.sort();
    if let Some(odd) = found.iter().find(|one| !is_known(one)) {
        bail!(
            "{}: {} names a class or check that is not in xtask/src/evidence/",
            odd.path,
            odd.name
        );
    }
    Ok(found)
}

fn is_known(one: &Shown) -> bool {
    let class = |number: &u8| CLASSES.iter().any(|class| class.number == *number);
    let check = |number: &u8| CHECKS.iter().any(|check| check.number == *number);
    one.classes.iter().all(class) && one.checks.iter().all(check)
}

/// README's text with the table between its marks.
fn spliced(text: &str, table: &str) -> Result<String> {
    let place = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = place else {
        bail!("{README} has no place for the table: {BEGIN:?} and {END:?}");
    };
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// The table of classes with how many tests of each kind there are.
fn short(found: &[Shown]) -> String {
    let mut table = String::from("\n| | bug class | known as |");
    for kind in Kind::ALL {
        table.push_str(&format!(" {} |", kind.name()));
    }
    table.push_str("\n|--:|---|---|--:|--:|--:|--:|\n");
    for class in CLASSES {
        let _ = write!(
            table,
            "| {} | {} | {} |",
            class.number, class.what, class.known
        );
        for kind in Kind::ALL {
            let tests = found
                .iter()
                .filter(|one| one.kind == kind && one.classes.contains(&class.number))
                .count();
            let _ = match (tests, class.needs.contains(&kind)) {
                (0, true) => write!(table, " *owed* |"),
                (0, false) => write!(table, " |"),
                (tests, _) => write!(table, " {tests} |"),
            };
        }
        table.push('\n');
    }
    table.push('\n');
    table
}

/// The page that names every test.
fn page(found: &[Shown]) -> String {
    let mut page = String::from(
        "# What shows it\n\nWritten by `cargo xtask evidence --write` from the tests' names and `Shows:` lines; the step `house` of `cargo xtask test` compares.\n\n## Classes of IOMMU faults\n",
    );
    for class in CLASSES {
        let _ = write!(
            page,
            "\n**{}. {}** ({})\n\n",
            class.number, class.what, class.known
        );
        for kind in Kind::ALL {
            let tests = found
                .iter()
                .filter(|one| one.kind == kind && one.classes.contains(&class.number));
            let names: Vec<String> = tests.map(link).collect();
            if !names.is_empty() {
                let _ = writeln!(page, "- {}: {}", kind.name(), names.join(", "));
            } else if class.needs.contains(&kind) {
                let _ = writeln!(page, "- {}: owed, there is none yet", kind.name());
            }
        }
    }
    page.push_str(
        "\n## What others check at run time\n\nChecks of Linux's IOMMU core, its drivers and iommufd, and what takes their place here.\n\n| | checked there | here | case |\n|--:|---|---|---|\n",
    );
    for check in CHECKS {
        let cases: Vec<String> = found
            .iter()
            .filter(|one| one.kind == Kind::Type && one.checks.contains(&check.number))
            .map(link)
            .collect();
        let last = match (cases.is_empty(), check.no_case) {
            (false, _) => cases.join(", "),
            (true, Some(why)) => format!("none needed: {why}"),
            (true, None) => "*owed*".to_owned(),
        };
        let _ = writeln!(
            page,
            "| T{} | {} | {} | {last} |",
            check.number, check.checked, check.here
        );
    }
    page
}

fn link(one: &Shown) -> String {
    format!("[`{}`]({})", one.name, one.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str, kind: Kind, classes: &[u8]) -> Shown {
        Shown {
            kind,
            name: name.to_owned(),
            path: "a.rs".to_owned(),
            classes: classes.to_vec(),
            checks: vec![],
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let table = short(&[shown("bc01_x", Kind::Rig, &[1])]);
        let row = table
            .lines()
            .find(|line| line.starts_with("| 1 |"))
            .unwrap();
        assert!(row.ends_with("| *owed* | *owed* | 1 | |"), "{row}");
        let page = page(&[]);
        assert!(page.contains("- model-checked: owed, there is none yet"));
    }

    #[test]
    fn a_table_is_replaced_and_nothing_else() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let new = spliced(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}new\n{END}after\n"));
        assert!(spliced("nothing", "new\n").is_err());
    }

    #[test]
    fn the_numbers_of_classes_and_checks_have_no_gaps() {
        assert!(
            (1..)
                .zip(CLASSES)
                .all(|(number, class)| class.number == number)
        );
        assert!(
            (1..)
                .zip(CHECKS)
                .all(|(number, check)| check.number == number)
        );
    }
}
