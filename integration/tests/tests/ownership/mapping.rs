//! Map, use, unmap, receipt, reuse; sizes and permissions.

use std::sync::{Arc, Mutex};

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_tests::fake::DmaFault;
use hv_tests::host::Moment;

use super::machine::{Machine, NIC, full_unit, iovas, level, pages};

#[test]
fn bc02_xsa_346_frames_come_back_only_when_no_device_reaches_them() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let (host, fake) = (machine.fake.host(), &machine.fake);
    let frames = host.frames(4);
    let first = frames.range().start();
    let range = driver.domain.reserve(iovas(0x10_0000, 4)).unwrap();
    let range = range.map(frames, Perms::ReadWrite).unwrap();
    let (at, uncached) = (Iova::new(0x10_0008), Iova::new(0x10_3000));
    fake.dma_write(NIC, at, 7).unwrap();
    assert_eq!(
        fake.dma(NIC, at, Access::Read),
        Ok(first.checked_add(8).unwrap())
    );

    let pending = range.unmap();
    // The table says no, the cache still says yes: this is what a receipt is for.
    assert_eq!(driver.domain.translate(at), None);
    assert_eq!(fake.dma_read(NIC, at), Ok(7));
    assert_eq!(fake.dma_read(NIC, uncached), Err(DmaFault::NotMapped));
    assert_eq!(fake.cached(0, driver.domain.hw_id()), 1);

    let (range, frames) = pending.flush().unwrap();
    assert_eq!(fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
    assert_eq!((frames.range().start(), frames.pages()), (first, pages(4)));
    let mut word = [0; 8];
    frames.read(host, 8, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), 7);
    host.free_frames(frames);

    let other = host.frames(4);
    let range = range.map(other, Perms::Read).unwrap();
    assert!(fake.dma_read(NIC, at).is_ok());
    let (range, frames) = range.unmap().flush().unwrap();
    host.free_frames(frames);
    range.release().unwrap();
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn each_page_leads_to_its_own_frame() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    // Over the end of one leaf table, and of more pages than one, but no large page.
    let frames = machine.host().frames(700);
    let start = frames.range().start().as_u64();
    let range = driver.domain.reserve(iovas(0x1f_e000, 700)).unwrap();
    let range = range
        .map_with(frames, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    for page in 0..700 {
        let at = range.span().page(page).unwrap();
        let to = machine.fake.dma(NIC, at, Access::Write).unwrap();
        assert_eq!(to.as_u64(), start + page * 4096, "page {page}");
    }
    for outside in [0x1f_d000, 0x1f_e000 + 700 * 4096] {
        let outside = Iova::new(outside);
        assert_eq!(
            machine.fake.dma(NIC, outside, Access::Read),
            Err(DmaFault::NotMapped)
        );
    }
}

#[test]
fn permissions_are_kept_and_widening_is_reported() {
    for (write_only, wanted, granted) in [
        (true, Perms::Read, Perms::Read),
        (true, Perms::Write, Perms::Write),
        (true, Perms::ReadWrite, Perms::ReadWrite),
        (false, Perms::Read, Perms::Read),
        (false, Perms::Write, Perms::ReadWrite),
    ] {
        let unit = hv_iommu::UnitCaps {
            write_only,
            ..full_unit()
        };
        let mut machine = Machine::with_units(unit, unit);
        let driver = machine.driver(NIC);
        let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
        let range = range.map(machine.host().frames(1), wanted).unwrap();
        assert_eq!(range.granted(), granted);
        for (access, allowed) in [
            (Access::Read, granted.readable()),
            (Access::Write, granted.writable()),
        ] {
            let found = machine.fake.dma(NIC, Iova::new(0x4000), access).map(drop);
            let expected = if allowed {
                Ok(())
            } else {
                Err(DmaFault::NotPermitted)
            };
            assert_eq!(found, expected, "{wanted} granted as {granted}, {access}");
        }
    }
}

#[test]
fn large_pages_are_used_and_cut_only_at_their_ends() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let frames = host.frames_aligned(1024, PageSize::Size2M);
    let start = frames.range().start();
    let range = driver.domain.reserve(iovas(0x4000_0000, 1024)).unwrap();
    let range = range.map(frames, Perms::ReadWrite).unwrap();
    let leaf = driver.domain.translate(Iova::new(0x4000_1234)).unwrap();
    assert_eq!(
        (leaf.level, leaf.to),
        (level(2), start.checked_add(0x1234).unwrap())
    );
    let range = range.split_at(pages(511)).unwrap_err();
    let range = range.split_at(pages(1024)).unwrap_err();
    let (low, high) = range.split_at(pages(512)).unwrap();
    for at in [0x4000_0000, 0x4020_0000] {
        machine.fake.dma(NIC, Iova::new(at), Access::Read).unwrap();
    }

    let (_, half) = low.unmap().flush().unwrap();
    assert_eq!((half.range().start(), half.pages()), (start, pages(512)));
    host.free_frames(half);
    let gone = machine.fake.dma(NIC, Iova::new(0x4000_0000), Access::Read);
    assert_eq!(gone, Err(DmaFault::NotMapped));
    machine
        .fake
        .dma(NIC, Iova::new(0x4020_0000), Access::Read)
        .unwrap();
    drop(high);
    assert_eq!(driver.end(host), 512);
    assert_eq!(host.frames_out(), 0);
}

/// Another CPU links the tables that a map is about to link.
#[test]
fn tables_that_another_cpu_links_first_are_used_and_the_spare_page_comes_back() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let slow = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let fast = driver.domain.reserve(iovas(0x5000, 1)).unwrap();
    let fast = Mutex::new(Some((fast, machine.host().frames(1))));
    let mapped = Arc::new(Mutex::new(None));
    let result = Arc::clone(&mapped);
    // The fence stands between the page that was taken and the exchange that links it.
    let hook = Arc::new(move |moment| {
        let next = fast
            .lock()
            .unwrap()
            .take_if(|_| moment == Moment::WalkerFence);
        if let Some((range, frames)) = next {
            *result.lock().unwrap() = Some(range.map(frames, Perms::Read).unwrap());
        }
    });
    machine.host().set_hook(Some(hook));
    let _slow = slow.map(machine.host().frames(1), Perms::Read).unwrap();
    machine.host().set_hook(None);
    assert!(mapped.lock().unwrap().take().is_some());
    for at in [0x4000, 0x5000] {
        machine.fake.dma(NIC, Iova::new(at), Access::Read).unwrap();
    }
    assert_eq!(machine.host().frames_out(), 5, "three tables and two pages");
    assert_eq!(driver.end(machine.host()), 2);
    assert_eq!(machine.host().frames_out(), 0);
}
