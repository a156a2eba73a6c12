//! Map, use, unmap, receipt, reuse; sizes and permissions; what a map refuses.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, MapError, MapRefusal, SpaceError};
use hv_iommu::table::TableError;
use hv_tests::fake::{DmaFault, Logged};

use super::machine::{Machine, NIC, end_domain, full_unit, iovas, level, pages};

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
    assert_eq!(fake.dma(NIC, at, Access::Read), Ok(first.checked_add(8).unwrap()));

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
    assert_eq!(driver.end(host).1, 0);
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
    let range = range.map_with(frames, Perms::ReadWrite, PageSize::Size4K).unwrap();
    for page in 0..700 {
        let at = range.span().page(page).unwrap();
        let to = machine.fake.dma(NIC, at, Access::Write).unwrap();
        assert_eq!(to.as_u64(), start + page * 4096, "page {page}");
    }
    for outside in [0x1f_d000, 0x1f_e000 + 700 * 4096] {
        let outside = Iova::new(outside);
        assert_eq!(machine.fake.dma(NIC, outside, Access::Read), Err(DmaFault::NotMapped));
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
        let unit = hv_iommu::UnitCaps { write_only, ..full_unit() };
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
            let expected = if allowed { Ok(()) } else { Err(DmaFault::NotPermitted) };
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
    assert_eq!((leaf.level, leaf.to), (level(2), start.checked_add(0x1234).unwrap()));
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
    machine.fake.dma(NIC, Iova::new(0x4020_0000), Access::Read).unwrap();
    drop(high);
    assert_eq!(driver.end(host).1, 512);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn free_ranges_split_and_join_only_where_they_meet() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let other = machine.driver(super::machine::FAR);
    let whole = driver.domain.reserve(iovas(0x8000, 8)).unwrap();
    let whole = whole.split_at(pages(8)).unwrap_err();
    let (low, high) = whole.split_at(pages(3)).unwrap();
    assert_eq!(high.span(), iovas(0xb000, 5));
    let (high, low) = high.join(low).unwrap_err();
    // The next addresses, but of another domain.
    let foreign = other.domain.reserve(iovas(0xb000, 5)).unwrap();
    let (low, _foreign) = low.join(foreign).unwrap_err();
    let whole = low.join(high).unwrap();
    assert_eq!(whole.span(), iovas(0x8000, 8));
    whole.release().unwrap();
    driver.domain.reserve(iovas(0x8000, 8)).unwrap().release().unwrap();
}

#[test]
fn a_refused_map_gives_range_and_frames_back() {
    let narrow = hv_iommu::UnitCaps { phys_bits: 30, ..full_unit() };
    let mut machine = Machine::with_units(narrow, full_unit());
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(0x4000, 2)).unwrap();
    let refused = range.map(host.frames(3), Perms::Read).unwrap_err();
    let MapError::Refused { range, frames, reason } = refused else {
        panic!("{refused}");
    };
    let lengths = MapRefusal::Length { range: pages(2), frames: pages(3) };
    assert_eq!(reason, lengths);
    let (frames, rest) = frames.split_at(pages(2)).unwrap();
    host.free_frames(rest);
    // Every host has its frames above 4 GiB.
    let refused = range.map(frames, Perms::Read).unwrap_err();
    let MapError::Refused { range, frames, reason } = refused else {
        panic!("{refused}");
    };
    assert_eq!(reason, MapRefusal::PhysTooWide { frames: frames.range(), bits: 30 });
    assert_eq!(driver.domain.translate(Iova::new(0x4000)), None);
    host.free_frames(frames);
    range.release().unwrap();
    driver.end(host);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_map_without_frames_for_tables_says_how_many_are_missing() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let mut frames = host.frames(2);
    let mut range = driver.domain.reserve(iovas(0x3fff_f000, 2)).unwrap();
    // Two leaf tables under two tables of level 2.
    for (successes, missing) in [(0, 4), (0, 4), (1, 3), (2, 1)] {
        host.fail_allocation_after(Some(successes));
        let refused = range.map(frames, Perms::Read).unwrap_err();
        let MapError::Refused { range: again, frames: kept, reason } = refused else {
            panic!("{refused}");
        };
        assert_eq!(reason, MapRefusal::Table(TableError::OutOfFrames { missing }));
        assert_eq!(driver.domain.translate(Iova::new(0x3fff_f000)), None);
        (range, frames) = (again, kept);
    }
    drop(range.map(frames, Perms::Read).unwrap());
    assert!(machine.fake.dma(NIC, Iova::new(0x4000_0000), Access::Read).is_ok());
    assert_eq!(driver.end(host).1, 2);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn units_that_cache_what_is_absent_see_new_mappings_at_once() {
    let caching = hv_iommu::UnitCaps { sync_on_map: true, ..full_unit() };
    let mut machine = Machine::with_units(caching, full_unit());
    let driver = machine.driver(NIC);
    let (first, second) = (Iova::new(0x4000), Iova::new(0x5000));
    for at in [first, second] {
        assert_eq!(machine.fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
    }
    machine.fake.take_log(0);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let _mapped = range.map(machine.host().frames(1), Perms::Read).unwrap();
    assert!(machine.fake.dma_read(NIC, first).is_ok(), "absent tables are forgotten");
    let range = driver.domain.reserve(iovas(0x5000, 1)).unwrap();
    // Now the table is there and only the leaf was absent.
    assert_eq!(machine.fake.dma_read(NIC, second), Err(DmaFault::NotMapped));
    let _mapped = range.map(machine.host().frames(1), Perms::Read).unwrap();
    assert!(machine.fake.dma_read(NIC, second).is_ok());
    let asked = [FlushDepth::WalkCaches, FlushDepth::Leaves].into_iter().zip([0x4000, 0x5000]);
    let expected: Vec<_> = asked
        .map(|(depth, at)| {
            let span = FlushSpan::Pages(iovas(at, 1));
            Logged::Flush(FlushRequest { domain: driver.domain.hw_id(), span, depth })
        })
        .collect();
    assert_eq!(machine.fake.take_log(0), expected);
}

#[test]
fn bc03_xsa_78_a_flush_goes_to_each_unit_that_the_domain_reaches_and_covers_what_was_unmapped() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let far = machine.take(super::machine::FAR).claim_for_hypervisor();
    let far = far.attach(&driver.domain).unwrap();
    far.enable_bus_mastering(super::machine::FAR).unwrap();
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(0x20_0000, 512)).unwrap();
    let frames = host.frames_aligned(512, PageSize::Size2M);
    let range = range.map(frames, Perms::ReadWrite).unwrap();
    let at = Iova::new(0x20_5000);
    let reach = |device| machine.fake.dma_write(device, at, 1);
    assert_eq!((reach(NIC), reach(super::machine::FAR)), (Ok(()), Ok(())));
    let (_, frames) = range.unmap().flush().unwrap();
    assert_eq!(reach(NIC), Err(DmaFault::NotMapped));
    assert_eq!(reach(super::machine::FAR), Err(DmaFault::NotMapped));
    host.free_frames(frames);

    // A unit that the domain no longer reaches is not asked.
    let far = far.detach().unwrap();
    machine.fake.take_log(1);
    let _receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    assert_eq!(machine.fake.take_log(1), []);
    drop(far);
}

#[test]
fn addresses_that_are_reserved_taken_or_too_wide_are_refused() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = hv_iommu::Domain::paging_domain_alloc(&group, super::machine::PLAIN).unwrap();
    let free = domain.free_pages();
    assert_eq!(free, (1 << 27) - 256, "39 bits of pages less the interrupt window");
    let _taken = domain.reserve(iovas(0x10_0000, 16)).unwrap();
    for wanted in [
        iovas(0xfee0_0000, 1),
        iovas(0xfedf_f000, 2),
        iovas(0x10_f000, 2),
        iovas((1 << 39) - 0x1000, 2),
        iovas(1 << 39, 1),
        iovas(u64::MAX - 0xfff, 1),
    ] {
        let refused = domain.reserve(wanted).unwrap_err();
        assert_eq!(refused, SpaceError::NotFree { wanted });
    }
    assert_eq!(domain.free_pages(), free - 16);
    assert_eq!(end_domain(domain, machine.fake.host()), 0);
}
