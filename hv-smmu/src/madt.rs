//! The MADT: where the interrupt translation services are that the IORT names by number.
//!
//! [`parse`] reads those entries and no others; [`Firmware::place_services`] tells a description of an IORT where its
//! services are, and with that, where devices write their messages. What is damaged places nothing: a domain then has no
//! doorbell, and no memory takes its place.

use alloc::vec::Vec;

use hv_core::list::push;
use hv_core::{OutOfMemory, PhysAddr};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::firmware::Firmware;
use crate::spec::madt as spec;

/// Interrupt translation services: their number, and where their registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicesPlace {
    /// Their number.
    pub number: u32,
    /// Their registers.
    pub base: PhysAddr,
}

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MadtError {
    /// It is no MADT.
    #[error("MADT: expected the signature {:?}, found {found:?}", spec::SIGNATURE)]
    Signature {
        /// What stands there.
        found: [u8; 4],
    },
    /// It does not end where it says.
    #[error("MADT: expected at least {expected} bytes, found {found}")]
    Length {
        /// What its header, or the header itself, needs.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Its bytes do not add up to zero.
    #[error("MADT: expected bytes that add up to 0, found {found}")]
    Checksum {
        /// What they add up to.
        found: u8,
    },
    /// An entry is too short, or passes the end of the table.
    #[error(
        "MADT: expected an entry of at least {expected} bytes inside the table at offset {offset}, found {found}"
    )]
    Entry {
        /// Where it stands.
        offset: u64,
        /// What its kind needs.
        expected: u64,
        /// What it says.
        found: u64,
    },
    /// Services are nowhere that they can be.
    #[error(
        "MADT: expected the registers of the services {number} at a multiple of {:#x} that is not 0 and at one place, found \
         {base}",
        spec::ITS_ALIGN
    )]
    Base {
        /// Which.
        number: u32,
        /// Where.
        base: PhysAddr,
    },
    /// There was no memory to keep what it says.
    #[error("MADT: {0}")]
    OutOfMemory(#[from] OutOfMemory),
}

/// The interrupt translation services that a MADT lists.
///
/// # Errors
/// [`MadtError`].
pub fn parse(bytes: &[u8]) -> Result<Vec<ServicesPlace>, MadtError> {
    let short = |expected: usize| MadtError::Length {
        expected: expected as u64,
        found: bytes.len() as u64,
    };
    let behind = size_of::<spec::TableHeader>();
    let (header, _) = spec::TableHeader::read_from_prefix(bytes).map_err(|_| short(behind))?;
    if header.signature != spec::SIGNATURE {
        let found = header.signature;
        return Err(MadtError::Signature { found });
    }
    let length = (header.length.get() as usize).max(behind);
    let table = bytes.get(..length).ok_or(short(length))?;
    let found = table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    if found != 0 {
        return Err(MadtError::Checksum { found });
    }
    let mut services = Vec::new();
    let mut offset = behind;
    while let Some(rest) = table.get(offset..).filter(|rest| !rest.is_empty()) {
        let entry = entry(rest, offset)?;
        if let Some(place) = services_of(entry, offset)? {
            let again = services
                .iter()
                .find(|other: &&ServicesPlace| other.number == place.number);
            match again {
                Some(other) if other.base != place.base => {
                    let ServicesPlace { number, base } = place;
                    return Err(MadtError::Base { number, base });
                }
                Some(_) => {}
                None => push(&mut services, place)?,
            }
        }
        offset = offset.saturating_add(entry.len());
    }
    Ok(services)
}

/// The entry at the start of `rest`, which stands at `offset`.
fn entry(rest: &[u8], offset: usize) -> Result<&[u8], MadtError> {
    let least = size_of::<spec::EntryHeader>();
    let wrong = |found: usize| MadtError::Entry {
        offset: offset as u64,
        expected: least as u64,
        found: found as u64,
    };
    let (header, _) = spec::EntryHeader::read_from_prefix(rest).map_err(|_| wrong(rest.len()))?;
    let length = usize::from(header.length);
    rest.get(..length)
        .filter(|_| length >= least)
        .ok_or(wrong(length))
}

/// What an entry says of services, if that is its kind.
fn services_of(entry: &[u8], offset: usize) -> Result<Option<ServicesPlace>, MadtError> {
    if entry.first() != Some(&spec::TYPE_ITS) {
        return Ok(None);
    }
    let (raw, _) = spec::ItsEntry::read_from_prefix(entry).map_err(|_| MadtError::Entry {
        offset: offset as u64,
        expected: size_of::<spec::ItsEntry>() as u64,
        found: entry.len() as u64,
    })?;
    let (number, base) = (raw.id.get(), raw.base.get());
    if base == 0 || !base.is_multiple_of(spec::ITS_ALIGN) {
        let base = PhysAddr::new(base);
        return Err(MadtError::Base { number, base });
    }
    let base = PhysAddr::new(base);
    Ok(Some(ServicesPlace { number, base }))
}

impl Firmware {
    /// Tells where services are that are known by their numbers alone, and gives how many were placed. Those that are told
    /// somewhere else already stay; so does a group of several, of which nobody says which one takes a device's messages.
    pub fn place_services(&mut self, places: &[ServicesPlace]) -> usize {
        let mut placed = 0;
        for services in &mut self.services {
            let [number] = services.numbers[..] else {
                continue;
            };
            let place = places.iter().find(|place| place.number == number);
            if let Some(place) = place.filter(|_| services.base.is_none()) {
                services.base = Some(place.base);
                placed += 1;
            }
        }
        placed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::MessageServices;

    /// A table, byte by byte: a GICC entry of 82 bytes, services 0 and 7.
    fn table() -> Vec<u8> {
        let mut bytes = Vec::from(*b"APIC");
        bytes.extend([0; 4]);
        bytes.extend([5, 0]);
        bytes.extend([b'x'; 26]);
        bytes.extend([0; 8]);
        bytes.extend([11, 82]);
        bytes.extend([0x0f; 80]);
        for (number, base) in [(0_u32, 0x0808_0000_u64), (7, 0x1_0808_0000)] {
            bytes.extend([15, 20, 0, 0]);
            bytes.extend(number.to_le_bytes());
            bytes.extend(base.to_le_bytes());
            bytes.extend([0; 4]);
        }
        sealed(bytes)
    }

    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes[9] = 0;
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[9] = sum.wrapping_neg();
        bytes
    }

    fn place(number: u32, base: u64) -> ServicesPlace {
        let base = PhysAddr::new(base);
        ServicesPlace { number, base }
    }

    #[test]
    fn services_are_found_behind_other_entries() {
        let both = [place(0, 0x0808_0000), place(7, 0x1_0808_0000)];
        assert_eq!(parse(&table()).unwrap(), both);
        // What follows the table in memory is none of it.
        let mut longer = table();
        longer.extend([0xff; 9]);
        assert_eq!(parse(&longer).unwrap(), both);
    }

    #[test]
    fn a_damaged_table_places_nothing() {
        let good = table();
        for length in 0..good.len() {
            assert!(parse(&good[..length]).is_err(), "{length} bytes");
        }
        for bit in 0..good.len() * 8 {
            let mut damaged = good.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged).is_err(), "bit {bit}");
            // With the checksum put right it may say something else, and never more than it has room for.
            if let Ok(found) = parse(&sealed(damaged)) {
                assert!(found.len() <= 2 + 82 / 20);
            }
        }
    }

    #[test]
    fn entries_that_cannot_be_are_named() {
        let with = |at: usize, bytes: &[u8]| {
            let mut table = table();
            table[at..at + bytes.len()].copy_from_slice(bytes);
            parse(&sealed(table)).unwrap_err()
        };
        let its = 44 + 82;
        assert!(matches!(
            with(44 + 1, &[0]),
            MadtError::Entry { offset: 44, .. }
        ));
        assert!(matches!(
            with(its + 1, &[19]),
            MadtError::Entry { found: 19, .. }
        ));
        assert!(matches!(
            with(its + 21, &[21]),
            MadtError::Entry { found: 21, .. }
        ));
        let off = with(its + 8, &[1]);
        assert_eq!(
            off,
            MadtError::Base {
                number: 0,
                base: PhysAddr::new(0x0808_0001)
            }
        );
        // The second is the first's number, elsewhere.
        assert!(matches!(
            with(its + 24, &[0]),
            MadtError::Base { number: 0, .. }
        ));
        let mut long = table();
        long[4..6].copy_from_slice(&[0xff, 0xff]);
        let long = parse(&long).unwrap_err();
        let told = "MADT: expected at least 65535 bytes, found 166";
        assert_eq!(long.to_string(), told);
    }

    #[test]
    fn services_that_are_known_by_their_numbers_alone_are_placed() {
        let services = |numbers: &[u32], base: Option<u64>| MessageServices {
            tell_writers_apart: true,
            numbers: numbers.to_vec(),
            base: base.map(PhysAddr::new),
        };
        let mut firmware = Firmware {
            services: vec![
                services(&[7], None),
                services(&[0, 7], None),
                services(&[0], Some(0x5_0000)),
                services(&[9], None),
            ],
            ..Firmware::default()
        };
        assert_eq!(firmware.place_services(&parse(&table()).unwrap()), 1);
        let bases: Vec<_> = firmware.services.iter().map(|one| one.base).collect();
        let expected = [Some(0x1_0808_0000), None, Some(0x5_0000), None];
        assert_eq!(bases, expected.map(|base| base.map(PhysAddr::new)));
        let told: Vec<_> = firmware.services_without_place().collect();
        let told: Vec<_> = told.iter().map(ToString::to_string).collect();
        let [group, forgotten] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(
            group.starts_with("interrupt translation services 0, 7 are one group"),
            "{group}"
        );
        assert!(
            forgotten.starts_with("interrupt translation services 9 have no place")
                && forgotten.contains("madt::parse"),
            "{forgotten}"
        );
        // What takes messages of anybody needs none.
        for services in &mut firmware.services {
            services.tell_writers_apart = false;
        }
        assert_eq!(firmware.services_without_place().count(), 0);
    }
}
