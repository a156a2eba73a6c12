//! Domains whose root is several tables side by side.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::{
    AttachError, AttachFailed, Domain, DomainConfig, DomainError, LevelSet, RootTables, UnitCaps,
};
use hv_tests::fake::DmaFault;

use super::machine::{FAR, Machine, NIC, end_domain, full_unit, iovas, level, pages};

/// A unit whose roots are up to 16 tables of level 3.
fn wide_unit() -> UnitCaps {
    UnitCaps {
        levels: LevelSet::EMPTY.with(level(3)),
        root_tables: RootTables::MAX,
        ..full_unit()
    }
}

const fn bits(address_bits: u8) -> DomainConfig {
    DomainConfig {
        address_bits,
        largest_page: PageSize::Size1G,
    }
}

/// What one table of level 3 translates.
const TABLE: u64 = 1 << 39;

#[test]
fn a_device_reaches_what_is_mapped_behind_every_table_of_the_root() {
    let mut machine = Machine::with_units(wide_unit(), full_unit());
    let driver = machine.driver_with(NIC, bits(41));
    let geometry = driver.domain.geometry();
    assert_eq!((geometry.root, geometry.root_tables.count()), (level(3), 4));
    assert_eq!(driver.domain.table_pages(), 4);
    let before = machine.host().frames_out();
    let mut mapped = Vec::new();
    // In each table, where two of them meet, and the last page.
    let places = (0..4).map(|number| iovas(number * TABLE + 0x1_0000, 1));
    let edges = [iovas(TABLE - 0x2000, 4), iovas(4 * TABLE - 0x1000, 1)];
    for span in places.chain(edges) {
        let range = driver.domain.reserve(span).unwrap();
        let frames = machine.host().frames(span.pages().get());
        let to = frames.range().start().as_u64();
        mapped.push((range.map(frames, Perms::ReadWrite).unwrap(), to));
    }
    for (range, to) in &mapped {
        let (start, bytes) = (range.span().start().as_u64(), range.span().pages().bytes());
        for offset in (0..bytes).step_by(0x1000) {
            let reached = machine
                .fake
                .dma(NIC, Iova::new(start + offset), Access::Write);
            assert_eq!(reached.map(|at| at.as_u64()), Ok(to + offset), "{range:?}");
        }
        for beside in [start - 0x1000, start + bytes] {
            let fault = match beside >> 41 {
                0 => DmaFault::NotMapped,
                _ => DmaFault::TooWide,
            };
            let reached = machine.fake.dma(NIC, Iova::new(beside), Access::Read);
            assert_eq!(reached, Err(fault), "{beside:#x}");
        }
    }
    // A cut with a gap takes the tables for both parts first, here of two tables of the root.
    let (across, _) = mapped.remove(4);
    let (low, high) = across.split_with_gap_at(pages(1)).unwrap();
    assert!(
        machine
            .fake
            .dma(NIC, high.span().last(), Access::Read)
            .is_ok()
    );
    let rest = mapped.into_iter().map(|(range, _)| range);
    for range in rest.chain([low, high]) {
        let span = range.span();
        let (range, frames) = range.unmap().flush().unwrap();
        let reached = machine.fake.dma(NIC, span.start(), Access::Read);
        assert_eq!(reached, Err(DmaFault::NotMapped));
        machine.host().free_frames(frames);
        range.release().unwrap();
    }
    // Tables below every table of the root come back.
    driver.domain.reclaim().unwrap();
    assert_eq!(driver.domain.table_pages(), 4);
    assert_eq!(machine.host().frames_out(), before);
    let _group = driver.group.detach().unwrap();
    assert_eq!(end_domain(driver.domain, machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn a_root_of_several_tables_is_taken_before_one_more_level() {
    let both = UnitCaps {
        levels: LevelSet::EMPTY.with(level(3)).with(level(4)),
        ..wide_unit()
    };
    let mut machine = Machine::with_units(both, wide_unit());
    let near = machine.take(NIC).claim_for_hypervisor();
    let shape = |wanted| {
        let domain = Domain::paging_domain_alloc(&near, bits(wanted)).unwrap();
        let geometry = domain.geometry();
        end_domain(domain, machine.host());
        (geometry.root.number(), geometry.root_tables.count())
    };
    let shapes = [39, 40, 41, 42, 43, 44, 48].map(shape);
    assert_eq!(
        shapes,
        [(3, 1), (3, 2), (3, 4), (3, 8), (3, 16), (4, 1), (4, 1)]
    );
    let far = machine.take(FAR).claim_for_hypervisor();
    let refused = Domain::paging_domain_alloc(&far, bits(44)).unwrap_err();
    let expected = DomainError::TooManyBits {
        needed: 44,
        found: 43,
    };
    assert_eq!(refused, expected);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn bc08_a_unit_without_such_roots_does_not_get_the_domain() {
    let mut machine = Machine::with_units(wide_unit(), full_unit());
    let driver = machine.driver_with(NIC, bits(41));
    let group = machine.take(FAR).claim_for_hypervisor();
    let Err(AttachFailed::Refused { error, .. }) = group.attach(&driver.domain) else {
        panic!("attached, or wedged");
    };
    let AttachError::Incompatible { unmet, .. } = error else {
        panic!("{error}");
    };
    let expected = ("tables side by side as a root", 4, 1);
    assert_eq!((unmet.what, unmet.needed, unmet.found), expected);
    assert_eq!(machine.fake.bound(FAR), None);
}
