//! Interrupt translation services: where their registers are, and what the MADT says of them.
//!
//! Source: the GIC architecture (Arm IHI 0069, "The ITS address map"): a frame of 64 KiB of control registers, then a frame
//! of 64 KiB in which GITS_TRANSLATER is at 0x40; ACPI 6.5, 5.2.12.18.

use crate::acpi;

/// Bytes of each of the two frames.
pub(crate) const FRAME_BYTES: u64 = 0x1_0000;
/// GITS_TRANSLATER, in the second frame: who writes there says which event, and the bus says who writes.
pub(crate) const TRANSLATER: u64 = 0x40;

/// Bytes of the MADT's header: that of every table, the address of a local controller, and flags.
#[cfg(test)]
const HEADER: usize = 44;
/// An entry for an ITS, and its bytes.
const ITS: u8 = 15;
const ITS_BYTES: u8 = 20;

/// The MADT: services by number and place, behind an entry that says nothing of them.
pub(crate) fn madt(services: &[(u32, u64)]) -> Vec<u8> {
    let mut bytes = acpi::begin(*b"APIC", 5);
    bytes.extend([0; 8]);
    // A distributor (type 12).
    bytes.extend([12, 24]);
    bytes.extend([0; 22]);
    for (number, base) in services {
        bytes.extend([ITS, ITS_BYTES, 0, 0]);
        bytes.extend(number.to_le_bytes());
        bytes.extend(base.to_le_bytes());
        bytes.extend([0; 4]);
    }
    acpi::finish(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_behind_the_header_and_add_up() {
        let bytes = madt(&[(7, 0x1_0808_0000)]);
        let at = HEADER + 24;
        assert_eq!(bytes.len(), at + 20);
        assert_eq!(bytes[at..at + 2], [15, 20]);
        assert_eq!(bytes[at + 4..at + 8], 7_u32.to_le_bytes());
        assert_eq!(bytes[at + 8..at + 16], 0x1_0808_0000_u64.to_le_bytes());
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
    }
}
