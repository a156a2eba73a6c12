//! Finding tests in sources: by the number in their names, or by a line `Shows: bc05, T12.` in their comment.

use super::Kind;

/// A test or case that shows something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shown {
    /// The kind of evidence.
    pub(super) kind: Kind,
    /// The test's or case's name.
    pub(super) name: String,
    /// Its file, relative to the root.
    pub(super) path: String,
    /// Numbers of bug classes.
    pub(super) classes: Vec<u8>,
    /// Numbers of run-time checks.
    pub(super) checks: Vec<u8>,
}

/// Where files of each kind of evidence are.
const PLACES: [(&str, Kind); 3] = [
    ("integration/tests/tests/compile_fail/", Kind::Type),
    ("integration/tests/tests/loom/", Kind::Loom),
    ("integration/rig/tests/", Kind::Rig),
];

/// What marks a line that says what is shown.
const MARK: &str = "Shows: ";

/// The evidence in one Rust file.
pub(super) fn file(path: &str, text: &str) -> Vec<Shown> {
    let place = PLACES.iter().find(|(folder, _)| path.starts_with(folder));
    let kind = place.map_or(Kind::Test, |(_, kind)| *kind);
    let whole = kind == Kind::Type;
    let mut found = Vec::new();
    let mut marked = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim_start) {
        if let Some(tags) = line
            .strip_prefix("//")
            .map(|rest| rest.trim_start_matches(['/', '!', ' ']))
            .and_then(|rest| rest.strip_prefix(MARK))
        {
            marked.0.extend(numbers(tags, "bc"));
            marked.1.extend(numbers(tags, "T"));
        } else if let Some(name) = function(line).or_else(|| model(line)).filter(|_| !whole) {
            let (mut classes, checks) = std::mem::take(&mut marked);
            classes.extend(number_of(name));
            if !classes.is_empty() || !checks.is_empty() {
                found.push(Shown {
                    kind,
                    name: name.to_owned(),
                    path: path.to_owned(),
                    classes,
                    checks,
                });
            }
        }
    }
    let (classes, checks) = marked;
    if whole && !(classes.is_empty() && checks.is_empty()) {
        let stem = path.rsplit('/').next().unwrap_or(path);
        found.push(Shown {
            kind,
            name: stem.trim_end_matches(".rs").to_owned(),
            path: path.to_owned(),
            classes,
            checks,
        });
    }
    found
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches("pub ").strip_prefix("fn ")?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    Some(&rest[..end])
}

/// The name of the loom model that a line begins: `name: Bound, ...`. Only a mark before it makes it evidence.
fn model(line: &str) -> Option<&str> {
    let (name, bound) = line.split_once(": ")?;
    let lower = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    (bound.starts_with(char::is_uppercase) && name.chars().all(lower)).then_some(name)
}

/// The class in a name like `bc05_xsa_302_...`.
fn number_of(name: &str) -> Option<u8> {
    let (digits, _) = name.strip_prefix("bc")?.split_once('_')?;
    digits.parse().ok()
}

/// The numbers behind `prefix` in a list like `bc02, T17.`.
fn numbers(tags: &str, prefix: &str) -> Vec<u8> {
    tags.split([',', ' ', '.'])
        .filter_map(|tag| tag.strip_prefix(prefix)?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_marks_are_found() {
        let text = "//! Models.\n/// One.\n/// Shows: bc01, T17.\npub fn a_model() {}\nfn plain() {}\n    fn bc18_xsa_207_x() {}\n";
        let found = file("integration/tests/tests/loom/a.rs", text);
        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.name.as_str(), one.classes.clone(), one.checks.clone()))
            .collect();
        assert_eq!(
            seen,
            [
                ("a_model", vec![1], vec![17]),
                ("bc18_xsa_207_x", vec![18], vec![])
            ]
        );
        assert!(found.iter().all(|one| one.kind == Kind::Loom));
    }

    #[test]
    fn a_model_is_evidence_where_it_is_marked() {
        let text = "models! {\n    /// Shows: bc09.\n    split: Exhaustive, || ();\n    merge: Two(3), || ();\n}\n";
        let found = file("integration/tests/tests/loom/a.rs", text);
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["split"]);
    }

    #[test]
    fn a_compile_fail_case_is_one_piece_of_evidence() {
        let text = "//! A mistake.\n//! Shows: bc05, T10, T11.\nfn main() {}\n";
        let found = file("integration/tests/tests/compile_fail/twice.rs", text);
        assert_eq!(found.len(), 1);
        let one = &found[0];
        assert_eq!((one.kind, one.name.as_str()), (Kind::Type, "twice"));
        assert_eq!(
            (one.classes.as_slice(), one.checks.as_slice()),
            (&[5][..], &[10, 11][..])
        );
    }
}
