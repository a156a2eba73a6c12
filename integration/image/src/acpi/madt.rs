//! The MADT: which processors there are, and where their local APICs are.

use arrayvec::ArrayVec;
use hv_core::PhysAddr;
use zerocopy::FromBytes;

use super::error::AcpiError;
use super::spec::{
    LapicAddressOverride, LocalApic, LocalX2Apic, MADT_LAPIC_ADDRESS_OVERRIDE, MADT_LOCAL_APIC,
    MADT_LOCAL_X2APIC, MadtEntry, MadtFields, PROCESSOR_ENABLED,
};
use super::tables::{Signature, body};
use crate::MAX_CPUS;

/// The id of a local APIC: 8 bits wide in xAPIC mode, 32 in x2APIC mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LapicId(pub u32);

/// A processor that firmware says can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its local APIC's id.
    pub lapic_id: LapicId,
}

/// The decoded table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Madt {
    /// Physical address at which each processor sees its local APIC in xAPIC mode.
    pub lapic_address: PhysAddr,
    /// Enabled processors, in table order, each once.
    pub processors: ArrayVec<Processor, MAX_CPUS>,
}

impl Madt {
    /// Decodes a whole table, header included.
    ///
    /// # Errors
    /// [`AcpiError`] when a structure is too short, passes the end, or there are more than
    /// [`MAX_CPUS`] processors.
    pub fn parse(table: &[u8]) -> Result<Self, AcpiError> {
        let body = body(table, Signature::MADT)?;
        let header_bytes = table.len() - body.len();
        let (fields, mut rest) =
            MadtFields::ref_from_prefix(body).map_err(|_| AcpiError::TooShort {
                table: Signature::MADT,
                offset: 0,
                found: table.len(),
                minimum: header_bytes + size_of::<MadtFields>(),
            })?;
        let mut madt = Self {
            lapic_address: PhysAddr::new(fields.lapic_address.get().into()),
            processors: ArrayVec::new(),
        };
        while !rest.is_empty() {
            let offset = table.len() - rest.len();
            let past_end = |found| AcpiError::PastEnd {
                table: Signature::MADT,
                offset,
                found,
                end: table.len(),
            };
            let (entry, _) =
                MadtEntry::ref_from_prefix(rest).map_err(|_| past_end(size_of::<MadtEntry>()))?;
            let length = usize::from(entry.length);
            if length < size_of::<MadtEntry>() {
                return Err(too_short(offset, length, size_of::<MadtEntry>()));
            }
            let (structure, next) = rest
                .split_at_checked(length)
                .ok_or_else(|| past_end(length))?;
            madt.add(entry.kind, structure, offset)?;
            rest = next;
        }
        Ok(madt)
    }

    fn add(&mut self, kind: u8, structure: &[u8], offset: usize) -> Result<(), AcpiError> {
        match kind {
            MADT_LOCAL_APIC => {
                let (local, _) = LocalApic::ref_from_prefix(structure)
                    .map_err(|_| too_short(offset, structure.len(), size_of::<LocalApic>()))?;
                self.add_processor(local.apic_id.into(), local.flags.get())
            }
            MADT_LOCAL_X2APIC => {
                let (local, _) = LocalX2Apic::ref_from_prefix(structure)
                    .map_err(|_| too_short(offset, structure.len(), size_of::<LocalX2Apic>()))?;
                self.add_processor(local.apic_id.get(), local.flags.get())
            }
            MADT_LAPIC_ADDRESS_OVERRIDE => {
                let (place, _) =
                    LapicAddressOverride::ref_from_prefix(structure).map_err(|_| {
                        too_short(offset, structure.len(), size_of::<LapicAddressOverride>())
                    })?;
                self.lapic_address = PhysAddr::new(place.address.get());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add_processor(&mut self, lapic_id: u32, flags: u32) -> Result<(), AcpiError> {
        let processor = Processor {
            lapic_id: LapicId(lapic_id),
        };
        // Firmware may list a processor as both kinds.
        if flags & PROCESSOR_ENABLED == 0 || self.processors.contains(&processor) {
            return Ok(());
        }
        self.processors
            .try_push(processor)
            .map_err(|_| AcpiError::TooMany {
                table: Signature::MADT,
                limit: MAX_CPUS,
            })
    }
}

fn too_short(offset: usize, found: usize, minimum: usize) -> AcpiError {
    AcpiError::TooShort {
        table: Signature::MADT,
        offset,
        found,
        minimum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; 36];
        bytes.extend(0xfee0_0000u32.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        for entry in entries {
            bytes.extend_from_slice(entry);
        }
        bytes
    }

    fn local(id: u8, flags: u8) -> [u8; 8] {
        [0, 8, id, id, flags, 0, 0, 0]
    }

    #[test]
    fn enabled_processors_are_listed_once() {
        let x2 = [9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
        let io_apic = [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
        let madt = Madt::parse(&table(&[
            &local(0, 1),
            &io_apic,
            &local(1, 0),
            &local(2, 1),
            &local(2, 1),
            &x2,
        ]))
        .unwrap();
        let ids: Vec<u32> = madt.processors.iter().map(|p| p.lapic_id.0).collect();
        assert_eq!(ids, [0, 2, 0x1234]);
        assert_eq!(madt.lapic_address, PhysAddr::new(0xfee0_0000));
    }

    #[test]
    fn the_address_override_wins() {
        let over = [5, 12, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let madt = Madt::parse(&table(&[&over])).unwrap();
        assert_eq!(madt.lapic_address, PhysAddr::new(1 << 32));
    }

    #[test]
    fn damage_is_named() {
        let zero_length = Madt::parse(&table(&[&[0, 0]]));
        assert!(matches!(
            zero_length,
            Err(AcpiError::TooShort {
                offset: 44,
                found: 0,
                ..
            })
        ));
        let past_end = Madt::parse(&table(&[&[0, 8, 0]]));
        assert!(matches!(
            past_end,
            Err(AcpiError::PastEnd {
                offset: 44,
                found: 8,
                end: 47,
                ..
            })
        ));
        let cut = Madt::parse(&table(&[&[9, 4, 0, 0]]));
        assert!(matches!(
            cut,
            Err(AcpiError::TooShort {
                found: 4,
                minimum: 16,
                ..
            })
        ));
        assert!(Madt::parse(&table(&[&[7]])).is_err());
        assert!(Madt::parse(&[0; 40]).is_err());
        assert!(Madt::parse(&[]).is_err());
    }

    #[test]
    fn too_many_processors_are_an_error() {
        let locals: Vec<[u8; 8]> = (0..=MAX_CPUS).map(|id| local(id as u8, 1)).collect();
        let entries: Vec<&[u8]> = locals.iter().map(|entry| &entry[..]).collect();
        assert!(matches!(
            Madt::parse(&table(&entries)),
            Err(AcpiError::TooMany {
                limit: MAX_CPUS,
                ..
            })
        ));
    }
}
