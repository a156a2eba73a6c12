//! Rules on Rust code.

use super::Violation;
use super::source::{Kind, Source, Token};

/// A SAFETY comment ends at most this many lines above its unsafe code.
const SAFETY_ABOVE: usize = 4;
/// An ORDERING comment ends at most this many lines above the access.
const ORDERING_ABOVE: usize = 5;
const ORDERINGS: [&str; 5] = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];
/// Where the neutral core is, and the words that have no place in its names.
const NEUTRAL: &str = "hv-iommu/src/";
const VENDOR_WORDS: [&str; 3] = ["vtd", "intel", "smmu"];
/// A vendor's name that is also a piece of other words.
const VENDOR_WHOLE_WORD: &str = "arm";
/// Where bits belong into `spec/` only.
const ENGINES: [&str; 2] = ["hv-vtd/src/", "hv-smmu/src/"];

/// All rules of this file.
pub(super) fn all(source: &Source<'_>) -> Vec<Violation> {
    let mut violations = unsafe_code(source);
    violations.extend(orderings(source));
    violations.extend(unfinished(source));
    violations.extend(bits_outside_spec(source));
    violations.extend(vendor_words(source));
    violations
}

fn unsafe_code(source: &Source<'_>) -> Vec<Violation> {
    words(source)
        .filter(|(at, word)| word.text == "unsafe" && matches!(source.text(at + 1), "{" | "impl"))
        .filter(|(_, word)| !source.has_comment("SAFETY:", word.line, SAFETY_ABOVE))
        .map(|(_, word)| {
            Violation::new(
                source.path,
                word.line,
                "unsafe code without a SAFETY comment right above",
            )
        })
        .collect()
}

fn orderings(source: &Source<'_>) -> Vec<Violation> {
    let file = source.path.rsplit('/').next().unwrap_or_default();
    let tests = source
        .path
        .split('/')
        .any(|folder| matches!(folder, "tests" | "loom"));
    if tests || matches!(file, "tests.rs" | "loom.rs") {
        return Vec::new();
    }
    let mut violations: Vec<Violation> = Vec::new();
    let mut importing = false;
    for (at, token) in source.tokens.iter().enumerate() {
        match token.text.as_str() {
            "use" => importing = true,
            ";" => importing = false,
            word if !importing && ORDERINGS.contains(&word) => {
                let qualified =
                    at >= 3 && source.text(at - 1) == ":" && source.text(at - 3) == "Ordering";
                let before = at.checked_sub(1).map_or("", |before| source.text(before));
                let argument =
                    matches!(before, "(" | ",") && matches!(source.text(at + 1), ")" | ",");
                let again = violations
                    .last()
                    .is_some_and(|last| last.line == token.line);
                if (qualified || argument)
                    && !again
                    && !source.has_comment("ORDERING:", token.line, ORDERING_ABOVE)
                {
                    let what = format!("{word} without an ORDERING comment right above");
                    violations.push(Violation::new(source.path, token.line, what));
                }
            }
            _ => {}
        }
    }
    violations
}

fn unfinished(source: &Source<'_>) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (at, word) in words(source) {
        let before = |back: usize| at.checked_sub(back).map_or("", |at| source.text(at));
        if matches!(word.text.as_str(), "todo" | "unimplemented") && source.text(at + 1) == "!" {
            violations.push(Violation::new(
                source.path,
                word.line,
                format!("{}! is not committed", word.text),
            ));
        }
        if word.text == "ignore" && before(1) == "[" && before(2) == "#" {
            violations.push(Violation::new(
                source.path,
                word.line,
                "a test is never ignored",
            ));
        }
    }
    violations
}

/// Hexadecimal masks and shifted bits in the engine; test code at a file's end
/// may have them, and so may the model of the hardware: it must not share a mistake with `spec`.
fn bits_outside_spec(source: &Source<'_>) -> Vec<Violation> {
    let inside = ENGINES
        .iter()
        .find_map(|engine| source.path.strip_prefix(engine));
    let file = source.path.rsplit('/').next().unwrap_or_default();
    if inside.is_none_or(|path| {
        path.split('/').any(|part| {
            matches!(
                part,
                "spec" | "spec.rs" | "tests" | "testing" | "testing.rs"
            )
        })
    }) || file == "tests.rs"
    {
        return Vec::new();
    }
    let tests_from = (0..source.tokens.len())
        .find(|at| {
            source.text(*at) == "cfg" && source.text(at + 1) == "(" && source.text(at + 2) == "test"
        })
        .unwrap_or(source.tokens.len());
    let numbers = source
        .tokens
        .iter()
        .enumerate()
        .take(tests_from)
        .filter(|(_, token)| is_number(token));
    numbers
        .filter(|(at, token)| {
            (is_hex(token) && is_masking(source, *at)) || is_shifted_number(source, *at)
        })
        .map(|(_, token)| {
            let what = format!("the bits of {} belong into a spec module", token.text);
            Violation::new(source.path, token.line, what)
        })
        .collect()
}

fn vendor_words(source: &Source<'_>) -> Vec<Violation> {
    if !source.path.starts_with(NEUTRAL) {
        return Vec::new();
    }
    words(source)
        .filter(|(_, word)| {
            let joined = word.text.replace('_', "").to_lowercase();
            VENDOR_WORDS.iter().any(|vendor| joined.contains(vendor))
                || pieces(&word.text)
                    .iter()
                    .any(|piece| piece == VENDOR_WHOLE_WORD)
        })
        .map(|(_, word)| {
            Violation::new(
                source.path,
                word.line,
                format!(
                    "the name {} is of one vendor: expected a neutral one",
                    word.text
                ),
            )
        })
        .collect()
}

fn words<'a>(source: &'a Source<'_>) -> impl Iterator<Item = (usize, &'a Token)> {
    source
        .tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| token.kind == Kind::Word)
}

fn is_number(token: &Token) -> bool {
    token.kind == Kind::Literal && token.text.starts_with(|c: char| c.is_ascii_digit())
}

fn is_hex(token: &Token) -> bool {
    is_number(token) && token.text.starts_with("0x")
}

/// The hexadecimal number at `at` is an operand of `&`, `|`, `^` or their assignments, or is negated.
fn is_masking(source: &Source<'_>, at: usize) -> bool {
    let back = |by: usize| at.checked_sub(by).map_or("", |at| source.text(at));
    let operator = |text: &str| matches!(text, "&" | "|" | "^");
    // After another operator or an opening bracket `&` takes a reference.
    let operand = |by: usize| {
        at.checked_sub(by)
            .and_then(|at| source.tokens.get(at))
            .is_some_and(|token| {
                token.kind != Kind::Sign || matches!(token.text.as_str(), ")" | "]" | "}")
            })
    };
    let before = operator(back(1)) && operand(2);
    let assigned = back(1) == "=" && operator(back(2)) && operand(3);
    let after = operator(source.text(at + 1)) && !operator(source.text(at + 2));
    before || assigned || after || back(1) == "!"
}

/// The number at `at` is shifted by another number: a bit at a fixed place.
fn is_shifted_number(source: &Source<'_>, at: usize) -> bool {
    source.text(at + 1) == "<"
        && source.text(at + 2) == "<"
        && source.tokens.get(at + 3).is_some_and(is_number)
}

/// The pieces of a name in snake or camel case, in small letters and without digits.
fn pieces(name: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut small_before = false;
    for c in name.chars() {
        if !c.is_alphabetic() || (c.is_uppercase() && small_before) {
            pieces.push(String::new());
        }
        if let (true, Some(last)) = (c.is_alphabetic(), pieces.last_mut()) {
            last.extend(c.to_lowercase());
        }
        small_before = c.is_lowercase();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    /// The lines with violations.
    fn lines(path: &str, code: &str) -> Vec<usize> {
        let text = format!("//! What.\n{code}");
        let source = Source::lex(path, &text).unwrap();
        all(&source)
            .iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn unsafe_code_needs_its_comment() {
        assert_eq!(lines("a.rs", "fn f() {\n    unsafe { g() }\n}\n"), [3]);
        assert_eq!(lines("a.rs", "unsafe impl Send for A {}\n"), [2]);
        assert_eq!(
            lines(
                "a.rs",
                "// SAFETY: nothing is shared.\nunsafe impl Send for A {}\n"
            ),
            NONE
        );
        assert_eq!(
            lines(
                "a.rs",
                "// SAFETY: far away.\n\n\n\n\nunsafe impl Send for A {}\n"
            ),
            [7]
        );
        let long = "fn f() {\n    // SAFETY: one\n    // two\n    // three\n    // four\n    // five\n    let x =\n        unsafe { g() };\n}\n";
        assert_eq!(lines("a.rs", long), NONE);
        assert_eq!(
            lines(
                "a.rs",
                "const S: &str = \"unsafe { }\"; // unsafe {\nunsafe fn f() {}\n"
            ),
            NONE
        );
    }

    #[test]
    fn an_ordering_needs_its_comment() {
        assert_eq!(
            lines("a.rs", "fn f() { A.load(Ordering::Acquire); }\n"),
            [2]
        );
        assert_eq!(
            lines(
                "a.rs",
                "fn f() { A.compare_exchange(a, b, AcqRel, Relaxed); }\n"
            ),
            [2]
        );
        assert_eq!(lines("a.rs", "fn f() { fence(SeqCst) }\n"), [2]);
        assert_eq!(
            lines(
                "a.rs",
                "fn f() { A.load(Acquire); } // ORDERING: pairs with g.\n"
            ),
            NONE
        );
        assert_eq!(
            lines(
                "a.rs",
                "// ORDERING: pairs with g.\n\n\n\n\nfn f() { A.load(Acquire); }\n"
            ),
            NONE
        );
        assert_eq!(
            lines(
                "a.rs",
                "// ORDERING: pairs with g.\n\n\n\n\n\nfn f() { A.load(Acquire); }\n"
            ),
            [8]
        );
        assert_eq!(
            lines(
                "a.rs",
                "use core::sync::atomic::Ordering::{self, Acquire, Release};\n"
            ),
            NONE
        );
        assert_eq!(
            lines("a.rs", "fn f() -> Ordering { Ordering::Less }\n"),
            NONE
        );
        let access = "fn f() { A.load(Ordering::Acquire); }\n";
        assert_eq!(lines("integration/tests/tests/loom/map.rs", access), NONE);
        assert_eq!(lines("hv-iommu/src/loom_map.rs", access), [2]);
    }

    #[test]
    fn unfinished_code_and_ignored_tests_are_found() {
        assert_eq!(
            lines(
                "a.rs",
                "fn f() { todo!() }\nfn g() { unimplemented!(\"x\") }\n"
            ),
            [2, 3]
        );
        assert_eq!(lines("a.rs", "#[test]\n#[ignore]\nfn t() {}\n"), [3]);
        assert_eq!(lines("a.rs", "#[ignore = \"slow\"]\nfn t() {}\n"), [2]);
        assert_eq!(
            lines("a.rs", "fn f(ignore: u8) -> [u8; 1] { [ignore] }\n"),
            NONE
        );
    }

    #[test]
    fn masks_belong_into_spec() {
        let engine = "hv-vtd/src/queue.rs";
        for code in [
            "x & 0xfff",
            "x | 0x8",
            "0x3 ^ x",
            "!0xfff",
            "1 << 31",
            "x & (1u64 << 63)",
            "0x3 << 4",
        ] {
            let code = format!("fn f() {{ {code} }}\n");
            assert_eq!(lines(engine, &code).len(), 1, "{code}");
            assert_eq!(lines("hv-smmu/src/queue.rs", &code).len(), 1, "{code}");
            assert_eq!(lines("hv-vtd/src/spec/registers.rs", &code), NONE, "{code}");
            assert_eq!(lines("hv-core/src/addr.rs", &code), NONE, "{code}");
            assert_eq!(lines("hv-vtd/src/testing/unit.rs", &code), NONE, "{code}");
            assert_eq!(
                lines(engine, &format!("#[cfg(test)]\nmod tests {{ {code} }}\n")),
                NONE,
                "{code}"
            );
        }
        assert_eq!(lines(engine, "fn f() { x &= 0xf; }\n"), [2]);
        for code in [
            "x & MASK",
            "f(&0x1000)",
            "0x1000",
            "x + 0x10",
            "x << SHIFT",
            "1 << SHIFT",
        ] {
            assert_eq!(
                lines(engine, &format!("fn f() {{ {code} }}\n")),
                NONE,
                "{code}"
            );
        }
    }

    #[test]
    fn the_neutral_core_names_no_vendor() {
        let core = "hv-iommu/src/domain.rs";
        for name in [
            "vtd_unit",
            "VtdUnit",
            "IntelCaps",
            "SMMUv3",
            "ArmSmmu",
            "arm",
            "Arm64",
            "ARM_BASE",
            "r#arm",
        ] {
            assert_eq!(
                lines(core, &format!("struct A {{ {name}: u8 }}\n")),
                [2],
                "{name}"
            );
            assert_eq!(
                lines(
                    "hv-vtd/src/unit.rs",
                    &format!("struct A {{ {name}: u8 }}\n")
                ),
                NONE,
                "{name}"
            );
        }
        for name in ["alarm", "armed", "Domain", "farm_size"] {
            assert_eq!(
                lines(core, &format!("struct A {{ {name}: u8 }}\n")),
                NONE,
                "{name}"
            );
        }
        assert_eq!(
            lines(core, "/// As the Intel unit does it.\nstruct A;\n"),
            NONE
        );
    }
}
