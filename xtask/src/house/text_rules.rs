//! Rules on the text of files of any kind.

use super::Violation;

/// No source file is longer.
const LONGEST: usize = 600;

/// Marks of unfinished work; written in two pieces, since this file is checked as well.
const UNFINISHED: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// Paths that exist on one machine only, written in two pieces for the same reason.
const PRIVATE_PATHS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("../sha", "red"),
];

/// The one folder beside the project that tests may read, if it is there, and who may name it.
const SHARED_TABLES: (&str, &str) = ("/acpi", "integration/tests/");

/// All rules of this file.
pub(super) fn all(path: &str, text: &str) -> Vec<Violation> {
    let mut violations = Vec::new();
    let rust = path.ends_with(".rs");
    if rust && !text.starts_with("//!") {
        violations.push(Violation::new(
            path,
            1,
            "a source file begins with a `//!` line that says what lives there",
        ));
    }
    let count = text.lines().count();
    if rust && count > LONGEST {
        violations.push(Violation::new(
            path,
            count,
            format!("{count} lines: expected at most {LONGEST}"),
        ));
    }
    let code = rust
        || [".toml", ".ld", ".S", ".s", ".sh", ".ci/run"]
            .iter()
            .any(|end| path.ends_with(end));
    for (at, line) in text.lines().enumerate() {
        if code && UNFINISHED.iter().any(|mark| line.contains(mark)) {
            violations.push(Violation::new(
                path,
                at + 1,
                "unfinished work is not committed",
            ));
        }
        for private in PRIVATE_PATHS {
            if names_path(path, line, private) {
                violations.push(Violation::new(
                    path,
                    at + 1,
                    format!("{private} exists on one machine only"),
                ));
            }
        }
    }
    violations
}

/// True when `line` names `private` as the begin of a path, other than where that is agreed.
fn names_path(path: &str, line: &str, private: &str) -> bool {
    line.match_indices(private).any(|(at, _)| {
        let (before, after) = (
            line.get(..at).unwrap_or_default(),
            line.get(at + private.len()..).unwrap_or_default(),
        );
        let inside_a_longer_path = before
            .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-'))
            && private.starts_with('/');
        let agreed = private == PRIVATE_PATHS[2]
            && after.starts_with(SHARED_TABLES.0)
            && path.starts_with(SHARED_TABLES.1);
        !inside_a_longer_path && !agreed
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        all(path, text).len()
    }

    #[test]
    fn a_file_without_a_first_doc_line_is_found() {
        assert_eq!(count("a.rs", "//! What.\n"), 0);
        assert_eq!(count("a.rs", "// What.\n"), 1);
        assert_eq!(count("a.rs", ""), 1);
        assert_eq!(count("a.md", "text\n"), 0);
    }

    #[test]
    fn a_file_that_is_too_long_is_found() {
        let text = |lines: usize| "//! x\n".repeat(lines);
        assert_eq!(count("a.rs", &text(LONGEST)), 0);
        assert_eq!(count("a.rs", &text(LONGEST + 1)), 1);
    }

    #[test]
    fn unfinished_work_is_found() {
        for mark in UNFINISHED {
            assert_eq!(count("a.rs", &format!("//! x\n// {mark}: later\n")), 1);
            assert_eq!(count("Cargo.toml", &format!("# {mark}\n")), 1);
        }
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let [work, root, shared] = PRIVATE_PATHS;
        assert_eq!(
            count("README.md", &format!("see {work}x and `{root}y`\n")),
            2
        );
        assert_eq!(count("README.md", &format!("(`{shared}/design.md`)\n")), 1);
        assert_eq!(
            count("README.md", &format!("http://a.example/frame{work}x\n")),
            0,
            "a piece of a longer path"
        );
        assert_eq!(
            count(
                "integration/tests/tests/t.rs",
                &format!("//! x\n// {shared}/acpi/q35\n")
            ),
            0
        );
        assert_eq!(
            count("hv-vtd/src/t.rs", &format!("//! x\n// {shared}/acpi/q35\n")),
            1
        );
        assert_eq!(
            count(
                "integration/tests/tests/t.rs",
                &format!("//! x\n// {shared}/qemu.md\n")
            ),
            1
        );
    }
}
