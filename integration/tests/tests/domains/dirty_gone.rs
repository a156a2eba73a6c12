//! What devices wrote through pages that are gone by now: merged, unmapped, cut with a gap. No migration loses
//! one of them.

use hv_core::platform::FrameSource;
use hv_core::{Iova, KernelPaging, PageCount, PageSize, Perms};
use hv_iommu::{
    DirtyBitmap, DirtyError, FlushError, FlushSpan, Mapped, Range, ReclaimError, RedeemRefusal,
    UnitCaps, UnitError,
};
use hv_tests::fake::{Answer, Call, Fake, Logged};

use super::dirty::{NEEDS, START, mapped, marked, tracked, write};
use super::machine::{Driver, FAR, Machine, NIC, PLAIN, full_unit, iovas, pages};

/// 512 pages of a large page that was cut into small ones, none of them noted as written.
fn small(machine: &Machine, driver: &Driver) -> Range<KernelPaging, Fake, Mapped> {
    let range = mapped(machine, driver, 512);
    let (low, high) = range.split_large_at(PageCount::ONE).unwrap();
    let mut whole = low.join(high).unwrap();
    whole.settle().unwrap();
    whole
}

fn look(driver: &Driver, take: bool) -> Result<Vec<u64>, DirtyError> {
    let mut words = [0; 8];
    let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
    let tracking = driver.domain.dirty().unwrap();
    match take {
        true => tracking.read_and_clear(&mut bitmap)?,
        false => tracking.read(&mut bitmap)?,
    }
    Ok(marked(&bitmap))
}

#[test]
fn bc03_merged_pages_tell_of_writes_that_units_noted_where_the_small_ones_were() {
    for take in [false, true] {
        let (machine, driver) = tracked();
        let mut range = small(&machine, &driver);
        // The unit knows the table of small pages from now on.
        machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
        assert_eq!(range.merge(), (1, Ok(())));
        write(&machine, 7);
        let all: Vec<u64> = (0..512).collect();
        assert_eq!(look(&driver, take), Ok(all.clone()));
        // Not again, and what the unit writes now goes to the large page.
        let left = if take { Vec::new() } else { all.clone() };
        assert_eq!(look(&driver, true), Ok(left));
        machine.fake.take_log(0);
        assert_eq!(look(&driver, false), Ok(Vec::new()));
        assert_eq!(
            machine.fake.take_log(0),
            [],
            "all is told: no further flush"
        );
        driver.domain.reclaim().unwrap();
        assert_eq!(look(&driver, false), Ok(Vec::new()), "told once");
        write(&machine, 8);
        assert_eq!(look(&driver, true), Ok(all));
        let (_range, frames) = range.unmap().flush().unwrap();
        machine.host().free_frames(frames);
    }
}

#[test]
fn bc03_the_flush_of_a_look_covers_the_merged_page_and_walk_caches() {
    let (machine, driver) = tracked();
    let mut range = small(&machine, &driver);
    assert_eq!(range.merge(), (1, Ok(())));
    machine.fake.take_log(0);
    // One page in its middle is enough to ask for it, another page asks for nothing.
    let tracking = driver.domain.dirty().unwrap();
    let mut words = [0];
    let mut beside = DirtyBitmap::new(iovas(START + (512 << 12), 1), &mut words).unwrap();
    tracking.read(&mut beside).unwrap();
    assert_eq!(machine.fake.take_log(0), []);
    let mut words = [0];
    let mut inside = DirtyBitmap::new(iovas(START + (300 << 12), 1), &mut words).unwrap();
    tracking.read(&mut inside).unwrap();
    let log = machine.fake.take_log(0);
    let [Logged::Flush(flush)] = log[..] else {
        panic!("{log:?}");
    };
    assert_eq!(flush.span, FlushSpan::Pages(iovas(START, 512)));
    assert_eq!(flush.depth, hv_iommu::FlushDepth::WalkCaches);
}

#[test]
fn bc01_a_look_whose_flush_fails_says_that_merged_pages_are_not_known() {
    for take in [false, true] {
        let (machine, driver) = tracked();
        let mut range = small(&machine, &driver);
        machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
        assert_eq!(range.merge(), (1, Ok(())));
        write(&machine, 7);
        machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
        let failed = look(&driver, take).unwrap_err();
        assert!(
            matches!(
                failed,
                DirtyError::Merged {
                    reason: ReclaimError::Flush(FlushError::Unit(UnitError::Busy { .. }))
                }
            ),
            "{failed}"
        );
        assert_eq!(
            look(&driver, take),
            Ok((0..512).collect()),
            "nothing is lost"
        );
    }
}

/// Unmapped leaves keep the bit, and a detached table gets more of them until the flush.
#[test]
fn bc03_redeem_noting_tells_what_was_written_until_the_receipt() {
    let (machine, driver) = tracked();
    let range = small(&machine, &driver);
    let (low, high) = range.split_at(pages(100)).unwrap();
    for page in [3, 99, 100, 511] {
        write(&machine, page);
    }
    let mut words = [0; 8];
    let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
    let pending = low.unmap();
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    let (low, frames) = pending.redeem_noting(&receipt, &mut bitmap).unwrap();
    assert_eq!(marked(&bitmap), [3, 99]);
    let (high, more) = high.unmap().flush_noting(&mut bitmap).unwrap();
    assert_eq!(marked(&bitmap), [3, 99, 100, 511]);
    let whole = low.join(high).unwrap();
    let range = whole
        .map(frames.join(more).unwrap(), Perms::ReadWrite)
        .unwrap();

    // A whole table is detached: the unit goes on writing through what it has cached.
    let (one, rest) = range.split_large_at(PageCount::ONE).unwrap();
    let mut whole = one.join(rest).unwrap();
    whole.settle().unwrap();
    machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
    let pending = whole.unmap();
    write(&machine, 77);
    let mut words = [0; 8];
    let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
    let (_range, frames) = pending.flush_noting(&mut bitmap).unwrap();
    assert_eq!(marked(&bitmap), [77]);
    machine.host().free_frames(frames);
    assert_eq!(driver.end(machine.host()), 0);
}

#[test]
fn bc03_redeem_noting_tells_of_merged_pages_too() {
    let (machine, driver) = tracked();
    let mut range = small(&machine, &driver);
    machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
    assert_eq!(range.merge(), (1, Ok(())));
    write(&machine, 7);
    let mut words = [0; 8];
    let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
    let (_range, frames) = range.unmap().flush_noting(&mut bitmap).unwrap();
    assert!(marked(&bitmap).contains(&7), "{bitmap:?}");
    machine.host().free_frames(frames);
}

#[test]
fn a_bitmap_that_cannot_hold_all_is_refused_and_the_value_comes_back() {
    let (machine, driver) = tracked();
    let range = mapped(&machine, &driver, 8);
    write(&machine, 7);
    let pending = range.unmap();
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    let mut words = [0];
    let mut short = DirtyBitmap::new(iovas(START, 7), &mut words).unwrap();
    let error = pending.redeem_noting(&receipt, &mut short).unwrap_err();
    let (range, bitmap) = (iovas(START, 8), iovas(START, 7));
    assert_eq!(
        error.reason,
        RedeemRefusal::BitmapTooSmall { range, bitmap }
    );
    assert_eq!(short.count(), 0);
    let mut words = [0];
    let mut whole = DirtyBitmap::new(range, &mut words).unwrap();
    let (_range, frames) = error.pending.redeem_noting(&receipt, &mut whole).unwrap();
    assert_eq!(marked(&whole), [7]);
    machine.host().free_frames(frames);
}

#[test]
fn bc03_a_shared_page_is_redeemed_with_what_was_written() {
    let (machine, driver) = tracked();
    let shared = driver.domain.reserve(iovas(START, 4)).unwrap();
    let shared = shared.share().unwrap();
    for page in 0..2 {
        let at = Iova::new(START + (page << 12));
        let frames = machine.host().frames(1);
        shared.map(at, frames, Perms::ReadWrite).unwrap();
    }
    write(&machine, 1);
    let mut words = [0];
    let mut bitmap = DirtyBitmap::new(iovas(START, 4), &mut words).unwrap();
    for page in 0..2 {
        let at = Iova::new(START + (page << 12));
        let pending = shared.unmap(at, PageSize::Size4K).unwrap();
        let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
        let mut words = [0];
        let mut beside = DirtyBitmap::new(iovas(START + 0x3000, 1), &mut words).unwrap();
        let (pending, reason) = pending.redeem_noting(&receipt, &mut beside).unwrap_err();
        assert!(
            matches!(reason, RedeemRefusal::BitmapTooSmall { .. }),
            "{reason}"
        );
        let frames = pending.redeem_noting(&receipt, &mut bitmap).unwrap();
        machine.host().free_frames(frames);
    }
    assert_eq!(marked(&bitmap), [1]);
}

#[test]
fn bc03_a_cut_with_a_gap_forgets_no_written_page() {
    let rigid = UnitCaps {
        live_resize: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(rigid, full_unit());
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = hv_iommu::Domain::paging_domain_alloc(&group, PLAIN.with(NEEDS)).unwrap();
    let group = group.attach(&domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    let driver = Driver { group, domain };
    let range = mapped(&machine, &driver, 8);
    write(&machine, 5);
    let (low, high) = range.split_with_gap_at(pages(2)).unwrap();
    assert_eq!(look(&driver, true), Ok(vec![5]));
    drop((low, high, machine.take(FAR)));
}

/// A part of a merged page that does not begin where the page did.
#[test]
fn bc03_a_part_of_a_merged_page_tells_of_its_own_writes() {
    let (machine, driver) = tracked();
    let mut range = small(&machine, &driver);
    machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
    assert_eq!(range.merge(), (1, Ok(())));
    // The unit still writes where the small pages were.
    for page in [7, 300] {
        write(&machine, page);
    }
    let (low, high) = range.split_large_at(pages(256)).unwrap();
    for (part, page) in [(high, 300), (low, 7)] {
        let mut words = [0; 8];
        let mut bitmap = DirtyBitmap::new(iovas(START, 512), &mut words).unwrap();
        let (_range, frames) = part.unmap().flush_noting(&mut bitmap).unwrap();
        assert_eq!(marked(&bitmap), [page]);
        machine.host().free_frames(frames);
    }
}

/// How a merged page stands when its domain ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Left {
    Merged,
    Cut,
    Pending,
}

#[test]
fn bc03_the_end_of_a_domain_tells_of_writes_where_the_small_pages_were() {
    for left in [Left::Merged, Left::Cut, Left::Pending] {
        let (machine, driver) = tracked();
        let mut range = small(&machine, &driver);
        machine.fake.dma_read(NIC, Iova::new(START)).unwrap();
        assert_eq!(range.merge(), (1, Ok(())));
        write(&machine, 300);
        match left {
            Left::Merged => drop(range),
            Left::Cut => drop(range.split_large_at(pages(256)).unwrap()),
            Left::Pending => {
                let (low, high) = range.split_large_at(pages(256)).unwrap();
                drop((low, high.unmap()));
            }
        }
        drop(driver.group.detach().unwrap());
        let mut teardown = driver.domain.destroy().unwrap();
        let (mut page, mut written) = (0, Vec::new());
        while let Some(frames) = teardown.next() {
            let count = frames.pages().get();
            if teardown.is_written() {
                written.extend(page..page + count);
            }
            page += count;
            machine.host().free_frames(frames);
        }
        assert_eq!(page, 512);
        match left {
            Left::Merged => assert_eq!(written.len(), 512),
            Left::Cut | Left::Pending => assert_eq!(written, [300], "{left:?}"),
        }
        assert_eq!(machine.host().frames_out(), 0);
    }
}

/// A look that takes long keeps no empty table from coming back: each of its steps has a guard of its own.
#[test]
fn bc16_a_long_look_holds_the_tables_for_a_step_only() {
    use hv_iommu::{AddressSpace, Domain};
    let (mut machine, driver) = tracked();
    let vm = hv_core::VmId::new(1).unwrap();
    let group = machine.take(FAR).claim_for_guest(vm);
    let domain = Domain::user_domain_alloc(&group, PLAIN.with(NEEDS)).unwrap();
    let space = AddressSpace::new(domain, None).unwrap();
    let isolated = super::machine::isolated();
    let group = group.attach_for_guest(space.domain(), &isolated).unwrap();
    group.enable_bus_mastering(FAR).unwrap();
    let mut memory = hv_core::GuestMemory::new(vm);
    let frames = machine.host().frames(1);
    memory.give(hv_core::Gpa::new(0), frames).unwrap();
    let mut space = space;
    for at in [0x1000, 32 << 20, 64 << 20] {
        let gpa = super::machine::gpas(0, 1);
        let at = Iova::new(at);
        space.map(&memory, at, gpa, Perms::ReadWrite).unwrap();
        machine
            .fake
            .dma_write(FAR, Iova::new(at.as_u64()), 1)
            .unwrap();
    }
    // Unmapped while the look holds its first guard, with a whole table.
    let mut range = Some(small(&machine, &driver));
    let mut waiting = None;
    let mut open = Vec::new();
    let look = |_, _| {
        let pending = range.take().map(Range::unmap).or(waiting.take());
        let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
        match pending.map(|pending| pending.redeem(&receipt)) {
            Some(Err(error)) => {
                open.push(error.reason);
                waiting = Some(error.pending);
            }
            Some(Ok((_, frames))) => machine.host().free_frames(frames),
            None => {}
        }
    };
    space.dirty(iovas(0, 32768), look).unwrap();
    assert_eq!(open.first(), Some(&RedeemRefusal::StillWalked));
    assert!(waiting.is_none(), "a later step has a guard of its own");
}
