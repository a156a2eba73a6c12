//! The MCFG: where PCI configuration space is mapped.

use arrayvec::ArrayVec;
use hv_core::{PhysAddr, Segment};
use zerocopy::FromBytes;

use super::error::AcpiError;
use super::spec::{MCFG_RESERVED_BYTES, McfgEntry};
use super::tables::{Signature, body};
use crate::pci::EcamRegion;

/// Most regions that are kept; one segment mostly has one.
const MAX_REGIONS: usize = 16;
/// Decodes one entry.
fn region(entry: &McfgEntry) -> Result<EcamRegion, AcpiError> {
    let (first, last) = (entry.first_bus, entry.last_bus);
    let segment = entry.segment.get();
    if first > last {
        return Err(AcpiError::BusRange {
            segment,
            first,
            last,
        });
    }
    let base = PhysAddr::new(entry.base.get());
    EcamRegion::new(Segment(segment), first..=last, base).ok_or(AcpiError::Unreadable {
        what: Signature::MCFG,
        address: base,
        wanted: EcamRegion::bytes(first..=last) as u32,
    })
}

/// The decoded table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mcfg {
    /// The regions, in table order.
    pub regions: ArrayVec<EcamRegion, MAX_REGIONS>,
}

impl Mcfg {
    /// Decodes a whole table, header included.
    ///
    /// # Errors
    /// [`AcpiError`] when the table is cut, a region covers no bus or passes the end of memory, or
    /// there are too many.
    pub fn parse(table: &[u8]) -> Result<Self, AcpiError> {
        let body = body(table, Signature::MCFG)?;
        let entries = body.get(MCFG_RESERVED_BYTES..).ok_or(AcpiError::TooShort {
            table: Signature::MCFG,
            offset: 0,
            found: table.len(),
            minimum: table.len() - body.len() + MCFG_RESERVED_BYTES,
        })?;
        let mut regions = ArrayVec::new();
        let mut rest = entries;
        while !rest.is_empty() {
            let (entry, next) =
                McfgEntry::ref_from_prefix(rest).map_err(|_| AcpiError::PastEnd {
                    table: Signature::MCFG,
                    offset: table.len() - rest.len(),
                    found: size_of::<McfgEntry>(),
                    end: table.len(),
                })?;
            regions
                .try_push(region(entry)?)
                .map_err(|_| AcpiError::TooMany {
                    table: Signature::MCFG,
                    limit: MAX_REGIONS,
                })?;
            rest = next;
        }
        Ok(Self { regions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(base: u64, segment: u16, first: u8, last: u8) -> Vec<u8> {
        let mut bytes = vec![0; 36 + MCFG_RESERVED_BYTES];
        bytes.extend(base.to_le_bytes());
        bytes.extend(segment.to_le_bytes());
        bytes.extend([first, last, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn a_region_starts_at_its_first_bus() {
        let mcfg = Mcfg::parse(&table(0xb000_0000, 2, 16, 31)).unwrap();
        let region = mcfg.regions[0];
        assert_eq!(region.segment(), Segment(2));
        assert_eq!(region.buses(), 16..=31);
        assert_eq!(region.range().start(), PhysAddr::new(0xb100_0000));
        assert_eq!(region.range().pages().bytes(), 16 << 20);
    }

    #[test]
    fn damage_is_named() {
        let mut cut = table(0xb000_0000, 0, 0, 255);
        cut.pop();
        assert!(matches!(
            Mcfg::parse(&cut),
            Err(AcpiError::PastEnd { offset: 44, .. })
        ));
        assert!(matches!(
            Mcfg::parse(&table(0, 1, 9, 8)),
            Err(AcpiError::BusRange {
                segment: 1,
                first: 9,
                last: 8
            })
        ));
        assert!(Mcfg::parse(&table(u64::MAX - 0xfff, 0, 0, 255)).is_err());
        assert!(Mcfg::parse(&table(0x123, 0, 0, 0)).is_err());
        assert!(Mcfg::parse(&[0; 37]).is_err());
    }
}
