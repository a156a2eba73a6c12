//! Offsets, bits and values by their numbers.

use super::*;

#[test]
fn registers_have_their_widths_and_nothing_lies_between() {
    assert_eq!(
        (width(0x00), width(0x08), width(0x18)),
        (Some(32), Some(64), Some(32))
    );
    assert_eq!(
        (width(0x90), width(0x9c), width(0xb8)),
        (Some(64), Some(32), Some(64))
    );
    assert_eq!(
        (width(0x04), width(0x0c), width(0x24), width(0xf0)),
        (None, None, None, None)
    );
    let mut end = 0;
    for (offset, bits) in (0..0x4000).filter_map(|at| Some((at, width(at)?))) {
        assert!(
            offset >= end && offset.is_multiple_of(bits / 8),
            "{offset:#x}"
        );
        end = offset + bits / 8;
    }
    assert!(end <= FIXED_END);
}

#[test]
fn commands_are_levels_or_one_shots() {
    // Linux, ACRN and Intel's datasheets keep exactly these bits of GSTS for the next command.
    assert_eq!(!ONE_SHOTS, 0x96ff_ffff);
    assert_eq!(LEVELS & ONE_SHOTS, 0);
    assert_eq!(LEVELS | ONE_SHOTS, 0xff80_0000);
    assert_eq!(FSTS_CLEARABLE, 0x7d);
    assert_eq!(FSTS_CONDITIONS, FSTS_CLEARABLE | 0x02);
    assert_eq!((FECTL_IM, FECTL_IP), (0x8000_0000, 0x4000_0000));
    assert_eq!((FEADDR_KNOWN, FEUADDR_KNOWN), (0xffff_fffc, 0xffff_ff00));
}

#[test]
fn root_tables_are_named_without_reserved_bits() {
    assert_eq!(root_table(0x1_2345_6000, 39), Ok(0x1_2345_6000));
    let (found, rule) = (0x200, "VT-d manual, RTADDR bits 9:0");
    assert_eq!(
        root_table(0x1200, 39),
        Err(BadRegister::Reserved { found, rule })
    );
    for (value, found) in [(0x1400, 1), (0x1800, 2), (0x1c00, 3)] {
        assert_eq!(root_table(value, 39), Err(BadRegister::TableMode { found }));
    }
    assert!(root_table(0x80_0000_1000, 39).is_err() && root_table(0x80_0000_1000, 40).is_ok());
}

#[test]
fn queues_have_a_size_and_are_aligned_to_it() {
    let queue = |base, entries, wide| {
        Ok(Queue {
            base,
            entries,
            wide,
        })
    };
    assert_eq!(queue_address(0x7000, 39), queue(0x7000, 256, false));
    assert_eq!(queue_address(0x8003, 39), queue(0x8000, 2048, false));
    assert_eq!(queue_address(0x7800, 39), queue(0x7000, 128, true));
    let (found, bytes) = (0x7000, 0x2000);
    assert_eq!(
        queue_address(0x7001, 39),
        Err(BadRegister::QueueAlignment { found, bytes })
    );
    for reserved in [0x7008, 0x7400, 0x80_0000_0000] {
        assert!(queue_address(reserved, 39).is_err(), "{reserved:#x}");
    }
    assert_eq!(queue_tail(0x7_fff0), Ok(0x7_fff0));
    for reserved in [0x8, 0x1, 0x8_0000, 1 << 63] {
        assert!(queue_tail(reserved).is_err(), "{reserved:#x}");
    }
}
