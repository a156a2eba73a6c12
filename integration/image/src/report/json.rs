//! A writer for flat JSON objects into any `fmt::Write`, without allocation.

use core::fmt::{self, Display, Write};

/// An object being written. [`object`] opens and closes it.
pub(super) struct Object<'w> {
    out: &'w mut dyn Write,
    first: bool,
}

/// Writes `{...}` around what `fields` adds.
pub(super) fn object(
    out: &mut dyn Write,
    fields: impl FnOnce(&mut Object<'_>) -> fmt::Result,
) -> fmt::Result {
    out.write_char('{')?;
    fields(&mut Object {
        out: &mut *out,
        first: true,
    })?;
    out.write_char('}')
}

impl Object<'_> {
    fn name(&mut self, name: &str) -> fmt::Result {
        if !self.first {
            self.out.write_char(',')?;
        }
        self.first = false;
        write!(self.out, "\"{name}\":")
    }

    /// A string field; `value` is escaped.
    pub(super) fn string(&mut self, name: &str, value: impl Display) -> fmt::Result {
        self.name(name)?;
        write_string(self.out, &value)
    }

    /// A number field.
    pub(super) fn number(&mut self, name: &str, value: u64) -> fmt::Result {
        self.name(name)?;
        write!(self.out, "{value}")
    }

    /// A number field that is `null` without a value.
    pub(super) fn number_or_null(&mut self, name: &str, value: Option<u64>) -> fmt::Result {
        match value {
            Some(value) => self.number(name, value),
            None => {
                self.name(name)?;
                self.out.write_str("null")
            }
        }
    }

    /// A number field as a hexadecimal string, `"0x.."`: JSON readers may lose bits of large
    /// numbers.
    pub(super) fn hex(&mut self, name: &str, value: u64) -> fmt::Result {
        self.name(name)?;
        write!(self.out, "\"{value:#x}\"")
    }

    /// An object of number fields, as hexadecimal strings.
    pub(super) fn hexes(&mut self, name: &str, values: &[(&str, u64)]) -> fmt::Result {
        self.name(name)?;
        object(&mut *self.out, |o| {
            values
                .iter()
                .try_for_each(|(name, value)| o.hex(name, *value))
        })
    }

    /// A field that is `true` or `false`.
    pub(super) fn boolean(&mut self, name: &str, value: bool) -> fmt::Result {
        self.name(name)?;
        write!(self.out, "{value}")
    }

    /// An array of numbers.
    pub(super) fn numbers(&mut self, name: &str, values: &[u8]) -> fmt::Result {
        self.array(name, values, |out, value| write!(out, "{value}"))
    }

    /// An array of strings, escaped.
    pub(super) fn strings<T: Display>(&mut self, name: &str, values: &[T]) -> fmt::Result {
        self.array(name, values, |out, value| write_string(out, value))
    }

    fn array<T>(
        &mut self,
        name: &str,
        values: &[T],
        write_one: impl Fn(&mut dyn Write, &T) -> fmt::Result,
    ) -> fmt::Result {
        self.name(name)?;
        self.out.write_char('[')?;
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                self.out.write_char(',')?;
            }
            write_one(self.out, value)?;
        }
        self.out.write_char(']')
    }
}

fn write_string(out: &mut dyn Write, value: &dyn Display) -> fmt::Result {
    out.write_char('"')?;
    write!(Escape(&mut *out), "{value}")?;
    out.write_char('"')
}

/// Escapes what passes through as the inside of a JSON string (RFC 8259, section 7).
struct Escape<'w>(&'w mut dyn Write);

impl Write for Escape<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '"' => self.0.write_str("\\\"")?,
                '\\' => self.0.write_str("\\\\")?,
                '\n' => self.0.write_str("\\n")?,
                '\r' => self.0.write_str("\\r")?,
                '\t' => self.0.write_str("\\t")?,
                // DEL and line separators are legal JSON, but some line-based readers break on
                // them.
                '\0'..='\x1f' | '\x7f' | '\u{2028}' | '\u{2029}' => {
                    write!(self.0, "\\u{:04x}", u32::from(character))?;
                }
                other => self.0.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: impl FnOnce(&mut Object<'_>) -> fmt::Result) -> String {
        let mut out = String::new();
        object(&mut out, fields).unwrap();
        out
    }

    #[test]
    fn strings_are_escaped() {
        let text = written(|o| o.string("text", "a\"b\\c\nd\u{1}\u{7f}é"));
        assert_eq!(text, "{\"text\":\"a\\\"b\\\\c\\nd\\u0001\\u007fé\"}");
    }

    #[test]
    fn fields_are_separated_by_commas() {
        let text = written(|o| {
            o.number("a", u64::MAX)?;
            o.number_or_null("b", None)?;
            o.hex("c", 0xfed9_0000)?;
            o.boolean("d", false)?;
            o.numbers("e", &[3, 4])?;
            o.strings("f", &["x", "\"y\""])?;
            o.strings::<&str>("g", &[])
        });
        assert_eq!(
            text,
            "{\"a\":18446744073709551615,\"b\":null,\"c\":\"0xfed90000\",\"d\":false,\"e\":[3,4],\
             \"f\":[\"x\",\"\\\"y\\\"\"],\"g\":[]}"
        );
    }
}
