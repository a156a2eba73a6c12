//! A Rust file as lines and as tokens; strings and comments are no code in the tokens.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::Violation;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name or keyword.
    Word,
    /// A number, text or character.
    Literal,
    /// One character of an operator, or a bracket.
    Sign,
}

/// A token with its place.
#[derive(Clone, Debug)]
pub(super) struct Token {
    /// What it is.
    pub(super) kind: Kind,
    /// As it is written.
    pub(super) text: String,
    /// Line from 1 on.
    pub(super) line: usize,
}

/// A Rust file.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// Relative to the root, with slashes.
    pub(super) path: &'a str,
    /// Its lines.
    pub(super) lines: Vec<&'a str>,
    /// Its tokens in order, brackets included.
    pub(super) tokens: Vec<Token>,
}

impl<'a> Source<'a> {
    /// Takes the text apart.
    pub(super) fn lex(path: &'a str, text: &'a str) -> Result<Self, Violation> {
        let stream: TokenStream = text.parse().map_err(|error: proc_macro2::LexError| {
            Violation::new(
                path,
                error.span().start().line,
                format!("this is no Rust: {error}"),
            )
        })?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        Ok(Self {
            path,
            lines: text.lines().collect(),
            tokens,
        })
    }

    /// The text of token `at`, or nothing beyond the end.
    pub(super) fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| token.text.as_str())
    }

    /// True when a `//` comment with `tag` is on `line` itself or ends at most `above` lines above it.
    pub(super) fn has_comment(&self, tag: &str, line: usize, above: usize) -> bool {
        let comment = |line: usize| -> Option<&str> {
            let text = self.lines.get(line.checked_sub(1)?)?;
            text.find("//").and_then(|at| text.get(at..))
        };
        let whole_line = |line: usize| {
            line > 0
                && self
                    .lines
                    .get(line - 1)
                    .is_some_and(|text| text.trim_start().starts_with("//"))
        };
        let mut first = line.saturating_sub(above).max(1);
        // A comment of several lines counts from its first line, where the tag is.
        while whole_line(first) && whole_line(first - 1) {
            first -= 1;
        }
        (first..=line).any(|line| comment(line).is_some_and(|text| text.contains(tag)))
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        let mut push = |kind, text: String, line| tokens.push(Token { kind, text, line });
        match tree {
            TokenTree::Ident(word) => push(Kind::Word, word.to_string(), line),
            TokenTree::Literal(literal) => push(Kind::Literal, literal.to_string(), line),
            TokenTree::Punct(sign) => push(Kind::Sign, sign.as_char().to_string(), line),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(Kind::Sign, open.to_owned(), line);
                let end = group.span_close().start().line;
                flatten(group.stream(), tokens);
                tokens.push(Token {
                    kind: Kind::Sign,
                    text: close.to_owned(),
                    line: end,
                });
            }
        }
    }
}
