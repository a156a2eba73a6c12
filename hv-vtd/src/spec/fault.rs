//! Fault records and reason codes.
//!
//! Source: VirtualBox `iommu-intel.h`, EDK2 `Vtd.h`, Linux `dmar.c` (reason strings).

use bitfield_struct::bitfield;
use hv_iommu::FaultClass;

/// Bytes of a fault record.
pub const RECORD_BYTES: u32 = 16;
/// Offset of the dword of a record that holds F.
pub const RECORD_F_DWORD: u32 = 12;
/// F within that dword; writing it as one frees the record.
pub const RECORD_F: u32 = 1 << 31;
/// The page address in the low word of a record (bits 63:12).
pub const RECORD_ADDRESS: u64 = 0xffff_ffff_ffff_f000;

/// The high word of a fault record.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RecordHigh {
    /// Requester id (bits 15:0).
    pub sid: u16,
    #[bits(12)]
    __: u16,
    /// Second bit of the request type, 0 before scalable mode (bit 28).
    pub t2: bool,
    /// A privileged request (bit 29).
    pub r#priv: bool,
    /// A request to execute (bit 30).
    pub exe: bool,
    /// The request had a PASID (bit 31).
    pub pp: bool,
    /// Reason code (bits 39:32).
    pub reason: u8,
    /// The PASID, if PP (bits 59:40).
    #[bits(20)]
    pub pasid: u32,
    /// Kind of address (bits 61:60).
    #[bits(2)]
    pub at: u8,
    /// First bit of the request type: 1 for a read where T2 is 0 (bit 62).
    pub t1: bool,
    /// The record is full (bit 63).
    pub f: bool,
}

/// What kind of mistake a reason code of the unit shows.
pub const fn class(reason: u8) -> FaultClass {
    match reason {
        // Root or context entry not present; scalable: root, context, directory, PASID entry.
        0x01 | 0x02 | 0x39 | 0x41 | 0x51 | 0x59 => FaultClass::NotBound,
        // Beyond the guest address width; beyond what the hardware, or the second stage, takes.
        0x04 | 0x83 | 0x84 => FaultClass::AddressTooWide,
        // No write, no read permission; scalable second and first stage not present, user mode,
        // execute, write, read.
        0x05 | 0x06 | 0x71 | 0x79 | 0x80..=0x82 | 0x85 | 0x86 => FaultClass::NotPermitted,
        // Translated request, or request with PASID, where the binding forbids it.
        0x0d | 0x31 | 0x32 | 0x44..=0x47 | 0x5c | 0x5d => FaultClass::RequestBlocked,
        // Table entry, root table, context table, and their scalable kin not readable.
        0x07..=0x09 | 0x38 | 0x40 | 0x50 | 0x58 | 0x70 | 0x73 | 0x74 | 0x78 => {
            FaultClass::StructureAccess
        }
        // Invalid context, reserved bits, output into the interrupt window, bad root pointer.
        0x03
        | 0x0a..=0x0c
        | 0x0e
        | 0x30
        | 0x33
        | 0x3a
        | 0x42
        | 0x43
        | 0x48
        | 0x52
        | 0x5a
        | 0x5b
        | 0x72
        | 0x75..=0x77
        | 0x7a..=0x7c
        | 0x87
        | 0x90
        | 0x91 => FaultClass::BadStructure,
        0x20..=0x29 => FaultClass::Interrupt,
        _ => FaultClass::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_bits_match_an_independent_table() {
        let record = RecordHigh::new();
        let table = [
            (record.with_sid(0xffff), 0xffff),
            (record.with_t2(true), 1 << 28),
            (record.with_priv(true), 1 << 29),
            (record.with_exe(true), 1 << 30),
            (record.with_pp(true), 1 << 31),
            (record.with_reason(0xff), 0xff << 32),
            (record.with_pasid(0xf_ffff), 0xf_ffff << 40),
            (record.with_at(3), 3 << 60),
            (record.with_t1(true), 1 << 62),
            (record.with_f(true), 1 << 63),
        ];
        for (ours, literal) in table {
            assert_eq!(ours.into_bits(), literal);
        }
        // F is the top bit of the last dword of the 16 bytes.
        assert_eq!(u64::from(RECORD_F) << 32, 1 << 63);
        assert_eq!(RECORD_F_DWORD, 8 + 4);
    }

    #[test]
    fn a_record_seen_in_an_emulator_decodes() {
        // QEMU 10: device 00:01.0 wrote to an unmapped page.
        let record = RecordHigh::from_bits(0x80ff_ff05_0000_0008);
        assert!(record.f() && !record.t1() && !record.pp());
        assert_eq!((record.sid(), record.reason()), (0x0008, 5));
        assert_eq!(class(record.reason()), FaultClass::NotPermitted);
    }

    #[test]
    fn reasons_have_their_class() {
        let table = [
            (0x01, FaultClass::NotBound),
            (0x02, FaultClass::NotBound),
            (0x03, FaultClass::BadStructure),
            (0x04, FaultClass::AddressTooWide),
            (0x06, FaultClass::NotPermitted),
            (0x07, FaultClass::StructureAccess),
            (0x0c, FaultClass::BadStructure),
            (0x0d, FaultClass::RequestBlocked),
            (0x26, FaultClass::Interrupt),
            (0x7f, FaultClass::Other),
            (0xff, FaultClass::Other),
        ];
        for (reason, expected) in table {
            assert_eq!(class(reason), expected, "reason {reason:#x}");
        }
    }
}
