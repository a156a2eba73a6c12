//! Bounce pages: an untrusted device sees the bytes of its buffer and zeros, and changes no others.

use hv_core::platform::FrameSource;
use hv_iommu::{
    Bidirectional, BounceError, ByteWindow, DmaConfig, DmaMapError, DmaRefusal, FlushSpan,
    FromDevice, ToDevice,
};
use hv_tests::fake::{Answer, Call, DmaFault};

use super::{bouncing, filled, reads, trusting, word, writes};
use crate::heap::taken_by;
use crate::machine::{Machine, NIC, end_domain, pages};

const fn window(offset: u64, bytes: u64) -> ByteWindow {
    ByteWindow { offset, bytes }
}

/// Windows of runs: how many pages the run has, and which bytes of it.
const WINDOWS: [(u64, ByteWindow); 8] = [
    (1, window(0, 8)),
    (1, window(0x40, 0x100)),
    (1, window(0xff8, 8)),
    (2, window(0x800, 0x1000)),
    (2, window(0, 0x1008)),
    (3, window(0x10, 0x2ff0)),
    (3, window(0x7f8, 0x1810)),
    (5, window(0xff8, 0x3010)),
];

/// How many pages of the run the window fills in part.
fn bounced(pages: u64, window: ByteWindow) -> u64 {
    let head = window.offset != 0;
    let tail = !(window.offset + window.bytes).is_multiple_of(4096);
    match pages {
        1 => u64::from(head || tail),
        _ => u64::from(head) + u64::from(tail),
    }
}

#[test]
fn no_byte_beside_a_buffer_reaches_an_untrusted_device() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 4);
    let dma = driver.domain.dma_device(DmaConfig::default());
    // Twice, so that bounce pages are used again with other bytes in them.
    for (seed, (count, window)) in (0..).zip(WINDOWS.into_iter().chain(WINDOWS)) {
        let seed = (seed + 1) * 0x100_0000;
        let run = filled(&machine, count, seed);
        let frames = run.range();
        let mapping = dma.map_bytes(run, window, Bidirectional).unwrap();
        let whole = bounced(count, window) == 0;
        assert_eq!(mapping.is_bounced(), !whole);
        assert_eq!(
            driver.domain.free_bounce_pages(),
            4 - bounced(count, window)
        );
        assert_eq!(mapping.bytes(), window.bytes);
        let start = mapping.span().start();
        assert_eq!(mapping.iova().as_u64() - start.as_u64(), window.offset);
        let inside = |offset: u64| (window.offset..window.offset + window.bytes).contains(&offset);
        for offset in (0..count << 12).step_by(8) {
            let expected = match inside(offset) {
                true => seed + offset / 8,
                false => 0,
            };
            let seen = reads(&machine, start, offset);
            assert_eq!(seen, Ok(expected), "{window} of {count} pages: {offset:#x}");
            writes(&machine, start, offset, !offset).unwrap();
        }
        let run = mapping.unmap().flush().unwrap();
        assert_eq!(run.range(), frames);
        for offset in (0..count << 12).step_by(8) {
            let expected = match inside(offset) {
                true => !offset,
                false => seed + offset / 8,
            };
            let seen = word(machine.host(), &run, offset);
            assert_eq!(seen, expected, "{window} of {count} pages: {offset:#x}");
        }
        machine.host().free_frames(run);
        assert_eq!(driver.domain.free_bounce_pages(), 4);
    }
    drop(dma);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(
        machine.host().frames_out(),
        0,
        "the pool ends with its domain"
    );
}

#[test]
fn bytes_that_do_not_fill_words_are_bounced_alone() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 1);
    let dma = driver.domain.dma_device(DmaConfig::default());
    let run = filled(&machine, 1, 0x0101_0101_0101_0101);
    let mapping = dma.map_bytes(run, window(0x103, 6), Bidirectional).unwrap();
    let start = mapping.span().start();
    assert_eq!(reads(&machine, start, 0x100).unwrap() & 0xff_ffff, 0);
    assert_eq!(reads(&machine, start, 0x108).unwrap() >> 8, 0);
    writes(&machine, start, 0x100, 0).unwrap();
    writes(&machine, start, 0x108, 0).unwrap();
    let run = mapping.unmap().flush().unwrap();
    let (first, second) = (0x0101_0101_0101_0121, 0x0101_0101_0101_0122);
    assert_eq!(word(machine.host(), &run, 0x100), first & 0xff_ffff);
    assert_eq!(word(machine.host(), &run, 0x108), second & !0xff);
    machine.host().free_frames(run);
}

#[test]
fn whole_pages_and_trusted_devices_need_no_bounce_page() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    let careful = driver.domain.dma_device(DmaConfig::default());
    let mapping = careful.map(filled(&machine, 2, 0), ToDevice).unwrap();
    assert!(!mapping.is_bounced());
    let trusting = trusting(&driver);
    let run = filled(&machine, 1, 40);
    let mapping = trusting.map_bytes(run, window(8, 8), ToDevice).unwrap();
    assert!(!mapping.is_bounced());
    assert_eq!(reads(&machine, mapping.iova(), 0), Ok(41));
    assert_eq!(reads(&machine, mapping.span().start(), 0), Ok(40));
}

#[test]
fn what_the_device_wrote_is_back_with_the_receipt_and_not_before() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 1);
    let dma = driver.domain.dma_device(DmaConfig::default());
    let run = filled(&machine, 1, 0);
    let frame = run.range().start();
    let mapping = dma.map_bytes(run, window(0x20, 0x10), FromDevice).unwrap();
    let at = mapping.iova();
    writes(&machine, at, 0, 7).unwrap();
    let inside = frame.checked_add(0x20).unwrap();
    let pending = mapping.unmap();
    assert_eq!(machine.host().device_read(inside), 4);
    // Still cached: the last word counts.
    writes(&machine, at, 0, 8).unwrap();
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    assert_eq!(writes(&machine, at, 0, 9), Err(DmaFault::NotMapped));
    let run = pending.redeem(&receipt).unwrap();
    assert_eq!(word(machine.host(), &run, 0x20), 8);
    assert_eq!(
        word(machine.host(), &run, 0x28),
        5,
        "the device left it as it was"
    );
    machine.host().free_frames(run);
    // A device that only reads leaves nothing to copy.
    let mapping = dma.map_bytes(filled(&machine, 1, 0), window(8, 8), ToDevice);
    let at = mapping.as_ref().unwrap().iova();
    assert_eq!(writes(&machine, at, 0, 1), Err(DmaFault::NotPermitted));
}

#[test]
fn bc02_a_bounce_page_is_used_again_after_the_receipt_only() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 1);
    let dma = driver.domain.dma_device(DmaConfig::default());
    let first = dma
        .map_bytes(filled(&machine, 1, 0), window(0, 8), ToDevice)
        .unwrap();
    assert!(reads(&machine, first.iova(), 0).is_ok());
    let pending = first.unmap();
    let error = dma
        .map_bytes(filled(&machine, 2, 0), window(8, 0x1000), ToDevice)
        .unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert_eq!(reason, DmaRefusal::NoBouncePages { missing: 2 });
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let error = pending.flush().unwrap_err();
    assert_eq!(driver.domain.free_bounce_pages(), 0);
    machine.host().free_frames(error.pending.flush().unwrap());
    let error = dma
        .map_bytes(value, window(8, 0x1000), ToDevice)
        .unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert_eq!(reason, DmaRefusal::NoBouncePages { missing: 1 });
    driver.domain.fill_bounce_pool(pages(1)).unwrap();
    assert!(dma.map_bytes(value, window(8, 0x1000), ToDevice).is_ok());
}

#[test]
fn windows_that_leave_pages_out_are_refused() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 2);
    let dma = driver.domain.dma_device(DmaConfig::default());
    let mut run = filled(&machine, 3, 0);
    let (empty, past_end, too_long) = (
        "0 bytes at offset 0x0: there is nothing to map",
        "pass the end of the run of 3 pages",
        "leave out whole pages of the run's 3 pages: split those off the run first",
    );
    for (bad, said) in [
        (window(0, 0), empty),
        (window(0x1000, 0x2000), too_long),
        (window(0, 0x2000), too_long),
        (window(0, 0x3001), past_end),
        (window(1, u64::MAX), past_end),
        (window(0xfff, 0x2002), past_end),
    ] {
        let error = dma.map_bytes(run, bad, ToDevice).unwrap_err();
        let DmaMapError::Refused { value, reason } = error else {
            panic!("{error}");
        };
        let pages = pages(3);
        assert_eq!(reason, DmaRefusal::Window { window: bad, pages });
        assert!(reason.to_string().contains(said), "{reason}");
        run = value;
    }
    let run = dma.map_bytes(run, window(0xfff, 0x1002), ToDevice).unwrap();
    machine.host().free_frames(run.unmap().flush().unwrap());
}

#[test]
fn bc18_xsa_360_bounced_mappings_leak_nothing_whichever_allocation_fails() {
    let mut failing = 0;
    loop {
        let mut machine = Machine::new();
        let driver = bouncing(&mut machine, 2);
        let host = machine.fake.host();
        let dma = driver.domain.dma_device(DmaConfig::default());
        // Head, middle and tail need a table of their own each: the middle is longer than one table covers.
        let run = filled(&machine, 700, 0);
        let (frames, out, free) = (run.range(), host.frames_out(), driver.domain.free_pages());
        let some = window(0x800, (700 << 12) - 0x1000);
        host.fail_allocation_after(Some(failing));
        let mapped = dma.map_bytes(run, some, Bidirectional);
        host.fail_allocation_after(None);
        let run = match mapped {
            Ok(mapping) => {
                assert!(failing >= 3, "{failing} allocations");
                host.free_frames(mapping.unmap().flush().unwrap());
                break;
            }
            Err(DmaMapError::Refused { value, .. }) => value,
            Err(other) => panic!("{other}"),
        };
        assert_eq!((run.range(), driver.domain.free_pages()), (frames, free));
        assert_eq!(driver.domain.free_bounce_pages(), 2);
        assert_eq!(host.frames_out(), out + driver.domain.table_pages() - 1);
        host.free_frames(run);
        drop(dma);
        assert_eq!(driver.end(host), 0);
        assert_eq!(host.frames_out(), 0, "after {failing} allocations");
        failing += 1;
    }
}

#[test]
fn bc18_dropped_bounced_mappings_come_back_with_the_end_of_the_domain() {
    let mut stuck = 0;
    for failing in 0..6 {
        let mut machine = Machine::new();
        let driver = bouncing(&mut machine, 8);
        let host = machine.fake.host();
        let dma = driver.domain.dma_device(DmaConfig::default());
        // The runs' pages, and the bounce pages that devices had.
        let mut frames = 3 + 2 + 1 + 1;
        drop(dma.map_bytes(filled(&machine, 3, 0), window(8, 0x2010), ToDevice));
        let pending = dma
            .map_bytes(filled(&machine, 1, 0), window(8, 8), FromDevice)
            .unwrap()
            .unmap();
        drop(pending);
        // One of which a part was not mapped, and the undoing not answered.
        let run = filled(&machine, 1300, 0);
        let some = window(0x800, (1300 << 12) - 0x1000);
        host.fail_allocation_after(Some(failing));
        machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
        let mapped = dma.map_bytes(run, some, Bidirectional);
        host.fail_allocation_after(None);
        match mapped {
            Err(DmaMapError::Refused { value, .. }) => host.free_frames(value),
            Err(error) => {
                assert!(matches!(error, DmaMapError::Stuck { .. }), "{error}");
                stuck += 1;
                frames += 1300;
                drop(error);
                // A bounce page that was mapped comes with the rest; one that was not is in the pool again.
                frames += 8 - 3 - driver.domain.free_bounce_pages();
            }
            Ok(mapping) => {
                frames += 1300 + 2;
                drop(mapping);
            }
        }
        drop((dma, driver.group.detach().unwrap()));
        assert_eq!(end_domain(driver.domain, host), frames, "{failing}");
        assert_eq!(host.frames_out(), 0);
    }
    assert!(stuck > 0, "every failure came before the first part");
}

#[test]
fn a_pool_that_cannot_be_filled_is_as_it_was() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 2);
    let host = machine.host();
    for failing in 0..4 {
        let out = host.frames_out();
        host.fail_allocation_after(Some(failing));
        let error = driver.domain.fill_bounce_pool(pages(4)).unwrap_err();
        host.fail_allocation_after(None);
        let missing = 4 - failing;
        assert_eq!(error, BounceError::OutOfFrames { missing });
        assert_eq!(host.frames_out(), out);
        assert_eq!(driver.domain.free_bounce_pages(), 2);
    }
    assert_eq!(driver.domain.drain_bounce_pool(), 2);
    assert_eq!(host.frames_out(), driver.domain.table_pages());
}

#[test]
fn bouncing_takes_nothing_from_the_heap() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 2);
    let dma = driver.domain.dma_device(DmaConfig::default());
    let mut run = filled(&machine, 3, 0);
    for round in 0..4 {
        let some = window(8, 0x2ff0);
        let (mapping, map) = taken_by(|| dma.map_bytes(run, some, Bidirectional).unwrap());
        let (pending, unmap) = taken_by(|| mapping.unmap());
        let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
        let (back, redeem) = taken_by(|| pending.redeem(&receipt).unwrap());
        if round > 0 {
            assert_eq!((map, unmap, redeem), (0, 0, 0));
        }
        run = back;
    }
    let mapping = dma.map_bytes(run, window(8, 0x2ff0), ToDevice).unwrap();
    assert_eq!(taken_by(|| drop(mapping)).1, 0);
}
