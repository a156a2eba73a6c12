//! The Arm image as a flat file, as boot loaders want it that read no ELF: they put it where its header says, and say in x0
//! where the device tree is (Linux Documentation/arch/arm64/booting.rst). QEMU's ELF loader says nothing there, so that way
//! into the image has a boot of its own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Program headers in an ELF64 file: where they are, the size of one, their number (System V ABI, Object Files).
const TABLE: [usize; 3] = [0x20, 0x36, 0x38];
/// In a program header: kind, offset in the file, physical address, bytes in the file.
const FIELDS: [usize; 4] = [0x00, 0x08, 0x18, 0x20];
/// The kind that is loaded.
const LOAD: u64 = 1;
/// Where a flat file has the magic number of arm64.
const MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");
/// More than the image will ever be.
const MOST: usize = 64 << 20;

/// Writes the flat form of an ELF file beside it, and tells where.
///
/// # Errors
/// When the file cannot be read or written, or is no such image.
pub(crate) fn write(elf: &Path) -> Result<PathBuf> {
    let bytes = fs::read(elf).with_context(|| format!("reading {}", elf.display()))?;
    let flat = flatten(&bytes).with_context(|| format!("flattening {}", elf.display()))?;
    let path = elf.with_extension("flat");
    fs::write(&path, flat).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// What memory holds from the first loaded byte on, up to the last that the file has.
fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    ensure!(
        elf.starts_with(b"\x7fELF\x02\x01"),
        "expected a little-endian ELF64 file"
    );
    let [table, size, count] = TABLE;
    let (table, size) = (number(elf, table, 8)?, number(elf, size, 2)?);
    let mut parts = Vec::new();
    for index in 0..number(elf, count, 2)? {
        let header = usize::try_from(table + index * size)?;
        let field = |at: usize, bytes| number(elf, header + at, bytes);
        let [kind, offset, address, bytes] = FIELDS;
        if field(kind, 4)? != LOAD {
            continue;
        }
        let (offset, bytes) = (
            usize::try_from(field(offset, 8)?)?,
            usize::try_from(field(bytes, 8)?)?,
        );
        let part = offset
            .checked_add(bytes)
            .and_then(|end| elf.get(offset..end));
        parts.push((
            field(address, 8)?,
            part.context("a segment beyond the end of the file")?,
        ));
    }
    let start = parts.iter().map(|(address, _)| *address).min();
    let start = start.context("expected something to load")?;
    let mut flat = Vec::new();
    for (address, part) in parts {
        let at = usize::try_from(address - start)?;
        let end = at.checked_add(part.len()).filter(|end| *end <= MOST);
        let end = end.context("segments that lie too far apart")?;
        if flat.len() < end {
            flat.resize(end, 0);
        }
        flat[at..end].copy_from_slice(part);
    }
    let (at, magic) = MAGIC;
    let found = flat.get(at..at + magic.len());
    ensure!(
        found == Some(magic),
        "expected {magic:x?} at {at:#x}, found {found:x?}"
    );
    Ok(flat)
}

/// A little-endian number of the file.
fn number(elf: &[u8], at: usize, bytes: usize) -> Result<u64> {
    let found = elf
        .get(at..at + bytes)
        .context("a header beyond the end of the file")?;
    Ok(found
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of two segments, the second one first in it and 0x40 bytes behind the first one in memory.
    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 0x200];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(0x20, &[0x40]);
        put(0x36, &[0x38]);
        put(0x38, &[3]);
        for (at, kind, offset, address) in [
            (0x40, 1, 0x180, 0x1040),
            (0x78, 6, 0, 0),
            (0xb0, 1, 0x100, 0x1000_u64),
        ] {
            put(at, &[kind]);
            put(at + 8, &(offset as u64).to_le_bytes());
            put(at + 0x18, &address.to_le_bytes());
            put(at + 0x20, &0x3c_u64.to_le_bytes());
        }
        put(0x138, b"ARM\x64");
        put(0x180, &[7; 0x3c]);
        elf
    }

    #[test]
    fn segments_lie_in_the_file_as_in_memory() {
        let flat = flatten(&elf()).unwrap();
        assert_eq!(flat.len(), 0x7c);
        assert_eq!(&flat[0x38..0x3c], b"ARM\x64");
        assert_eq!(
            (&flat[0x3c..0x40], &flat[0x40..]),
            (&[0; 4][..], &[7; 0x3c][..])
        );
    }

    #[test]
    fn what_is_no_such_image_is_refused() {
        let refused = |at: usize, byte: u8| {
            let mut elf = elf();
            elf[at] = byte;
            flatten(&elf).unwrap_err().to_string()
        };
        assert!(refused(0, 0).contains("ELF64"));
        assert!(refused(0x138, 0).contains("found Some([0, 52, 4d, 64])"));
        assert!(refused(0x40 + 0x22, 1).contains("end of the file"));
        assert!(refused(0x40 + 0x1c, 1).contains("too far apart"));
        assert!(flatten(&elf()[..0x100]).is_err());
    }
}
