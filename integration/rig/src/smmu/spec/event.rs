//! Event records: which there are, and how they are written.

use crate::bits::{at, bits};

/// Bytes of a record.
pub(crate) const RECORD_BYTES: u64 = 32;

// Numbers (Linux `EVT_ID_*`, QEMU `SMMU_EVT_*`).

pub(crate) const BAD_STREAM: u8 = 0x02;
pub(crate) const BAD_STE: u8 = 0x04;
pub(crate) const BAD_ASK: u8 = 0x05;
pub(crate) const TRANSLATED_FORBIDDEN: u8 = 0x07;
pub(crate) const STREAM_DISABLED: u8 = 0x06;
pub(crate) const BAD_SUBSTREAM: u8 = 0x08;
pub(crate) const CONTEXT_ABORT: u8 = 0x09;
pub(crate) const BAD_CONTEXT: u8 = 0x0a;
pub(crate) const WALK_ABORT: u8 = 0x0b;
pub(crate) const TRANSLATION: u8 = 0x10;
pub(crate) const ADDRESS_SIZE: u8 = 0x11;
pub(crate) const ACCESS_FLAG: u8 = 0x12;
pub(crate) const PERMISSION: u8 = 0x13;

/// An event in words.
pub(crate) const fn name(code: u8) -> &'static str {
    match code {
        BAD_STREAM => "C_BAD_STREAMID: the stream is not in the table",
        BAD_STE => "C_BAD_STE: the stream's entry is invalid or illegal",
        BAD_ASK => "F_BAD_ATS_TREQ: the device may not ask for translations",
        TRANSLATED_FORBIDDEN => {
            "F_TRANSL_FORBIDDEN: the device may not use translations of its own"
        }
        STREAM_DISABLED => {
            "F_STREAM_DISABLED: the stream has no requests with, or without, that substream"
        }
        CONTEXT_ABORT => "F_CD_FETCH: the context descriptor lies where no memory is",
        BAD_CONTEXT => "C_BAD_CD: the context descriptor is invalid or illegal",
        BAD_SUBSTREAM => "C_BAD_SUBSTREAMID: the stream has no such substream",
        WALK_ABORT => "F_WALK_EABT: a table lies where no memory is",
        TRANSLATION => "F_TRANSLATION: nothing is mapped there",
        ADDRESS_SIZE => "F_ADDR_SIZE: the address leads further than the unit reaches",
        ACCESS_FLAG => "F_ACCESS: the access flag is clear",
        PERMISSION => "F_PERMISSION: the mapping does not allow it",
        _ => "an event that the rig's units do not have",
    }
}

/// At which stage a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Before both, at the first one by the record: it was passed over, and the address is too wide for the second.
    Neither,
    /// Before both, or at the first one.
    First,
    /// At the second one, with an address of the guest that was to be read or reached there.
    Second { address: u64, class: Class },
}

/// What was to be done with an address (CLASS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// To read a context descriptor, or what leads to one.
    Context = 0,
    /// To read a first-stage table.
    Table = 1,
    /// What the device asked for.
    Input = 2,
}

/// Whether a record of this event says which address was asked for, and how.
pub(crate) const fn has_address(code: u8) -> bool {
    code == TRANSLATED_FORBIDDEN || has_stage(code)
}

/// Whether it says at which stage that was refused.
pub(crate) const fn has_stage(code: u8) -> bool {
    code >= WALK_ABORT
}

/// Whether a stream's entry can turn the record off (S2R): faults of translation only.
pub(crate) const fn is_of_translation(code: u8) -> bool {
    code >= TRANSLATION
}

/// The four words of a record; with the tag of a request that stands still.
pub(crate) fn record(
    code: u8,
    (stream, substream): (u32, Option<u32>),
    (address, read): (u64, bool),
    stage: At,
    tag: Option<u16>,
) -> [u64; 4] {
    // SSV and SubstreamID.
    let carried = match substream {
        Some(substream) => at(1, 11) | at(substream as u64, 12),
        None => 0,
    };
    let first = code as u64 | carried | at(stream as u64, 32);
    if !has_address(code) {
        return [first, 0, 0, 0];
    }
    if !has_stage(code) {
        return [first, at(read as u64, 35), address, 0];
    }
    // RnW, S2, and CLASS. A table that is not there is one of class 1, whatever stage it is of.
    let (is_second, guests, class) = match stage {
        At::Neither | At::First => (0, 0, Class::Input),
        At::Second { address, class } => (1, address, class),
    };
    let class = if code == WALK_ABORT {
        Class::Table
    } else {
        class
    };
    // STALL and STAG.
    let stalled = tag.map_or(0, |tag| u64::from(tag) | at(1, 31));
    let second = stalled | at(read as u64, 35) | at(is_second, 39) | at(class as u64, 40);
    [first, second, address, guests & bits(51, 12)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_hold_what_happened() {
        let input = At::Second {
            address: 0x1234_5678,
            class: Class::Input,
        };
        let [first, second, third, fourth] =
            record(TRANSLATION, (0x108, None), (0x1234_5678, true), input, None);
        assert_eq!(first, 0x108_0000_0010);
        assert_eq!(second, 1 << 35 | 1 << 39 | 2 << 40);
        assert_eq!((third, fourth), (0x1234_5678, 0x1234_5000));
        let stalled = record(TRANSLATION, (0x108, None), (0, false), input, Some(0xbeef));
        assert_eq!(stalled[1], 0x8000_beef | 1 << 39 | 2 << 40);
        assert_eq!(
            record(BAD_STE, (1, None), (2, true), At::First, None),
            [0x1_0000_0004, 0, 0, 0]
        );
        assert_eq!(
            record(
                TRANSLATED_FORBIDDEN,
                (1, None),
                (0x2345, true),
                At::First,
                None
            ),
            [0x1_0000_0007, 1 << 35, 0x2345, 0]
        );
        let who = (1, Some(0x12345));
        let [first, ..] = record(BAD_SUBSTREAM, who, (2, true), At::First, None);
        assert_eq!(first, 0x1_1234_5808);
        let table = At::Second {
            address: 0x5000,
            class: Class::Table,
        };
        let what = (0x1_0000, false);
        let [_, second, third, fourth] = record(PERMISSION, (1, None), what, table, None);
        assert_eq!(
            (second, third, fourth),
            (1 << 39 | 1 << 40, 0x1_0000, 0x5000)
        );
        let [_, second, _, fourth] = record(TRANSLATION, (1, None), what, At::First, None);
        assert_eq!((second, fourth), (2 << 40, 0));
    }
}
