//! Unmaps that cover whole tables: the tables go with the range, and come back with its receipt.

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, RedeemRefusal, TeardownStep};
use hv_tests::fake::{DmaFault, Logged};

use super::machine::{Driver, Machine, NIC, iovas, pages};

/// A table's worth of small pages.
const FIRST: u64 = 0x20_0000;
const PAGES: u64 = 512;

type MappedRange = hv_iommu::Range<hv_core::KernelPaging, hv_tests::fake::Fake, hv_iommu::Mapped>;

/// Maps a table's worth of small pages at `start`, and has the device walk there.
fn map_table(machine: &Machine, driver: &Driver, start: u64, count: u64) -> MappedRange {
    let range = driver.domain.reserve(iovas(start, count)).unwrap();
    let frames = machine.host().frames(count);
    let range = range
        .map_with(frames, Perms::ReadWrite, PageSize::Size4K)
        .unwrap();
    machine.fake.dma_write(NIC, Iova::new(start), 7).unwrap();
    range
}

#[test]
fn a_whole_table_goes_with_its_range_and_the_flush_reaches_walk_caches() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = map_table(&machine, &driver, FIRST, PAGES);
    assert_eq!(driver.domain.table_pages(), 3);
    machine.fake.take_log(0);
    let pending = range.unmap();
    assert_eq!(driver.domain.translate(Iova::new(FIRST)), None);
    // The table still counts: hardware may walk in it.
    assert_eq!(driver.domain.table_pages(), 3);
    let cached = Iova::new(FIRST + 0x5000);
    assert!(machine.fake.dma(NIC, cached, Access::Read).is_ok());
    let (range, frames) = pending.flush().unwrap();
    let request = FlushRequest {
        domain: driver.domain.hw_id(),
        span: FlushSpan::Pages(iovas(FIRST, PAGES)),
        depth: FlushDepth::WalkCaches,
    };
    assert_eq!(machine.fake.take_log(0), [Logged::Flush(request)]);
    assert_eq!(driver.domain.table_pages(), 2);
    for at in [Iova::new(FIRST), cached] {
        let gone = machine.fake.dma(NIC, at, Access::Read);
        assert_eq!(gone, Err(DmaFault::NotMapped));
    }
    // The same place takes pages of any size.
    host.free_frames(frames);
    let frames = host.frames_aligned(PAGES, PageSize::Size2M);
    let range = range.map(frames, Perms::Read).unwrap();
    let leaf = driver.domain.translate(Iova::new(FIRST)).unwrap();
    assert_eq!(leaf.level, super::machine::level(2));
    drop(range);
    assert_eq!(driver.end(host), PAGES);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn part_of_a_table_leaves_the_table_and_needs_no_more_than_leaves() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = map_table(&machine, &driver, FIRST, PAGES - 1);
    machine.fake.take_log(0);
    let (_, frames) = range.unmap().flush().unwrap();
    machine.host().free_frames(frames);
    assert_eq!(driver.domain.table_pages(), 3);
    let log = machine.fake.take_log(0);
    let [Logged::Flush(request)] = log[..] else {
        panic!("{log:?}");
    };
    assert_eq!(request.depth, FlushDepth::Leaves);
}

/// A CPU looks through the mappings, and stays at one of them.
#[test]
fn what_was_detached_stays_closed_while_a_cpu_walks_in_it() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = map_table(&machine, &driver, FIRST, PAGES);
    let domain = &driver.domain;
    let (entered, seen) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let walker = scope.spawn(move || {
            let mut shown = 0;
            let _ = domain.mappings(iovas(FIRST, PAGES), |_| {
                if shown == 0 {
                    entered.send(()).unwrap();
                    let _ = wait.recv_timeout(Duration::from_secs(10));
                }
                shown += 1;
                ControlFlow::Continue(())
            });
            shown
        });
        seen.recv_timeout(Duration::from_secs(10)).unwrap();
        let pending = range.unmap();
        let receipt = domain.flush(FlushSpan::Domain).unwrap();
        let refused = pending.redeem(&receipt).unwrap_err();
        assert_eq!(refused.reason, RedeemRefusal::StillWalked);
        // Waiting helps only as long as it lasts.
        let refused = refused.pending.flush().unwrap_err();
        assert_eq!(refused.reason, RedeemRefusal::StillWalked);
        assert_eq!(domain.table_pages(), 3);
        go.send(()).unwrap();
        // The walker went on in a table that nobody had taken from it.
        assert_eq!(walker.join().unwrap(), PAGES);
        let (_, frames) = refused.pending.redeem(&receipt).unwrap();
        host.free_frames(frames);
    });
    assert_eq!(domain.table_pages(), 2);
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_forgotten_detached_table_comes_back_at_the_end() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = map_table(&machine, &driver, FIRST, 2 * PAGES);
    drop(range.unmap());
    assert!(driver.domain.reserve(iovas(FIRST, 1)).is_err());
    assert_eq!(driver.end(machine.host()), 2 * PAGES);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn an_end_in_small_steps_that_is_left_and_taken_up_again_gives_all_back_once() {
    for budget in [1, 7, 513] {
        let mut machine = Machine::new();
        let (driver, other) = (machine.driver(NIC), machine.driver(super::machine::FAR));
        let host = machine.fake.host();
        let mapped = map_table(&machine, &driver, FIRST, PAGES);
        let pending = map_table(&machine, &driver, 4 * FIRST, PAGES).unmap();
        let single = map_table(&machine, &driver, 0x7f_ffff_f000, 1);
        let (group, domain) = (driver.group.detach().unwrap(), driver.domain);
        let out = host.frames_out();
        let mut teardown = domain.destroy().unwrap();
        let (mut frames, mut steps) = (0, 0_u64);
        loop {
            match teardown.step(budget) {
                TeardownStep::Done => break,
                TeardownStep::More => {}
                TeardownStep::Frames(run) => {
                    frames += run.pages().get();
                    host.free_frames(run);
                }
            }
            steps += 1;
            // Life goes on between two steps.
            if steps.is_multiple_of(300) {
                let at = 0x4000 + steps * 0x1000;
                let range = other.domain.reserve(iovas(at, 1)).unwrap();
                let range = range.map(host.frames(1), Perms::Read).unwrap();
                let (_, run) = range.unmap().flush().unwrap();
                host.free_frames(run);
            }
        }
        assert!(steps > frames, "steps were bounded by {budget} words");
        assert_eq!(frames, 2 * PAGES + 1);
        // Root, level 2 twice, leaf tables thrice.
        assert_eq!(teardown.tables_freed(), 6);
        assert!(matches!(teardown.step(1), TeardownStep::Done));
        assert!(host.frames_out() < out);
        drop((group, mapped, pending, single));
        assert_eq!(other.end(host), 0);
        assert_eq!(host.frames_out(), 0, "in steps of {budget} words");
    }
}

#[test]
fn a_range_that_ends_in_the_middle_of_a_table_takes_only_what_it_covers() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    // Half a table, a whole one, a page.
    let range = map_table(&machine, &driver, FIRST + 256 * 4096, 256 + 512 + 1);
    let neighbour = map_table(&machine, &driver, FIRST + 0x40_1000, 1);
    assert_eq!(driver.domain.table_pages(), 5);
    let (range, frames) = range.unmap().flush().unwrap();
    assert_eq!(frames.pages(), pages(256 + 512 + 1));
    assert_eq!(driver.domain.table_pages(), 4);
    assert!(
        machine
            .fake
            .dma(NIC, neighbour.span().start(), Access::Read)
            .is_ok()
    );
    host.free_frames(frames);
    range.release().unwrap();
    assert_eq!(driver.end(host), 1);
    assert_eq!(host.frames_out(), 0);
}
