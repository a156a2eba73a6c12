//! The house rules that no compiler lint covers, checked over the sources of the whole workspace.

mod rust_rules;
mod source;
mod text_rules;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use source::Source;

/// Holds no sources; in a linked worktree it is a file that names a place on this machine.
const SKIPPED: &str = ".git";
/// Lies in every folder that only a tool fills, whatever that folder is called: cargo marks its build folders by it
/// (<https://bford.info/cachedir/>).
const CACHE_TAG: &str = "CACHEDIR.TAG";
/// The usual build folder, which xtask fills before cargo does.
const TARGET: &str = "target";

/// A place where a rule is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    path: String,
    line: usize,
    what: String,
}

impl Violation {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// What a check brought.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// How many text files were looked at.
    pub(crate) files: usize,
    /// All broken rules.
    pub(crate) violations: Vec<Violation>,
}

/// Checks every text file below `root`.
///
/// # Errors
/// When a folder or file cannot be read.
pub(crate) fn check(root: &Path) -> Result<Found> {
    let mut found = Found::default();
    for path in files(root)? {
        let bytes = fs::read(root.join(&path)).with_context(|| format!("reading {path}"))?;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        found.files += 1;
        found.violations.extend(check_file(&path, &text));
    }
    Ok(found)
}

/// Every file below `root` but those of build folders, relative to it, with slashes, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn files(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    collect(root, "", &mut paths)?;
    paths.sort();
    Ok(paths)
}

/// Checks one file; `path` is relative to the root, with slashes.
fn check_file(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = text_rules::all(path, text);
    if path.ends_with(".rs") {
        match Source::lex(path, text) {
            Ok(source) => violations.extend(rust_rules::all(&source)),
            Err(violation) => violations.push(violation),
        }
    }
    violations.sort_by_key(|violation| violation.line);
    violations
}

fn collect(root: &Path, folder: &str, paths: &mut Vec<String>) -> Result<()> {
    let entries = fs::read_dir(root.join(folder))
        .with_context(|| format!("reading the folder {folder:?}"))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading the folder {folder:?}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        let kind = entry
            .file_type()
            .with_context(|| format!("looking at {path}"))?;
        if name == SKIPPED {
            continue;
        }
        if kind.is_dir() {
            let is_built = name == TARGET || root.join(&path).join(CACHE_TAG).exists();
            if !is_built {
                collect(root, &path, paths)?;
            }
        } else if kind.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_and_build_folders_left_out() {
        let root = tempfile::tempdir().unwrap();
        for folder in [
            "a/src",
            "target/debug",
            "target-arm/debug",
            "b/target/debug",
        ] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join("a/src/lib.rs"), "fn f() {}\n").unwrap();
        for built in ["target", "target-arm", "b/target"] {
            let file = format!("{built}/debug/x.rs");
            fs::write(root.path().join(file), "fn f() {}\n").unwrap();
        }
        fs::write(root.path().join("target-arm/CACHEDIR.TAG"), "Signature: \n").unwrap();
        fs::write(root.path().join(".git"), "gitdir: elsewhere\n").unwrap();
        fs::write(root.path().join("picture.bin"), [0xff, 0xfe, 0x00]).unwrap();
        let found = check(root.path()).unwrap();
        assert_eq!(found.files, 1);
        let shown: Vec<String> = found.violations.iter().map(Violation::to_string).collect();
        assert_eq!(
            shown,
            ["a/src/lib.rs:1: a source file begins with a `//!` line that says what lives there"]
        );
    }
}
