//! Fault reasons of legacy mode, and the record that a fault leaves.

use super::{at, bits};

// Reasons of DMA faults in legacy mode (VT-d manual, fault reasons; the last one VirtualBox).

/// The root entry is not present.
pub(crate) const ROOT_NOT_PRESENT: u8 = 0x1;
/// The context entry is not present.
pub(crate) const CONTEXT_NOT_PRESENT: u8 = 0x2;
/// The context entry is invalid: its type, its width.
pub(crate) const CONTEXT_INVALID: u8 = 0x3;
/// The address is wider than the tables or MGAW.
pub(crate) const ADDRESS_BEYOND_WIDTH: u8 = 0x4;
/// The tables do not let writes pass.
pub(crate) const NO_WRITE: u8 = 0x5;
/// The tables do not let reads pass.
pub(crate) const NO_READ: u8 = 0x6;
/// A second-stage entry could not be read.
const ENTRY_ACCESS: u8 = 0x7;
/// The root table could not be read.
const ROOT_ACCESS: u8 = 0x8;
/// The context table could not be read.
const CONTEXT_ACCESS: u8 = 0x9;
/// The root entry has reserved bits.
pub(crate) const ROOT_RESERVED: u8 = 0xa;
/// The context entry has reserved bits.
pub(crate) const CONTEXT_RESERVED: u8 = 0xb;
/// A second-stage entry has reserved bits.
pub(crate) const ENTRY_RESERVED: u8 = 0xc;
/// The context entry's type blocks translation requests, and what devices translated.
const BLOCKED_BY_TYPE: u8 = 0xd;
/// The tables lead to the interrupt window.
pub(crate) const OUTPUT_IN_INTERRUPT_WINDOW: u8 = 0xe;

/// Bytes of a record (VT-d manual, Fault Recording Registers: 128 bits).
pub(crate) const RECORD_BYTES: u32 = 16;
/// Bit 127 of a record, of which this is bit 63 of the upper half: it is full. Writing a one empties it.
pub(crate) const RECORD_F: u64 = 1 << 63;
/// Where a record's T1 is in the upper half: 1 for a read, 0 for a write.
const RECORD_T1: u32 = 62;
/// Where a record's reason is in the upper half, in 39:32; the requester is in 15:0.
const RECORD_REASON: u32 = 32;

/// Whether legacy mode gives this reason.
const fn is_reason(reason: u8) -> bool {
    matches!(
        reason,
        ROOT_NOT_PRESENT
            | CONTEXT_NOT_PRESENT
            | CONTEXT_INVALID
            | ADDRESS_BEYOND_WIDTH
            | NO_WRITE
            | NO_READ
            | ENTRY_ACCESS
            | ROOT_ACCESS
            | CONTEXT_ACCESS
            | ROOT_RESERVED
            | CONTEXT_RESERVED
            | ENTRY_RESERVED
            | BLOCKED_BY_TYPE
            | OUTPUT_IN_INTERRUPT_WINDOW
    )
}

/// The two halves of a full record (VT-d manual, Fault Recording Registers): the page's address in 63:12
/// of the lower half.
pub(crate) fn record(source: u16, address: u64, is_read: bool, reason: u8) -> (u64, u64) {
    debug_assert!(
        is_reason(reason),
        "legacy mode has no fault reason {reason:#x}"
    );
    let high = u64::from(source)
        | at(reason.into(), RECORD_REASON)
        | at(is_read.into(), RECORD_T1)
        | RECORD_F;
    (address & bits(63, 12), high)
}

/// A reason in words.
pub(crate) const fn name(reason: u8) -> &'static str {
    match reason {
        ROOT_NOT_PRESENT => "no root entry",
        CONTEXT_NOT_PRESENT => "no context entry",
        CONTEXT_INVALID => "an invalid context entry",
        ADDRESS_BEYOND_WIDTH => "an address beyond the width",
        NO_WRITE => "no write permission",
        NO_READ => "no read permission",
        ROOT_RESERVED => "reserved bits in the root entry",
        CONTEXT_RESERVED => "reserved bits in the context entry",
        ENTRY_RESERVED => "reserved bits in a table entry",
        OUTPUT_IN_INTERRUPT_WINDOW => "a translation into the interrupt window",
        _ => "another reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_who_where_what_and_why() {
        assert_eq!(
            record(0x0210, 0x1234_5678_9abc, true, NO_READ),
            (0x1234_5678_9000, 0xc000_0006_0000_0210)
        );
        assert_eq!(
            record(0xffff, u64::MAX, false, NO_WRITE),
            (0xffff_ffff_ffff_f000, 0x8000_0005_0000_ffff)
        );
    }

    #[test]
    fn reasons_are_1_to_14() {
        assert!((1..=14).all(is_reason) && !is_reason(0) && !(15..=255).any(is_reason));
    }
}
