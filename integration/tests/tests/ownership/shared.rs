//! Shared ranges: one page to one user, overlap told, exclusive again only when empty and alone.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{FlushSpan, MapRefusal, RedeemRefusal, SharedError};
use hv_tests::fake::DmaFault;
use hv_tests::host::Moment;

use super::machine::{Machine, NIC, iovas, level};

const AT: Iova = Iova::new(0x10_0000);

#[test]
fn an_overlap_is_told_and_the_frames_come_back() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let shared = driver.domain.reserve(iovas(0x10_0000, 16)).unwrap();
    let shared = shared.share().unwrap();
    let other = shared.clone();
    let frames = host.frames(1);
    let first = frames.range();
    shared.map(AT, frames, Perms::ReadWrite).unwrap();
    let second = host.frames(1);
    let loser = second.range();
    let error = other.map(AT, second, Perms::ReadWrite).unwrap_err();
    let occupied = SharedError::Refused(MapRefusal::Table(TableError::Occupied { at: AT }));
    assert_eq!(error.reason, occupied);
    let second = error.frames.unwrap();
    assert_eq!(second.range(), loser);
    assert_eq!(machine.fake.dma(NIC, AT, Access::Write), Ok(first.start()));

    let pending = other.unmap(AT, PageSize::Size4K).unwrap();
    let not_mapped = shared.unmap(AT, PageSize::Size4K).unwrap_err();
    let gone = SharedError::Refused(MapRefusal::Table(TableError::NotMapped { at: AT }));
    assert_eq!(not_mapped, gone);
    // Pending counts as occupied, and the device still reaches the first page.
    let error = shared.map(AT, second, Perms::Read).unwrap_err();
    assert_eq!(error.reason, occupied);
    assert_eq!(machine.fake.dma(NIC, AT, Access::Write), Ok(first.start()));
    let frames = pending.flush().unwrap();
    assert_eq!(frames.range(), first);
    assert_eq!(
        machine.fake.dma(NIC, AT, Access::Write),
        Err(DmaFault::NotMapped)
    );
    shared.map(AT, error.frames.unwrap(), Perms::Read).unwrap();
    assert_eq!(machine.fake.dma(NIC, AT, Access::Read), Ok(loser.start()));
    host.free_frames(frames);
    assert_eq!(driver.end(host), 1);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_pending_page_opens_with_its_own_receipt_only() {
    let mut machine = Machine::new();
    let (driver, other) = (machine.driver(NIC), machine.driver(super::machine::FAR));
    let shared = driver.domain.reserve(iovas(0x10_0000, 16)).unwrap();
    let shared = shared.share().unwrap();
    shared
        .map(AT, machine.host().frames(1), Perms::Read)
        .unwrap();
    let old = driver.domain.flush(FlushSpan::Domain).unwrap();
    let pending = shared.unmap(AT, PageSize::Size4K).unwrap();
    let (pending, reason) = pending.redeem(&old).unwrap_err();
    assert!(matches!(reason, RedeemRefusal::TooOld { .. }), "{reason}");
    let foreign = other.domain.flush(FlushSpan::Domain).unwrap();
    let (pending, reason) = pending.redeem(&foreign).unwrap_err();
    assert!(
        matches!(reason, RedeemRefusal::OtherDomain { .. }),
        "{reason}"
    );
    let elsewhere = driver
        .domain
        .flush(FlushSpan::Pages(iovas(0x11_0000, 1)))
        .unwrap();
    let (pending, reason) = pending.redeem(&elsewhere).unwrap_err();
    assert!(
        matches!(reason, RedeemRefusal::NotCovered { .. }),
        "{reason}"
    );
    assert!(pending.flush().is_ok());
}

#[test]
fn pages_outside_or_misaligned_are_refused() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let shared = driver.domain.reserve(iovas(0x1f_f000, 514)).unwrap();
    let shared = shared.share().unwrap();
    for (at, pages) in [
        (0x1f_e000, 1),
        (0x40_1000, 1),
        (0x1f_f000, 512),
        (0x20_0000, 3),
    ] {
        let error = shared
            .map(Iova::new(at), host.frames(pages), Perms::Read)
            .unwrap_err();
        assert!(
            matches!(error.reason, SharedError::Outside { .. }),
            "{at:#x}"
        );
        host.free_frames(error.frames.unwrap());
    }
    // Frames that are not aligned to the page size cannot be one page.
    let frames = host.frames_aligned(1024, PageSize::Size2M);
    let (head, rest) = frames.split_at(super::machine::pages(1)).unwrap();
    let (middle, tail) = rest.split_at(super::machine::pages(512)).unwrap();
    let error = shared
        .map(Iova::new(0x20_0000), middle, Perms::Read)
        .unwrap_err();
    let middle = error.frames.unwrap();
    let whole = head.join(middle).unwrap();
    let (whole, last) = whole.split_at(super::machine::pages(512)).unwrap();
    shared
        .map(Iova::new(0x20_0000), whole, Perms::Read)
        .unwrap();
    let leaf = driver.domain.translate(Iova::new(0x20_1000)).unwrap();
    assert_eq!(leaf.level, level(2));
    assert!(
        shared
            .unmap(Iova::new(0x20_0000), PageSize::Size4K)
            .is_err()
    );
    let whole = shared
        .unmap(Iova::new(0x20_0000), PageSize::Size2M)
        .unwrap()
        .flush()
        .unwrap();
    for run in [whole, last, tail] {
        host.free_frames(run);
    }
    driver.end(host);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn unshare_needs_the_last_handle_and_an_empty_range() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let shared = driver.domain.reserve(iovas(0x10_0000, 16)).unwrap();
    let shared = shared.share().unwrap();
    let other = shared.clone();
    let shared = shared.unshare().expect_err("there is another handle");
    drop(other);
    shared.map(AT, host.frames(1), Perms::Read).unwrap();
    let shared = shared.unshare().expect_err("a page is mapped");
    drop(shared.unmap(AT, PageSize::Size4K).unwrap());
    let shared = shared.unshare().expect_err("a page is pending, for ever");
    drop(shared);
    let second = driver
        .domain
        .reserve(iovas(0x20_0000, 16))
        .unwrap()
        .share()
        .unwrap();
    second
        .map(Iova::new(0x20_0000), host.frames(1), Perms::Read)
        .unwrap();
    let page = second
        .unmap(Iova::new(0x20_0000), PageSize::Size4K)
        .unwrap();
    host.free_frames(page.flush().unwrap());
    let range = second
        .unshare()
        .unwrap_or_else(|_| panic!("alone and empty"));
    let range = range.map(host.frames(16), Perms::Read).unwrap();
    assert_eq!(range.span(), iovas(0x20_0000, 16));
    drop(range);
    assert_eq!(driver.end(host), 17);
    assert_eq!(host.frames_out(), 0);
}

/// While one handle looks whether the range is empty, another maps a page that was looked at already,
/// and goes.
#[test]
fn unshare_against_a_mapper_never_gives_a_free_range_with_a_page_in_it() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    // Two leaf tables, so that there is a moment between their words.
    let shared = driver.domain.reserve(iovas(0x1f_f000, 2)).unwrap();
    let shared = shared.share().unwrap();
    let (first, second) = (Iova::new(0x1f_f000), Iova::new(0x20_0000));
    for at in [first, second] {
        shared.map(at, host.frames(1), Perms::Read).unwrap();
        let page = shared.unmap(at, PageSize::Size4K).unwrap();
        host.free_frames(page.flush().unwrap());
    }
    let other = Mutex::new(Some((shared.clone(), host.frames(1))));
    let pages_seen = AtomicU32::new(0);
    let hook = Arc::new(move |moment| {
        // ORDERING: Relaxed, one thread.
        if moment == Moment::Page && pages_seen.fetch_add(1, Ordering::Relaxed) == 3 {
            let (mapper, frames) = other.lock().unwrap().take().unwrap();
            mapper.map(first, frames, Perms::Read).unwrap();
        }
    });
    host.set_hook(Some(hook));
    let unshared = shared.unshare();
    host.set_hook(None);
    let reached = machine.fake.dma(NIC, first, Access::Read);
    assert!(
        unshared.is_err(),
        "the range counts as free, and a device reaches {reached:?}"
    );
}

#[test]
fn many_users_of_one_range_get_each_page_once() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let shared = driver.domain.reserve(iovas(0x10_0000, 64)).unwrap();
    let shared = shared.share().unwrap();
    let wins = Arc::new(Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let (mine, wins) = (shared.clone(), Arc::clone(&wins));
            scope.spawn(move || {
                for page in 0..64 {
                    let at = Iova::new(0x10_0000 + page * 0x1000);
                    match mine.map(at, host.frames(1), Perms::Read) {
                        Ok(()) => wins.lock().unwrap().push(page),
                        Err(error) => host.free_frames(error.frames.unwrap()),
                    }
                }
            });
        }
    });
    let mut wins = wins.lock().unwrap().clone();
    wins.sort_unstable();
    assert_eq!(wins, (0..64).collect::<Vec<_>>());
    assert_eq!(driver.end(host), 64);
    assert_eq!(host.frames_out(), 0);
}
