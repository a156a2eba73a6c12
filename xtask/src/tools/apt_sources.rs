//! Derives a backports entry from the machine's own apt sources, in both of apt's formats.

/// Which format a sources file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `*.list`: one entry a line.
    OneLine,
    /// `*.sources`: paragraphs of `Field: value`.
    Deb822,
}

impl Format {
    /// The format that apt takes a file of this name for.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "list" => Some(Self::OneLine),
            "sources" => Some(Self::Deb822),
            _ => None,
        }
    }
}

/// Every entry for binary packages of suite `from` in `text`, rewritten to suite `to`; empty when there is none.
pub(crate) fn with_suite(text: &str, format: Format, from: &str, to: &str) -> String {
    match format {
        Format::OneLine => text
            .lines()
            .filter_map(|line| one_line(line, from, to))
            .collect(),
        Format::Deb822 => paragraphs(text)
            .iter()
            .filter_map(|paragraph| deb822(paragraph, from, to))
            .collect(),
    }
}

/// `deb [options] address suite component...`
fn one_line(line: &str, from: &str, to: &str) -> Option<String> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inside) => {
            let (options, rest) = inside.split_once(']')?;
            (format!("[{options}] "), rest)
        }
        None => (String::new(), rest),
    };
    let mut words = rest.split_whitespace();
    let (address, suite) = (words.next()?, words.next()?);
    if suite != from {
        return None;
    }
    let components: Vec<&str> = words.collect();
    Some(format!(
        "deb {options}{address} {to} {}\n",
        components.join(" ")
    ))
}

/// Splits at empty lines and leaves comment lines out, as apt does.
fn paragraphs(text: &str) -> Vec<Vec<&str>> {
    let mut all = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            all.push(Vec::new());
        } else if let Some(last) = all.last_mut() {
            last.push(line);
        }
    }
    all
}

fn deb822(paragraph: &[&str], from: &str, to: &str) -> Option<String> {
    let words = |wanted: &str| -> Option<Vec<String>> {
        let values = field(paragraph, wanted)?;
        Some(
            values
                .iter()
                .flat_map(|line| line.split_whitespace())
                .map(str::to_owned)
                .collect(),
        )
    };
    let off = words("Enabled").is_some_and(|value| {
        value.first().is_some_and(|word| {
            ["no", "false", "off", "0", "without", "disable"].contains(&&*word.to_lowercase())
        })
    });
    let binary = words("Types")?.iter().any(|word| word == "deb");
    if off || !binary || !words("Suites")?.iter().any(|suite| suite == from) {
        return None;
    }
    let mut entry = String::new();
    let mut drop_rest = false;
    for line in paragraph {
        if !line.starts_with([' ', '\t']) {
            let name = line.split(':').next()?.trim().to_lowercase();
            drop_rest = name == "suites" || name == "types";
            match name.as_str() {
                "suites" => entry.push_str(&format!("Suites: {to}\n")),
                "types" => entry.push_str("Types: deb\n"),
                _ => {}
            }
        }
        if !drop_rest {
            entry.push_str(line);
            entry.push('\n');
        }
    }
    entry.push('\n');
    Some(entry)
}

/// The value of a field, first line and continuation lines.
fn field<'a>(paragraph: &[&'a str], wanted: &str) -> Option<Vec<&'a str>> {
    let mut lines = paragraph.iter().skip_while(|line| {
        line.split_once(':').is_none_or(|(name, _)| {
            name.starts_with([' ', '\t']) || !name.trim().eq_ignore_ascii_case(wanted)
        })
    });
    let (_, first) = lines.next()?.split_once(':')?;
    let mut values = vec![first];
    values.extend(lines.take_while(|line| line.starts_with([' ', '\t'])));
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "Types: deb deb-src
# a comment that names bookworm
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 Suites: not a field, it is inside the key
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://archive.example/debian-security
Suites: bookworm-security
Components: main
";

    #[test]
    fn a_paragraph_keeps_address_and_key_and_changes_its_suite() {
        let entry = with_suite(MACHINE, Format::Deb822, "bookworm", "bookworm-backports");
        assert!(
            entry.starts_with(
                "Types: deb\nURIs: http://archive.example/debian\nSuites: bookworm-backports\n"
            ),
            "{entry}"
        );
        assert!(entry.contains("Components: main contrib\n"));
        assert!(entry.contains(" -----END PGP PUBLIC KEY BLOCK-----\n"));
        assert!(
            !entry.contains("security"),
            "the security archive has no backports"
        );
        assert!(!entry.contains("bookworm-updates"));
    }

    #[test]
    fn disabled_and_source_only_paragraphs_give_nothing() {
        let off = "Types: deb\nEnabled: no\nURIs: http://a/\nSuites: bookworm\nComponents: main\n";
        assert_eq!(with_suite(off, Format::Deb822, "bookworm", "x"), "");
        let source = "Types: deb-src\nURIs: http://a/\nSuites: bookworm\nComponents: main\n";
        assert_eq!(with_suite(source, Format::Deb822, "bookworm", "x"), "");
    }

    #[test]
    fn suites_on_continuation_lines_are_found() {
        let text = "Types: deb\nURIs: http://a/\nSuites:\n bookworm\n bookworm-updates\nComponents: main\n";
        assert_eq!(
            with_suite(text, Format::Deb822, "bookworm", "bookworm-backports"),
            "Types: deb\nURIs: http://a/\nSuites: bookworm-backports\nComponents: main\n\n"
        );
    }

    #[test]
    fn one_line_entries_keep_their_options() {
        let text = "# deb http://old/ bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://archive.example/debian bookworm main contrib # why\n\
                    deb http://archive.example/debian bookworm-updates main\n\
                    deb-src http://archive.example/debian bookworm main\n";
        assert_eq!(
            with_suite(text, Format::OneLine, "bookworm", "bookworm-backports"),
            "deb [arch=amd64 signed-by=/k.gpg] http://archive.example/debian bookworm-backports main contrib\n"
        );
    }

    #[test]
    fn only_names_apt_reads_have_a_format() {
        assert_eq!(Format::of_name("debian.sources"), Some(Format::Deb822));
        assert_eq!(Format::of_name("extra.list"), Some(Format::OneLine));
        assert_eq!(Format::of_name("extra.list.disabled"), None);
    }
}
