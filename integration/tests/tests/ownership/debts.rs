//! What a change of page size or of permissions leaves behind, and who pays it.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, PageSize, Perms};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, Mapped, Range, RedeemRefusal};
use hv_tests::fake::{Completion, DmaFault, Fake, Logged};

use super::machine::{Driver, Machine, NIC, iovas, level, pages};

const FIRST: u64 = 0x4000_0000;
const PAGES: u64 = 512;
const WHOLE: hv_core::PageCount = match hv_core::PageCount::new(PAGES) {
    Some(pages) => pages,
    None => unreachable!(),
};

/// Maps one large page, or the small ones that would make one, and has the device write through it.
fn map(machine: &Machine, driver: &Driver, largest: PageSize) -> Range<KernelPaging, Fake, Mapped> {
    let range = driver.domain.reserve(iovas(FIRST, PAGES)).unwrap();
    let frames = machine.host().frames_aligned(PAGES, PageSize::Size2M);
    let range = range.map_with(frames, Perms::ReadWrite, largest).unwrap();
    machine.fake.dma_write(NIC, Iova::new(FIRST), 7).unwrap();
    machine.fake.take_log(0);
    range
}

/// The flushes of the driver's domain since the last look: span and depth.
fn flushes(machine: &Machine) -> Vec<(FlushSpan, FlushDepth)> {
    let log = machine.fake.take_log(0).into_iter();
    log.map(|call| match call {
        Logged::Flush(FlushRequest { span, depth, .. }) => (span, depth),
        other => panic!("{other:?}"),
    })
    .collect()
}

fn deep(start: u64, pages: u64) -> (FlushSpan, FlushDepth) {
    let span = FlushSpan::Pages(iovas(start, pages));
    (span, FlushDepth::WalkCaches)
}

fn leaves(start: u64, pages: u64) -> (FlushSpan, FlushDepth) {
    let span = FlushSpan::Pages(iovas(start, pages));
    (span, FlushDepth::Leaves)
}

#[test]
fn both_parts_of_a_split_page_owe_a_flush_of_all_of_it() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = map(&machine, &driver, PageSize::Size1G);
    let (low, mut high) = range.split_large_at(pages(100)).unwrap();
    assert_eq!(flushes(&machine), [], "a split alone flushes nothing");
    assert_eq!((low.span().pages(), low.is_in_debt()), (pages(100), true));
    assert_eq!((high.span().pages(), high.is_in_debt()), (pages(412), true));
    let leaf = driver.domain.translate(Iova::new(FIRST)).unwrap();
    assert_eq!(leaf.level, level(1));

    let pending = low.unmap();
    assert_eq!(pending.flush_span(), iovas(FIRST, PAGES));
    // The device goes on through the large page that its unit has cached.
    assert_eq!(machine.fake.dma_write(NIC, Iova::new(FIRST), 8), Ok(()));
    let (_, frames) = pending.flush().unwrap();
    assert_eq!(flushes(&machine), [deep(FIRST, PAGES)]);
    let gone = machine.fake.dma(NIC, Iova::new(FIRST), Access::Read);
    assert_eq!(gone, Err(DmaFault::NotMapped));
    host.free_frames(frames);

    high.settle().unwrap();
    assert!(!high.is_in_debt());
    assert_eq!(flushes(&machine), [deep(FIRST, PAGES)]);
    high.settle().unwrap();
    assert_eq!(flushes(&machine), [], "nothing is owed any more");
    let (_, frames) = high.unmap().flush().unwrap();
    assert_eq!(flushes(&machine), [leaves(FIRST + 100 * 4096, 412)]);
    host.free_frames(frames);
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_merged_page_owes_a_flush_of_all_of_it_and_its_table_comes_back_later() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let mut range = map(&machine, &driver, PageSize::Size4K);
    let tables = driver.domain.table_pages();
    assert_eq!(range.merge(), (1, Ok(())));
    assert!(range.is_in_debt());
    let leaf = driver.domain.translate(Iova::new(FIRST)).unwrap();
    assert_eq!(leaf.level, level(2));
    // The device still walks in the table that was replaced.
    for page in 0..4 {
        let at = Iova::new(FIRST + page * 4096);
        assert!(machine.fake.dma(NIC, at, Access::Write).is_ok());
    }
    assert_eq!(range.merge(), (0, Ok(())), "there is nothing left to merge");
    let (_, frames) = range.unmap().flush().unwrap();
    assert_eq!(flushes(&machine), [deep(FIRST, PAGES)]);
    host.free_frames(frames);
    assert_eq!(driver.domain.table_pages(), tables);
    driver.domain.reclaim().unwrap();
    assert_eq!(driver.domain.table_pages(), 1);
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn permissions_hold_for_all_once_the_debt_is_settled() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let mut range = map(&machine, &driver, PageSize::Size1G);
    let write = || machine.fake.dma_write(NIC, Iova::new(FIRST), 9);
    range.protect(Perms::Read).unwrap();
    assert_eq!(range.granted(), Perms::Read);
    assert!(range.is_in_debt());
    // Until the flush, the unit knows nothing of it.
    assert_eq!(write(), Ok(()));
    range.settle().unwrap();
    assert_eq!(flushes(&machine), [deep(FIRST, PAGES)]);
    assert_eq!(write(), Err(DmaFault::NotPermitted));
    range.protect(Perms::Read).unwrap();
    assert!(!range.is_in_debt(), "nothing changed");
    range.protect(Perms::ReadWrite).unwrap();
    let pending = range.unmap();
    assert_eq!(pending.flush_span(), iovas(FIRST, PAGES));
    assert!(pending.flush().is_ok());
    assert_eq!(flushes(&machine), [deep(FIRST, PAGES)]);
}

#[test]
fn only_a_receipt_for_all_of_it_from_after_the_change_settles_a_debt() {
    let mut machine = Machine::new();
    let (driver, other) = (machine.driver(NIC), machine.driver(super::machine::FAR));
    let mut range = map(&machine, &driver, PageSize::Size1G);
    let old = driver.domain.flush(FlushSpan::Domain).unwrap();
    range.protect(Perms::Read).unwrap();
    let refused = range.settle_with(&old).unwrap_err();
    assert!(matches!(refused, RedeemRefusal::TooOld { .. }), "{refused}");
    let foreign = other.domain.flush(FlushSpan::Domain).unwrap();
    let refused = range.settle_with(&foreign).unwrap_err();
    assert!(matches!(refused, RedeemRefusal::OtherDomain { .. }));
    let part = FlushSpan::Pages(iovas(FIRST, PAGES - 1));
    let part = driver.domain.flush(part).unwrap();
    let refused = range.settle_with(&part).unwrap_err();
    let not_covered = RedeemRefusal::NotCovered {
        range: iovas(FIRST, PAGES),
    };
    assert_eq!(refused, not_covered);
    assert!(range.is_in_debt());
    let new = driver.domain.flush(FlushSpan::Domain).unwrap();
    assert_eq!(range.settle_with(&new), Ok(()));
    assert!(!range.is_in_debt());
    // And what settles one debt opens no unmap of later.
    let refused = range.unmap().redeem(&new).unwrap_err();
    assert!(matches!(refused.reason, RedeemRefusal::TooOld { .. }));
}

#[test]
fn a_receipt_for_the_part_alone_does_not_open_it_while_it_owes_for_the_whole() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = map(&machine, &driver, PageSize::Size1G);
    let (low, high) = range.split_large_at(pages(1)).unwrap();
    let pending = low.unmap();
    let part = driver
        .domain
        .flush(FlushSpan::Pages(iovas(FIRST, 1)))
        .unwrap();
    let refused = pending.redeem(&part).unwrap_err();
    let not_covered = RedeemRefusal::NotCovered {
        range: iovas(FIRST, PAGES),
    };
    assert_eq!(refused.reason, not_covered);
    let (_, frames) = refused.pending.flush().unwrap();
    machine.host().free_frames(frames);
    assert_eq!(high.span(), iovas(FIRST + 4096, PAGES - 1));
}

#[test]
fn joined_ranges_owe_what_either_did() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = map(&machine, &driver, PageSize::Size1G);
    let (mut low, high) = range.split_large_at(pages(256)).unwrap();
    low.settle().unwrap();
    let whole = low.join(high).unwrap();
    assert_eq!(whole.span().pages(), WHOLE);
    assert!(whole.is_in_debt());
    machine.fake.take_log(0);
    // The range covers the table of the split, which goes with it.
    let (_, frames) = whole.unmap().flush().unwrap();
    assert_eq!(flushes(&machine), [deep(FIRST, PAGES)]);
    assert_eq!(frames.pages(), WHOLE);
    host.free_frames(frames);
    assert_eq!(driver.end(host), 0);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn ranges_that_do_not_go_on_in_address_frame_or_permission_are_not_joined() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let frames = host.frames(4);
    let (low, rest) = frames.split_at(pages(1)).unwrap();
    let (middle, high) = rest.split_at(pages(2)).unwrap();
    let at = |start, run, perms| {
        let run: hv_core::FrameRun<hv_core::Hypervisor> = run;
        let range = driver
            .domain
            .reserve(iovas(start, run.pages().get()))
            .unwrap();
        range.map(run, perms).unwrap()
    };
    let low = at(0x4000, low, Perms::Read);
    let high = at(0x5000, high, Perms::Read);
    let middle = at(0x6000, middle, Perms::Write);
    let (low, high) = low.join(high).unwrap_err();
    let (low, middle) = low.join(middle).unwrap_err();
    let (high, middle) = high.join(middle).unwrap_err();
    drop((low, high, middle));
    assert_eq!(driver.end(host), 4);
}

#[test]
fn a_debt_that_cannot_be_settled_stays() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let mut range = map(&machine, &driver, PageSize::Size1G);
    range.protect(Perms::Read).unwrap();
    machine.fake.completes(0, Completion::Never);
    assert!(range.settle().is_err());
    assert!(range.is_in_debt());
}
