//! What is the same in all of firmware's tables: their header, and that all of their bytes add up to zero.
//!
//! Source: ACPI 6.5, 5.2.6 ("System Description Table Header").

/// Bytes of the header, which ends with the creator's revision.
pub(crate) const HEADER_BYTES: usize = 36;
/// Where the length is in it.
const LENGTH_AT: usize = 4;
/// Where the checksum is in it.
const CHECKSUM_AT: usize = 9;

/// The header of a table, without length and checksum.
pub(crate) fn begin(signature: [u8; 4], revision: u8) -> Vec<u8> {
    let mut table = Vec::with_capacity(256);
    table.extend(signature);
    table.extend([0; 4]);
    table.extend([revision, 0]);
    table.extend(b"HVRIG SOFTWARE");
    table.extend(1_u32.to_le_bytes());
    table.extend(b"HVRI");
    table.extend(1_u32.to_le_bytes());
    debug_assert_eq!(table.len(), HEADER_BYTES);
    table
}

/// The table, as long as it is now.
pub(crate) fn finish(mut table: Vec<u8>) -> Vec<u8> {
    let length = (table.len() as u32).to_le_bytes();
    for (to, byte) in table.iter_mut().skip(LENGTH_AT).zip(length) {
        *to = byte;
    }
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(CHECKSUM_AT) {
        *checksum = sum.wrapping_neg();
    }
    table
}
