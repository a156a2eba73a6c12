//! What is not mapped, not reserved and not joined, and that it comes back.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{MapError, MapRefusal, ReservedKind, ReservedRegion, SpaceError};

use super::machine::{Machine, NIC, end_domain, full_unit, iovas, pages};

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
    driver
        .domain
        .reserve(iovas(0x8000, 8))
        .unwrap()
        .release()
        .unwrap();
}

#[test]
fn a_refused_map_gives_range_and_frames_back() {
    let narrow = hv_iommu::UnitCaps {
        phys_bits: 30,
        ..full_unit()
    };
    let mut machine = Machine::with_units(narrow, full_unit());
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(0x4000, 2)).unwrap();
    let refused = range.map(host.frames(3), Perms::Read).unwrap_err();
    let MapError::Refused {
        range,
        frames,
        reason,
    } = refused
    else {
        panic!("{refused}");
    };
    let lengths = MapRefusal::Length {
        range: pages(2),
        frames: pages(3),
    };
    assert_eq!(reason, lengths);
    let (frames, rest) = frames.split_at(pages(2)).unwrap();
    host.free_frames(rest);
    // Every host has its frames above 4 GiB.
    let refused = range.map(frames, Perms::Read).unwrap_err();
    let MapError::Refused {
        range,
        frames,
        reason,
    } = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(
        reason,
        MapRefusal::PhysTooWide {
            frames: frames.range(),
            bits: 30
        }
    );
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
    for (successes, missing) in [(0, 4), (1, 3), (2, 2), (3, 1)] {
        host.fail_allocation_after(Some(successes));
        let refused = range.map(frames, Perms::Read).unwrap_err();
        let MapError::Refused {
            range: again,
            frames: kept,
            reason,
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!(
            reason,
            MapRefusal::Table(TableError::OutOfFrames { missing })
        );
        assert_eq!(driver.domain.translate(Iova::new(0x3fff_f000)), None);
        (range, frames) = (again, kept);
    }
    drop(range.map(frames, Perms::Read).unwrap());
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000_0000), Access::Read)
            .is_ok()
    );
    assert_eq!(driver.end(host), 2);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn addresses_that_are_reserved_taken_or_too_wide_are_refused() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = hv_iommu::Domain::paging_domain_alloc(&group, super::machine::PLAIN).unwrap();
    let free = domain.free_pages();
    assert_eq!(
        free,
        (1 << 27) - 256,
        "39 bits of pages less the interrupt window"
    );
    let _taken = domain.reserve(iovas(0x10_0000, 16)).unwrap();
    let by = ReservedRegion {
        range: iovas(0xfee0_0000, 256),
        kind: ReservedKind::InterruptWindow,
    };
    let last = Iova::new((1 << 39) - 1);
    for (start, pages) in [(0xfee0_0000, 1), (0xfedf_f000, 2)] {
        let wanted = iovas(start, pages);
        let refused = domain.reserve(wanted).unwrap_err();
        assert_eq!(refused, SpaceError::Reserved { wanted, by });
        assert!(refused.to_string().contains("interrupt window"));
    }
    let wanted = iovas(0x10_f000, 2);
    let refused = domain.reserve(wanted).unwrap_err();
    assert_eq!(refused, SpaceError::NotFree { wanted });
    for (start, pages) in [((1 << 39) - 0x1000, 2), (1 << 39, 1), (u64::MAX - 0xfff, 1)] {
        let wanted = iovas(start, pages);
        let refused = domain.reserve(wanted).unwrap_err();
        assert_eq!(refused, SpaceError::Outside { wanted, last });
        assert!(refused.to_string().contains("address_bits"));
    }
    assert_eq!(domain.free_pages(), free - 16);
    assert_eq!(end_domain(domain, machine.fake.host()), 0);
}
