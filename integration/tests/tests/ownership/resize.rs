//! Units that cannot follow a change of page size: refused, or done with a gap that was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{CutError, CutRefusal, Mapped, Range, RedeemRefusal, UnitCaps};
use hv_tests::fake::{Completion, DmaFault, Fake};

use super::machine::{Driver, Machine, NIC, full_unit, iovas, level, pages};

const FIRST: u64 = 0x4000_0000;
const PAGES: u64 = 512;

fn stiff() -> Machine {
    let unit = UnitCaps {
        live_resize: false,
        ..full_unit()
    };
    Machine::with_units(unit, unit)
}

fn map(machine: &Machine, driver: &Driver, largest: PageSize) -> Range<KernelPaging, Fake, Mapped> {
    let range = driver.domain.reserve(iovas(FIRST, PAGES)).unwrap();
    let frames = machine.host().frames_aligned(PAGES, PageSize::Size2M);
    let range = range.map_with(frames, Perms::ReadWrite, largest).unwrap();
    machine.fake.dma_write(NIC, Iova::new(FIRST), 7).unwrap();
    range
}

/// From now on, the device looks at a page whenever the engine fences: counts the faults.
fn watch(machine: &Machine, at: Iova) -> Arc<AtomicU32> {
    let faults = Arc::new(AtomicU32::new(0));
    let (count, fake) = (Arc::clone(&faults), machine.fake.clone());
    machine.host().set_hook(Some(Arc::new(move |moment| {
        if moment == hv_tests::host::Moment::WalkerFence
            && fake.dma(NIC, at, Access::Read) == Err(DmaFault::NotMapped)
        {
            // ORDERING: Relaxed, one thread.
            count.fetch_add(1, Ordering::Relaxed);
        }
    })));
    faults
}

#[test]
fn a_live_change_is_refused_and_changes_nothing() {
    let mut machine = stiff();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = map(&machine, &driver, PageSize::Size1G);
    let CutError::Refused { range, reason } = range.split_large_at(pages(100)).unwrap_err() else {
        panic!("cut, or worse");
    };
    let at = Iova::new(FIRST);
    assert_eq!(reason, CutRefusal::Table(TableError::Breaks { at }));
    assert_eq!(range.span(), iovas(FIRST, PAGES));
    assert!(!range.is_in_debt());
    let leaf = driver.domain.translate(at).unwrap();
    assert_eq!(leaf.level, level(2));
    let (_, frames) = range.unmap().flush().unwrap();
    host.free_frames(frames);

    let mut small = {
        let range = driver.domain.reserve(iovas(2 * FIRST, PAGES)).unwrap();
        let frames = host.frames_aligned(PAGES, PageSize::Size2M);
        range
            .map_with(frames, Perms::Read, PageSize::Size4K)
            .unwrap()
    };
    let at = Iova::new(2 * FIRST);
    assert_eq!(small.merge(), (0, Err(TableError::Breaks { at })));
    assert!(!small.is_in_debt());
    // At the end of a page no entry changes, so that is a cut like any other.
    let (low, high) = small.split_large_at(pages(100)).unwrap();
    assert!(!low.is_in_debt() && !high.is_in_debt());
    drop((low, high));
    assert_eq!(driver.end(host), PAGES);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_cut_with_a_gap_has_one_and_a_live_one_has_none() {
    for live in [false, true] {
        let mut machine = if live { Machine::new() } else { stiff() };
        let driver = machine.driver(NIC);
        let host = machine.fake.host();
        let range = map(&machine, &driver, PageSize::Size1G);
        let start = driver.domain.translate(Iova::new(FIRST)).unwrap().to;
        let faults = watch(&machine, Iova::new(FIRST + 200 * 4096));
        let cut = match live {
            true => range.split_large_at(pages(100)),
            false => range.split_with_gap_at(pages(100)),
        };
        host.set_hook(None);
        let (low, high) = cut.unwrap();
        // ORDERING: Relaxed, one thread.
        assert_eq!(faults.load(Ordering::Relaxed) > 0, !live);
        assert_eq!(low.is_in_debt(), live);
        for page in [0, 99, 100, 511] {
            let at = Iova::new(FIRST + page * 4096);
            let to = machine.fake.dma(NIC, at, Access::Write);
            assert_eq!(to, Ok(start.checked_add(page * 4096).unwrap()));
        }
        let (_, frames) = low.unmap().flush().unwrap();
        assert_eq!(frames.range().start(), start);
        assert_eq!(frames.pages(), pages(100));
        host.free_frames(frames);
        let gone = machine.fake.dma(NIC, Iova::new(FIRST), Access::Read);
        assert_eq!(gone, Err(DmaFault::NotMapped));
        let still = Iova::new(FIRST + 100 * 4096);
        assert!(machine.fake.dma(NIC, still, Access::Write).is_ok());
        drop(high);
        assert_eq!(driver.end(host), 412);
        assert_eq!(host.frames_out(), 0);
    }
}

#[test]
fn a_cut_that_leaves_nothing_in_one_part_is_refused() {
    let mut machine = stiff();
    let driver = machine.driver(NIC);
    let mut range = map(&machine, &driver, PageSize::Size1G);
    for count in [PAGES, PAGES + 1] {
        let refused = range.split_large_at(pages(count)).unwrap_err();
        let CutError::Refused {
            range: again,
            reason,
        } = refused
        else {
            panic!("cut at {count}");
        };
        let nothing = CutRefusal::NothingLeft {
            range: iovas(FIRST, PAGES),
            pages: pages(count),
        };
        assert_eq!(reason, nothing);
        let refused = again.split_with_gap_at(pages(count)).unwrap_err();
        let CutError::Refused {
            range: again,
            reason,
        } = refused
        else {
            panic!("cut at {count}");
        };
        assert_eq!(reason, nothing);
        range = again;
    }
    assert!(driver.domain.translate(Iova::new(FIRST)).is_some());
}

#[test]
fn a_cut_with_a_gap_that_cannot_be_flushed_is_pending_as_a_whole() {
    let mut machine = stiff();
    let driver = machine.driver(NIC);
    let range = map(&machine, &driver, PageSize::Size1G);
    machine.fake.completes(0, Completion::Never);
    let CutError::Pending(error) = range.split_with_gap_at(pages(100)).unwrap_err() else {
        panic!("cut without a flush");
    };
    assert!(matches!(error.reason, RedeemRefusal::Flush(_)));
    assert_eq!(error.pending.span(), iovas(FIRST, PAGES));
}
