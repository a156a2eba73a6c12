//! Dropped, forgotten and kept values: nothing is reused, and the domain's end gives all back once.

use std::collections::BTreeSet;

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::{FlushSpan, SpaceError};
use hv_tests::fake::DmaFault;

use super::machine::{Driver, Machine, NIC, iovas, pages};

/// Ends the driver's domain; asserts that exactly these frames come out, each once.
fn ends_with(driver: Driver, machine: &Machine, expected: &[u64]) {
    let _group = driver.group.detach().unwrap();
    let mut found = BTreeSet::new();
    let mut teardown = driver.domain.destroy().unwrap();
    for frames in &mut teardown {
        for page in 0..frames.pages().get() {
            let frame = frames.range().page(page).unwrap().as_u64();
            assert!(found.insert(frame), "{frame:#x} came out twice");
        }
        machine.host().free_frames(frames);
    }
    assert_eq!(found, expected.iter().copied().collect());
    assert!(teardown.tables_freed() > 0);
    assert_eq!(machine.host().frames_out(), 0, "tables and frames are back");
    assert_eq!(machine.iommu.domains_in_use(), 0);
}

/// The addresses of the frames of a run.
fn addresses(run: &hv_core::FrameRun<hv_core::Hypervisor>) -> Vec<u64> {
    let range = run.range();
    (0..range.pages().get())
        .map(|page| range.page(page).unwrap().as_u64())
        .collect()
}

#[test]
fn dropped_and_forgotten_values_keep_their_frames_and_addresses() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let mut frames = Vec::new();
    let mut map = |start| {
        let run = host.frames(2);
        frames.extend(addresses(&run));
        let range = driver.domain.reserve(iovas(start, 2)).unwrap();
        let range = range.map(run, Perms::ReadWrite).unwrap();
        machine
            .fake
            .dma_write(NIC, Iova::new(start), start)
            .unwrap();
        range
    };
    drop(map(0x10_0000));
    std::mem::forget(map(0x20_0000));
    drop(map(0x30_0000).unmap());
    std::mem::forget(map(0x40_0000).unmap());
    drop(driver.domain.reserve(iovas(0x50_0000, 2)).unwrap());
    std::mem::forget(driver.domain.reserve(iovas(0x60_0000, 2)).unwrap());

    // Also a receipt for everything changes nothing: nobody has the values any more.
    let _receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    for start in (1..=6).map(|index| index * 0x10_0000) {
        let wanted = iovas(start + 0x1000, 1);
        let refused = driver.domain.reserve(wanted).unwrap_err();
        assert_eq!(refused, SpaceError::NotFree { wanted });
    }
    let all = driver.domain.free_pages();
    // The only place up to here, if what was dropped stays taken.
    let limit = Iova::new(0x60_2000 + (0x5ff << 12) - 1);
    let above = driver
        .domain
        .allocate_within(pages(0x5ff), PageSize::Size4K, limit)
        .unwrap();
    assert_eq!(above.span().start(), Iova::new(0x60_2000));
    assert_eq!(driver.domain.free_pages(), all - 0x5ff);

    assert_eq!(
        machine.fake.dma_read(NIC, Iova::new(0x10_0000)),
        Ok(0x10_0000)
    );
    assert_eq!(
        machine.fake.dma_read(NIC, Iova::new(0x20_0000)),
        Ok(0x20_0000)
    );
    let gone = machine.fake.dma_read(NIC, Iova::new(0x30_0000));
    assert_eq!(gone, Err(DmaFault::NotMapped));
    for frame in &frames {
        assert!(host.is_out(hv_core::PhysAddr::new(*frame)));
    }
    ends_with(driver, &machine, &frames);
}

#[test]
fn a_redeemed_range_is_not_given_back_twice() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(0x4000, 4)).unwrap();
    let range = range.map(host.frames(4), Perms::Read).unwrap();
    let (low, high) = range.split_at(pages(1)).unwrap();
    let kept = host.frames(1);
    let kept_at = addresses(&kept);
    let again = driver.domain.reserve(iovas(0x9000, 1)).unwrap();
    let _kept = again.map(kept, Perms::Read).unwrap();
    for half in [low, high] {
        let (_, frames) = half.unmap().flush().unwrap();
        host.free_frames(frames);
    }
    ends_with(driver, &machine, &kept_at);
}

#[test]
fn the_end_gives_back_what_is_mapped_at_every_level() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let mut expected = Vec::new();
    for (start, pages, align) in [
        (0x20_0000, 512, PageSize::Size2M),
        (0x7f_ffff_f000, 1, PageSize::Size4K),
        (0x4000_0000 - 0x1000, 514, PageSize::Size4K),
    ] {
        let run = host.frames_aligned(pages, align);
        expected.extend(addresses(&run));
        let range = driver.domain.reserve(iovas(start, pages)).unwrap();
        drop(range.map(run, Perms::ReadWrite).unwrap());
    }
    machine
        .fake
        .dma(NIC, Iova::new(0x7f_ffff_f000), Access::Read)
        .unwrap();
    ends_with(driver, &machine, &expected);
}

#[test]
fn an_unfinished_end_loses_frames_and_frees_nothing_too_early() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    for start in [0x4000, 0x6000] {
        let range = driver.domain.reserve(iovas(start, 1)).unwrap();
        drop(range.map(host.frames(1), Perms::Read).unwrap());
    }
    let before = host.frames_out();
    let _group = driver.group.detach().unwrap();
    let mut teardown = driver.domain.destroy().unwrap();
    let first = teardown.next().unwrap();
    drop(teardown);
    host.free_frames(first);
    assert_eq!(host.frames_out(), before - 1);
    assert_eq!(
        machine.iommu.domains_in_use(),
        1,
        "the id stays taken with the rest"
    );
}
