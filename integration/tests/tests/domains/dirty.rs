//! Dirty tracking: the pages that are reported are the pages that were written. The cases of
//! `get_dirty_bitmap` and `get_dirty_bitmap_no_clear` in the tests of Linux iommufd.

use hv_core::platform::FrameSource;
use hv_core::{Iova, IovaRange, KernelPaging, PageSize, Perms};
use hv_iommu::{BitmapError, DirtyBitmap, DirtyError, FlushError, Mapped, Needs, Range, UnitError};
use hv_tests::fake::{Answer, Call, Completion, Fake, Logged};

use super::machine::{Driver, Machine, NIC, PLAIN, iovas, pages};

pub(super) const START: u64 = 0x4000_0000;
pub(super) const NEEDS: Needs = Needs {
    dirty_tracking: true,
    coherent_walks: true,
    coherent_dma: false,
    pasids: false,
};

/// A driver whose domain notes what its device writes.
pub(super) fn tracked() -> (Machine, Driver) {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = hv_iommu::Domain::paging_domain_alloc(&group, PLAIN.with(NEEDS)).unwrap();
    let group = group.attach(&domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    (machine, Driver { group, domain })
}

pub(super) fn mapped(
    machine: &Machine,
    driver: &Driver,
    count: u64,
) -> Range<KernelPaging, Fake, Mapped> {
    let range = driver.domain.reserve(iovas(START, count)).unwrap();
    let frames = machine.host().frames_aligned(count, PageSize::Size2M);
    range.map(frames, Perms::ReadWrite).unwrap()
}

pub(super) fn write(machine: &Machine, page: u64) {
    let at = Iova::new(START + (page << 12) + 8);
    machine.fake.dma_write(NIC, at, 1).unwrap();
}

/// The numbers of the marked pages, counted from `START`.
pub(super) fn marked(bitmap: &DirtyBitmap<'_>) -> Vec<u64> {
    bitmap
        .pages()
        .map(|at| (at.as_u64() - START) >> 12)
        .collect()
}

#[test]
fn reported_pages_are_the_written_ones_for_every_start_and_length() {
    let (machine, driver) = tracked();
    let _range = mapped(&machine, &driver, 200);
    // Reads are no writes.
    machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
    let written = [0, 1, 63, 64, 65, 127, 128, 191, 199];
    for page in written {
        write(&machine, page);
    }
    let tracking = driver.domain.dirty().unwrap();
    for (start, count) in [
        (0, 200),
        (1, 64),
        (63, 2),
        (64, 64),
        (65, 130),
        (199, 1),
        (2, 61),
    ] {
        let mut words = [0; 4];
        let range = iovas(START + (start << 12), count);
        let mut bitmap = DirtyBitmap::new(range, &mut words).unwrap();
        tracking.read(&mut bitmap).unwrap();
        let inside = written
            .into_iter()
            .filter(|page| (start..start + count).contains(page));
        assert_eq!(marked(&bitmap), inside.collect::<Vec<_>>(), "{range}");
        assert_eq!(bitmap.count(), marked(&bitmap).len() as u64);
    }
}

#[test]
fn reading_leaves_and_clearing_clears() {
    let (machine, driver) = tracked();
    let _range = mapped(&machine, &driver, 8);
    let tracking = driver.domain.dirty().unwrap();
    let look = |take| {
        let mut words = [0];
        let mut bitmap = DirtyBitmap::new(iovas(START, 8), &mut words).unwrap();
        match take {
            true => tracking.read_and_clear(&mut bitmap).unwrap(),
            false => tracking.read(&mut bitmap).unwrap(),
        }
        marked(&bitmap)
    };
    write(&machine, 3);
    assert_eq!(look(false), [3]);
    assert_eq!(look(false), [3], "without clearing it stays");
    assert_eq!(look(true), [3]);
    assert_eq!(look(true), [] as [u64; 0], "the second one is empty");
    // The unit had cached that the page is written: it was told to forget that.
    write(&machine, 3);
    write(&machine, 5);
    assert_eq!(look(true), [3, 5]);
    let far = driver.end(machine.host());
    assert_eq!(far, 8);
}

#[test]
fn a_large_page_is_written_whole_and_told_where_it_reaches_out() {
    let (machine, driver) = tracked();
    let _range = mapped(&machine, &driver, 1024);
    let tracking = driver.domain.dirty().unwrap();
    write(&machine, 700);
    let mut words = [0; 16];
    let mut bitmap = DirtyBitmap::new(iovas(START, 1024), &mut words).unwrap();
    tracking.read(&mut bitmap).unwrap();
    assert_eq!(marked(&bitmap), (512..1024).collect::<Vec<_>>());

    let part = iovas(START + (600 << 12), 100);
    for take in [false, true] {
        let mut words = [0; 2];
        let mut bitmap = DirtyBitmap::new(part, &mut words).unwrap();
        let refused = match take {
            false => tracking.read(&mut bitmap),
            true => tracking.read_and_clear(&mut bitmap),
        };
        let written = iovas(START + (512 << 12), 512);
        assert_eq!(refused, Err(DirtyError::ReachesOut { written }));
        assert_eq!(bitmap.count(), 100, "what is inside is marked all the same");
    }
    // It was cleared as a whole, so it is noted as a whole again.
    let mut words = [0; 16];
    let mut bitmap = DirtyBitmap::new(iovas(START, 1024), &mut words).unwrap();
    tracking.read(&mut bitmap).unwrap();
    assert_eq!(bitmap.count(), 0);
    write(&machine, 513);
    tracking.read(&mut bitmap).unwrap();
    assert_eq!(bitmap.count(), 512);
}

#[test]
fn clearing_flushes_what_it_cleared() {
    let (machine, driver) = tracked();
    let _range = mapped(&machine, &driver, 512);
    let tracking = driver.domain.dirty().unwrap();
    write(&machine, 9);
    machine.fake.take_log(0);
    let mut words = [0; 1];
    let mut bitmap = DirtyBitmap::new(iovas(START, 16), &mut words).unwrap();
    let _ = tracking.read_and_clear(&mut bitmap);
    let log = machine.fake.take_log(0);
    let [Logged::Flush(flush)] = log[..] else {
        panic!("{log:?}");
    };
    // The large page that was cleared, not just the part of it that was asked about.
    assert_eq!(flush.span, hv_iommu::FlushSpan::Pages(iovas(START, 512)));
}

#[test]
fn bc01_a_flush_that_fails_loses_no_written_page() {
    for completion in [Completion::Never, Completion::Fails] {
        let (machine, driver) = tracked();
        let _range = mapped(&machine, &driver, 8);
        let tracking = driver.domain.dirty().unwrap();
        write(&machine, 2);
        let answer = Answer::Completes(completion);
        machine.fake.plan(0, Call::Submit, 0, answer);
        let mut words = [0];
        let mut bitmap = DirtyBitmap::new(iovas(START, 8), &mut words).unwrap();
        let failed = tracking.read_and_clear(&mut bitmap).unwrap_err();
        let DirtyError::Flush { reason, written } = failed else {
            panic!("{failed}");
        };
        assert!(matches!(
            reason,
            FlushError::Unit(UnitError::Timeout { .. } | UnitError::Hardware { .. })
        ));
        assert_eq!(written, None);
        assert_eq!(marked(&bitmap), [2]);
    }
}

#[test]
fn a_bitmap_that_is_too_short_is_refused() {
    let range = iovas(START, 65);
    let mut words = [0];
    let refused = DirtyBitmap::new(range, &mut words).unwrap_err();
    let expected = BitmapError {
        pages: pages(65),
        needed: 2,
        found: 1,
    };
    assert_eq!(refused, expected);
    assert!(DirtyBitmap::new(iovas(START, 64), &mut words).is_ok());
}

#[test]
fn what_is_split_and_merged_keeps_its_dirty_bits() {
    let (machine, driver) = tracked();
    let range = mapped(&machine, &driver, 512);
    let tracking = driver.domain.dirty().unwrap();
    write(&machine, 100);
    let (low, high) = range.split_large_at(pages(256)).unwrap();
    let mut words = [0; 8];
    let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
    tracking.read_and_clear(&mut bitmap).unwrap();
    assert_eq!(bitmap.count(), 512, "nobody knows where in the large page");
    write(&machine, 300);
    let mut words = [0; 8];
    let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
    tracking.read(&mut bitmap).unwrap();
    assert_eq!(marked(&bitmap), [300]);
    let mut whole = low.join(high).unwrap();
    let (merged, settled) = whole.merge();
    assert_eq!((merged, settled), (1, Ok(())));
    tracking.read(&mut bitmap).unwrap();
    assert_eq!(bitmap.count(), 512);
    let (_range, frames) = whole.unmap().flush().unwrap();
    machine.host().free_frames(frames);
}

#[test]
fn ranges_without_anything_mapped_have_no_written_page() {
    let (_machine, driver) = tracked();
    let mut words = [0; 2];
    let range: IovaRange = iovas(START, 100);
    let mut bitmap = DirtyBitmap::new(range, &mut words).unwrap();
    let tracking = driver.domain.dirty().unwrap();
    assert_eq!(tracking.read_and_clear(&mut bitmap), Ok(()));
    assert_eq!(bitmap.count(), 0);
}
