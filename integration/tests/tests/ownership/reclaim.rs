//! Empty tables of a domain that lives on: all come back, by hand or bit by bit, and none too early.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, Perms};
use hv_iommu::table::BATCH;
use hv_iommu::{FlushSpan, ReclaimError, UnitIndex};
use hv_tests::fake::{Answer, Call, Completion, DmaFault};

use super::machine::{Driver, Machine, NIC, iovas};

const UNIT: UnitIndex = match UnitIndex::new(0) {
    Some(unit) => unit,
    None => unreachable!(),
};

/// A number that looks random, the same in each run.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *state >> 33
}

/// One page each in this many leaf tables, over several tables of the level above, used and unmapped.
fn leave_tables(machine: &Machine, driver: &Driver, count: u64) {
    for index in 0..count {
        let at = (1 + index * 77) << 21;
        let range = driver.domain.reserve(iovas(at, 1)).unwrap();
        let range = range
            .map(machine.host().frames(1), Perms::ReadWrite)
            .unwrap();
        machine.fake.dma_write(NIC, Iova::new(at), 1).unwrap();
        let pending = range.unmap();
        let (range, frames) = pending.flush().unwrap();
        machine.host().free_frames(frames);
        range.release().unwrap();
    }
}

#[test]
fn small_pages_leave_no_table_behind_after_a_reclaim() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    leave_tables(&machine, &driver, 40);
    let before = driver.domain.table_pages();
    assert!(before > 40, "{before} tables");
    assert_eq!(driver.domain.reclaim(), Ok(before - 1));
    assert_eq!(driver.domain.table_pages(), 1, "the root");
    assert_eq!(machine.host().frames_out(), 1);
    assert_eq!(driver.domain.reclaim(), Ok(0));
    // The unit has forgotten the tables: it finds the new ones.
    leave_tables(&machine, &driver, 40);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn the_tables_of_what_is_mapped_or_pending_stay() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let map = |at| {
        let range = driver.domain.reserve(iovas(at, 1)).unwrap();
        range.map(host.frames(1), Perms::ReadWrite).unwrap()
    };
    let mapped = map(0x4000);
    let pending = map(1 << 38).unmap();
    leave_tables(&machine, &driver, 10);
    driver.domain.reclaim().unwrap();
    assert_eq!(driver.domain.table_pages(), 5, "the root and two ways down");
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000), Access::Write)
            .is_ok()
    );
    let (range, frames) = pending.flush().unwrap();
    host.free_frames(frames);
    assert_eq!(driver.domain.reclaim(), Ok(2));
    drop((range, mapped));
    assert_eq!(driver.end(host), 1);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_wedged_unit_gives_no_table_back_and_its_reset_lets_them_go() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    leave_tables(&machine, &driver, 20);
    let before = driver.domain.table_pages();
    machine.fake.completes(0, Completion::Never);
    for _ in 0..2 {
        let refused = driver.domain.reclaim();
        assert!(
            matches!(refused, Err(ReclaimError::Flush(_))),
            "{refused:?}"
        );
        assert_eq!(driver.domain.table_pages(), before, "quarantined");
    }
    machine.fake.completes(0, Completion::AfterPolls(0));
    // The tables are tables as before: what is mapped in them is there.
    let range = driver.domain.reserve(iovas(1 << 21, 1)).unwrap();
    let range = range.map(host.frames(1), Perms::ReadWrite).unwrap();
    assert_eq!(driver.domain.table_pages(), before);
    assert!(driver.domain.translate(Iova::new(1 << 21)).is_some());
    assert!(driver.domain.reclaim().is_err());

    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    driver.group.enable_bus_mastering(NIC).unwrap();
    assert!(machine.fake.dma_write(NIC, Iova::new(1 << 21), 1).is_ok());
    driver.domain.reclaim().unwrap();
    assert_eq!(driver.domain.table_pages(), 3, "the way to the one page");
    let (_, frames) = range.unmap().flush().unwrap();
    host.free_frames(frames);
    assert_eq!(driver.domain.reclaim(), Ok(2));
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_busy_unit_only_puts_a_reclaim_off() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    leave_tables(&machine, &driver, 5);
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    assert!(driver.domain.reclaim().is_err());
    driver.domain.reclaim().unwrap();
    assert_eq!(driver.domain.table_pages(), 1);
}

#[test]
fn unmaps_keep_the_number_of_tables_in_proportion() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let (mut seed, mut most, mut live) = (7, 0, Vec::new());
    for _ in 0..8000 {
        // Single pages in 4000 leaf tables: each unmap would leave one, more or less.
        let at = (2048 + next(&mut seed) % 4000) << 21 | (next(&mut seed) % 512) << 12;
        let Ok(range) = driver.domain.reserve(iovas(at, 1)) else {
            continue;
        };
        live.push(range.map(host.frames(1), Perms::ReadWrite).unwrap());
        machine.fake.dma_write(NIC, Iova::new(at), 1).unwrap();
        if live.len() > 20 {
            let range = live.swap_remove(next(&mut seed) as usize % live.len());
            let (range, frames) = range.unmap().flush().unwrap();
            host.free_frames(frames);
            range.release().unwrap();
        }
        most = most.max(driver.domain.table_pages());
    }
    // 20 pages with tables of their own, as many again and 64, and what comes while a look goes on.
    let bound = 2 * (20 + 10) + 64 + 2 * BATCH as u64 + 64;
    assert!(most <= bound, "{most} table pages, the bound is {bound}");
    let left = live.len() as u64;
    drop(live);
    assert_eq!(driver.end(host), left);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_shared_ranges_tables_come_back_too() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let shared = driver.domain.reserve(iovas(1 << 30, 4 << 9)).unwrap();
    let shared = shared.share().unwrap();
    for index in 0..4 {
        let at = Iova::new((1 << 30) + (index << 21));
        shared.map(at, host.frames(1), Perms::ReadWrite).unwrap();
        machine.fake.dma_write(NIC, at, 1).unwrap();
        let page = shared.unmap(at, hv_core::PageSize::Size4K).unwrap();
        host.free_frames(page.flush().unwrap());
    }
    assert_eq!(driver.domain.reclaim(), Ok(5));
    // A mapper links tables anew where others were given back.
    let at = Iova::new(1 << 30);
    shared.map(at, host.frames(1), Perms::ReadWrite).unwrap();
    assert!(machine.fake.dma_write(NIC, at, 1).is_ok());
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    let page = shared.unmap(at, hv_core::PageSize::Size4K).unwrap();
    let (page, _) = page.redeem(&receipt).unwrap_err();
    assert_eq!(
        driver.domain.reclaim(),
        Ok(0),
        "a pending page keeps its table"
    );
    host.free_frames(page.flush().unwrap());
    let gone = machine.fake.dma(NIC, at, Access::Read);
    assert_eq!(gone, Err(DmaFault::NotMapped));
    drop(shared);
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}
