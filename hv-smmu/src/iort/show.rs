//! The table for people: one line for each node and each of its parts.

use core::fmt;

use super::{Header, Iort, ItsGroup, Mapping, NamedComponent, ReservedMemory, RootComplex, SmmuV3};

/// Text of firmware, where whatever is not printable ASCII is shown as a dot.
pub(crate) struct Ascii<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for &byte in self.0 {
            let shown = byte == b' ' || byte.is_ascii_graphic();
            f.write_char(if shown { byte as char } else { '.' })?;
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Ascii<'_> {
    let end = bytes
        .iter()
        .rposition(|byte| !matches!(byte, 0 | b' '))
        .map_or(0, |last| last + 1);
    Ascii(bytes.get(..end).unwrap_or_default())
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IORT revision {} by {} ({}), {} bytes, {} nodes",
            self.revision,
            text(&self.oem_id),
            text(&self.oem_table_id),
            self.length,
            self.node_count
        )
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window().input() {
            Some((first, last)) => write!(f, "ids {first:#x}-{last:#x}")?,
            None => f.write_str("any id")?,
        }
        write!(f, " to {:#x} of {}", self.output_base, self.output)
    }
}

fn mappings(f: &mut fmt::Formatter<'_>, mappings: &[Mapping]) -> fmt::Result {
    for mapping in mappings {
        write!(f, "\n    {mapping}")?;
    }
    Ok(())
}

impl fmt::Display for ItsGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: services {:?}", self.node.place, self.ids)
    }
}

impl fmt::Display for NamedComponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node.place, text(&self.name))?;
        mappings(f, &self.mappings)
    }
}

impl fmt::Display for RootComplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, segment) = (self.node.place, self.segment.0);
        write!(
            f,
            "{place}: segment {segment:04x}, ATS attributes {:#x}",
            self.ats
        )?;
        mappings(f, &self.mappings)
    }
}

impl fmt::Display for SmmuV3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let coherent = if self.coherent() {
            "coherent"
        } else {
            "not coherent"
        };
        write!(
            f,
            "{}: registers {}, {coherent}, model {}",
            self.node.place, self.registers, self.model
        )?;
        if let Some(own) = self.own_messages {
            write!(f, "\n    own messages: {own}")?;
        }
        mappings(f, &self.mappings)
    }
}

impl fmt::Display for ReservedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: flags {:#x}", self.node.place, self.flags)?;
        for range in &self.ranges {
            write!(f, "\n    {range}")?;
        }
        mappings(f, &self.mappings)
    }
}

impl fmt::Display for Iort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.header)?;
        for group in &self.its_groups {
            write!(f, "\n  {group}")?;
        }
        for unit in &self.units {
            write!(f, "\n  {unit}")?;
        }
        for unit in &self.old_units {
            write!(f, "\n  {}: registers at {}", unit.node.place, unit.base)?;
        }
        for root in &self.root_complexes {
            write!(f, "\n  {root}")?;
        }
        for component in &self.components {
            write!(f, "\n  {component}")?;
        }
        for reserved in &self.reserved {
            write!(f, "\n  {reserved}")?;
        }
        for group in &self.counters {
            write!(f, "\n  {}: registers at {}", group.node.place, group.base)?;
        }
        for place in &self.wire_bridges {
            write!(f, "\n  {place}")?;
        }
        for finding in &self.findings {
            write!(f, "\n  finding: {finding}")?;
        }
        Ok(())
    }
}
