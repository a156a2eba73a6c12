//! Commands as words, against an independent table.

use super::*;
use crate::spec::id_registers::Idr3;

const STREAM: StreamId = StreamId::new(0x8765_4321);
const SID: u64 = 0x8765_4321 << 32;
const VMID: Vmid = Vmid::new(0xabcd);
const ASID: Asid = Asid::new(0x1234);

fn ril() -> RangeInvalidation {
    Idr3::new().with_ril(true).range_invalidation().unwrap()
}

fn substream(number: u32) -> SubstreamId {
    SubstreamId::new(number).unwrap()
}

#[test]
fn configuration_commands_match_an_independent_table() {
    let table = [
        (Command::prefetch_config(STREAM), [SID | 0x01, 0]),
        (
            Command::config_stream(STREAM, Depth::Leaves),
            [SID | 0x03, 1],
        ),
        (Command::config_stream(STREAM, Depth::All), [SID | 0x03, 0]),
        (Command::config_all(), [0x04, 31]),
        (
            Command::config_context(STREAM, substream(0xf_fffe), Depth::Leaves),
            [SID | 0xffff_e000 | 0x05, 1],
        ),
        (Command::config_contexts(STREAM), [SID | 0x06, 0]),
    ];
    for (ours, literal) in table {
        assert_eq!(ours.words(), literal);
    }
    let range = |first, log2| Command::config_streams(StreamId::new(first), log2);
    assert_eq!(range(0x100, 8).unwrap().words(), [0x100 << 32 | 4, 7]);
    assert_eq!(
        range(0x8000_0000, 31).unwrap().words(),
        [0x8000_0000 << 32 | 4, 30]
    );
    assert_eq!(range(0x100, 9), None);
    assert_eq!(range(0, 0), None);
    assert_eq!(range(0, 32), None);
    let ahead = |start, log2| Command::prefetch_address(STREAM, Iova::new(start), log2);
    assert_eq!(ahead(0x20_0000, 9).unwrap().words(), [SID | 2, 0x20_0009]);
    assert_eq!(ahead(0, 32), None);
}

#[test]
fn tlb_commands_match_an_independent_table() {
    let vmid = 0xabcd << 32;
    let asid = 0x1234 << 48;
    let span = TlbSpan::address(Iova::new(0xffff_8000_0123_4fff));
    let page = 0xffff_8000_0123_4000;
    let (leaves, all) = (Depth::Leaves, Depth::All);
    let table = [
        (Command::tlb_first_vmid(VMID), [vmid | 0x10, 0]),
        (Command::tlb_first_asid(VMID, ASID), [asid | vmid | 0x11, 0]),
        (
            Command::tlb_first_address(VMID, ASID, &span, leaves),
            [asid | vmid | 0x12, page | 1],
        ),
        (
            Command::tlb_first_address_any_asid(VMID, &span, all),
            [vmid | 0x13, page],
        ),
        (Command::tlb_el2_all(), [0x20, 0]),
        (Command::tlb_el2_asid(ASID), [asid | 0x21, 0]),
        (
            Command::tlb_el2_address(ASID, &span, leaves),
            [asid | 0x22, page | 1],
        ),
        (Command::tlb_el2_address_any_asid(&span, all), [0x23, page]),
        (Command::tlb_vmid(VMID), [vmid | 0x28, 0]),
        (
            Command::tlb_second_address(VMID, &span, leaves),
            [vmid | 0x2a, page | 1],
        ),
        (Command::tlb_all(), [0x30, 0]),
    ];
    for (ours, literal) in table {
        assert_eq!(ours.words(), literal);
    }
}

#[test]
fn ranges_match_an_independent_table() {
    let range = |granule, start, units, scale, level| {
        let span = TlbSpan::range(ril(), granule, Iova::new(start), units, scale, level)?;
        Some(Command::tlb_second_address(Vmid::new(0), &span, Depth::All).words())
    };
    use Granule::{Size4K, Size16K, Size64K};
    assert_eq!(
        range(Size4K, 0x20_0000, 32, 31, Some(2)),
        Some([0x2a | 31 << 12 | 31 << 20, 0x20_0000 | 2 << 8 | 1 << 10])
    );
    assert_eq!(
        range(Size16K, 0x4000, 2, 0, None),
        Some([0x2a | 1 << 12, 0x4000 | 2 << 10])
    );
    // One granule, at a level that is known.
    assert_eq!(
        range(Size64K, 0x1_0000, 1, 0, Some(3)),
        Some([0x2a, 0x1_0000 | 3 << 8 | 3 << 10])
    );
    assert_eq!(
        range(Size4K, 0x1000, 1, 1, None),
        Some([0x2a | 1 << 20, 0x1000 | 1 << 10])
    );
}

#[test]
fn reserved_ranges_cannot_be_said() {
    use Granule::{Size4K, Size16K, Size64K};
    let range = |granule, start, units, scale, level| {
        TlbSpan::range(ril(), granule, Iova::new(start), units, scale, level).is_some()
    };
    // NUM, SCALE and TTL all zero.
    for granule in [Size4K, Size16K, Size64K] {
        assert!(!range(granule, 0, 1, 0, None));
        assert!(range(granule, 0, 1, 0, Some(3)));
        assert!(!range(granule, granule.bytes() / 2, 2, 0, None));
        assert!(!range(granule, 0, 2, 0, Some(0)) && !range(granule, 0, 2, 0, Some(4)));
    }
    assert!(!range(Size4K, 0, 0, 1, None) && !range(Size4K, 0, 33, 1, None));
    assert!(!range(Size4K, 0, 2, 32, None));
    // Leaves of 2 MiB do not start in the middle of one; 16 KiB granules have none at level 1.
    assert!(!range(Size4K, 0x1000, 2, 0, Some(2)));
    assert!(!range(Size16K, 0, 2, 0, Some(1)));
    assert_eq!(Idr3::new().range_invalidation(), None);
}

#[test]
fn device_commands_match_an_independent_table() {
    let pages = AtcSpan::pages(Iova::new(0x20_0000), 9).unwrap();
    let atc = |scope, span| Command::atc_invalidate(STREAM, scope, &span).words();
    assert_eq!(
        atc(AtcScope::WithoutSubstream, pages),
        [SID | 0x40, 0x20_0009]
    );
    let one = AtcScope::Substream(substream(5));
    assert_eq!(atc(one, AtcSpan::ALL), [SID | 5 << 12 | 1 << 11 | 0x40, 52]);
    assert_eq!(
        atc(AtcScope::AllSubstreams, AtcSpan::ALL),
        [SID | 1 << 11 | 1 << 9 | 0x40, 52]
    );
    assert_eq!(AtcSpan::pages(Iova::new(0x1000), 1), None);
    assert!(AtcSpan::pages(Iova::new(0), 51).is_some());
    assert_eq!(AtcSpan::pages(Iova::new(0), 52), None);
    let response = |substream, group, response| {
        Command::page_response(STREAM, substream, group, response).map(|command| command.words())
    };
    assert_eq!(
        response(None, 0x1ff, PageResponse::Success),
        Some([SID | 0x41, 0x21ff])
    );
    let with = [SID | 7 << 12 | 1 << 11 | 0x41, 0x1001];
    assert_eq!(
        response(Some(substream(7)), 1, PageResponse::Fail),
        Some(with)
    );
    assert_eq!(response(None, 0, PageResponse::Deny), Some([SID | 0x41, 0]));
    assert_eq!(response(None, 0x200, PageResponse::Deny), None);
    let resume = |resume| Command::resume(STREAM, StallTag::new(0xffee), resume).words();
    assert_eq!(resume(Resume::Terminate), [SID | 0x44, 0xffee]);
    assert_eq!(resume(Resume::Retry), [SID | 1 << 12 | 0x44, 0xffee]);
    assert_eq!(resume(Resume::Abort), [SID | 2 << 12 | 0x44, 0xffee]);
    assert_eq!(Command::stall_terminate(STREAM).words(), [SID | 0x45, 0]);
}

#[test]
fn syncs_match_an_independent_table() {
    assert_eq!(Command::sync(SyncSignal::None).words(), [0x46, 0]);
    assert_eq!(Command::sync(SyncSignal::Interrupt).words(), [0x1046, 0]);
    assert_eq!(Command::sync(SyncSignal::Event).words(), [0x2046, 0]);
    let message = SyncMessage::new(PhysAddr::new(0x4000_0004), 0xdead_beef).unwrap();
    let word0 = 0xdead_beef << 32 | 0xf << 24 | 3 << 22 | 1 << 12 | 0x46;
    assert_eq!(
        Command::sync(SyncSignal::Message(message)).words(),
        [word0, 0x4000_0004]
    );
    for address in [0, 2, 1 << 52] {
        assert_eq!(SyncMessage::new(PhysAddr::new(address), 0), None);
    }
}

#[test]
fn the_least_piece_around_two_addresses_has_both() {
    let around = |first: u64, last: u64| {
        let span = AtcSpan::around(Iova::new(first), Iova::new(last));
        Command::atc_invalidate(STREAM, AtcScope::WithoutSubstream, &span).words()
    };
    for (first, last, word1) in [
        (0x5000, 0x5fff, 0x5000),
        (0x5000, 0x6fff, 0x4000 | 2),
        (0x7000, 0x8fff, 4),
        (0x10_0000, 0x1f_ffff, 0x10_0000 | 8),
        (0, u64::MAX, 52),
        (u64::MAX, u64::MAX, 0xffff_ffff_ffff_f000),
    ] {
        assert_eq!(
            around(first, last),
            [SID | 0x40, word1],
            "{first:#x} to {last:#x}"
        );
    }
}
