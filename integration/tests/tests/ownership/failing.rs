//! Each operation with each of its allocations failing: as before, nothing lost, and a second try works.
//! After the idea of Linux's `iommufd_fail_nth`.

use hv_core::platform::FrameSource;
use hv_core::{FrameRun, Hypervisor, Iova, KernelPaging, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{
    BufferRequest, CutError, CutRefusal, DmaError, Domain, DomainError, MapError, MapRefusal,
    UnitCaps,
};
use hv_tests::fake::Fake;

use super::machine::{Machine, NIC, PLAIN, end_domain, full_unit, iovas, pages};

const FIRST: u64 = 0x4000_0000;

/// Two places under one root that need three tables, and four pages over the end of one.
const ACROSS: u64 = 0x8000_0000 - 0x2000;

fn missing(error: TableError) -> u64 {
    match error {
        TableError::OutOfFrames { missing } => missing,
        other => panic!("{other}"),
    }
}

/// What a failed map gave back.
fn refused(
    error: MapError<KernelPaging, Fake>,
) -> (
    hv_iommu::Range<KernelPaging, Fake, hv_iommu::Free>,
    FrameRun<Hypervisor>,
    u64,
) {
    match error {
        MapError::Refused {
            range,
            frames,
            reason: MapRefusal::Table(error),
        } => (range, frames, missing(error)),
        other => panic!("{other}"),
    }
}

#[test]
fn a_map_with_each_allocation_failing() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let host = machine.fake.host();
    let mut failing = 0;
    loop {
        let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let range = domain.reserve(iovas(ACROSS, 4)).unwrap();
        let frames = host.frames(4);
        let out = host.frames_out();
        host.fail_allocation_after(Some(failing));
        let mapped = range.map(frames, Perms::ReadWrite);
        host.fail_allocation_after(None);
        let Err(error) = mapped else {
            assert_eq!(end_domain(domain, host), 4);
            break;
        };
        let (range, frames, missing) = refused(error);
        assert_eq!(missing, 4 - failing, "two tables of either level");
        assert_eq!((host.frames_out(), domain.table_pages()), (out, 1));
        assert_eq!(domain.translate(Iova::new(ACROSS)), None);

        // With as many as it needs handed in, no allocation is left to fail.
        let mut tables = domain.table_frames();
        tables.add(host.frames(failing + missing));
        host.fail_allocation_after(Some(0));
        let range = range.map_from(frames, Perms::Read, PageSize::Size1G, &mut tables);
        host.fail_allocation_after(None);
        assert_eq!(tables.count(), 0);
        drop((range.unwrap(), tables));
        assert_eq!(domain.table_pages(), 5);
        assert_eq!(end_domain(domain, host), 4);
        assert_eq!(host.frames_out(), 0, "after {failing} allocations");
        failing += 1;
    }
    assert_eq!(failing, 4);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_live_cut_without_a_frame_changes_nothing() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(FIRST, 512)).unwrap();
    let frames = host.frames_aligned(512, PageSize::Size2M);
    let range = range.map(frames, Perms::Read).unwrap();
    let out = host.frames_out();
    host.fail_allocation_after(Some(0));
    let CutError::Refused { range, reason } = range.split_large_at(pages(7)).unwrap_err() else {
        panic!("cut, or worse");
    };
    assert_eq!(
        reason,
        CutRefusal::Table(TableError::OutOfFrames { missing: 1 })
    );
    assert_eq!(host.frames_out(), out);
    assert!(!range.is_in_debt());
    let leaf = driver.domain.translate(Iova::new(FIRST)).unwrap();
    assert_eq!(leaf.level, super::machine::level(2));
    let (low, mut high) = range.split_large_at(pages(7)).unwrap();
    let mut low = low;
    // Merging takes no frame at all: neither part has a large page's worth.
    host.fail_allocation_after(Some(0));
    assert_eq!((low.merge().0, high.merge().0), (0, 0));
    let mut whole = low.join(high).unwrap();
    assert_eq!(whole.merge(), (1, Ok(())));
    let (_, frames) = whole.unmap().flush().unwrap();
    driver.domain.reclaim().unwrap();
    host.fail_allocation_after(None);
    host.free_frames(frames);
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_cut_with_a_gap_fails_for_want_of_frames_before_its_gap() {
    let unit = UnitCaps {
        live_resize: false,
        ..full_unit()
    };
    let mut failing = 0;
    loop {
        let mut machine = Machine::with_units(unit, unit);
        let driver = machine.driver(NIC);
        let host = machine.fake.host();
        let range = driver.domain.reserve(iovas(FIRST, 1024)).unwrap();
        let frames = host.frames_aligned(1024, PageSize::Size2M);
        let range = range.map(frames, Perms::ReadWrite).unwrap();
        machine.fake.dma_write(NIC, Iova::new(FIRST), 1).unwrap();
        machine.fake.take_log(0);
        let out = host.frames_out();
        host.fail_allocation_after(Some(failing));
        let cut = range.split_with_gap_at(pages(700));
        host.fail_allocation_after(None);
        let range = match cut {
            Ok((low, high)) => {
                drop((low, high));
                assert_eq!(driver.end(host), 1024);
                assert_eq!(host.frames_out(), 0);
                break;
            }
            Err(CutError::Refused {
                range,
                reason: CutRefusal::Table(error),
            }) => {
                assert!(missing(error) > 0);
                range
            }
            Err(other) => panic!("after {failing} allocations: {other}"),
        };
        assert_eq!(host.frames_out(), out, "after {failing} allocations");
        assert_eq!(machine.fake.take_log(0), [], "nothing was unmapped");
        assert!(machine.fake.dma_write(NIC, Iova::new(FIRST), 2).is_ok());
        let cut = range.split_with_gap_at(pages(700));
        drop(cut.unwrap());
        assert_eq!(driver.end(host), 1024);
        assert_eq!(host.frames_out(), 0, "after {failing} allocations");
        failing += 1;
    }
    assert!(failing >= 3, "{failing} allocations");
}

#[test]
fn a_whole_life_with_each_allocation_failing() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let host = machine.fake.host();
    let request = BufferRequest {
        pages: pages(3),
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    };
    let mut failing = 0;
    loop {
        host.fail_allocation_after(Some(failing));
        let before = host.allocations();
        let mut failed = None;
        match Domain::paging_domain_alloc(&group, PLAIN) {
            Err(error) => {
                let out = DomainError::Table(TableError::OutOfFrames { missing: 1 });
                assert_eq!(error, out);
                failed = Some(());
            }
            Ok(domain) => {
                let (free, tables) = (domain.free_pages(), domain.table_pages());
                match domain.alloc_coherent(request) {
                    Ok(buffer) => buffer.free().unwrap(),
                    Err(DmaError::OutOfFrames(_) | DmaError::Map(_)) => {
                        assert_eq!(domain.table_pages(), tables);
                        failed = Some(());
                    }
                    Err(other) => panic!("{other}"),
                }
                assert_eq!(domain.free_pages(), free);
                // No end needs a frame.
                host.fail_allocation_after(failed.map(|()| 0));
                assert_eq!(end_domain(domain, host), 0);
            }
        }
        let allocations = host.allocations() - before;
        host.fail_allocation_after(None);
        assert_eq!(host.frames_out(), 0, "after {failing} allocations");
        assert_eq!(machine.iommu.domains_in_use(), 0);
        if failed.is_none() {
            assert_eq!(allocations, failing, "each one failed once");
            break;
        }
        failing += 1;
    }
    assert_eq!(failing, 4, "the root, the buffer, two tables");
}
