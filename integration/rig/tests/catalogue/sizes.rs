//! Class 9: page sizes and permissions change under a device's eyes, with the flush that this owes. Class 2:
//! tables come back while their domain lives, and not while a walk cache leads to them; pages of a shared range, of each
//! size, after their flush. Of whatever sizes the tables that are tried have pages.

use core::ops::ControlFlow;

use hv_core::platform::FrameSource;
use hv_core::{FrameRun, Hypervisor, IovaRange, KernelPaging, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{
    CutError, CutRefusal, FlushSpan, Format, Level, MapRefusal, Mapped, Range, RedeemRefusal,
    SharedError, SharedRange, UnitIndex,
};
use hv_rig::Machine;

use super::stand::{Backend, Kernel, PAGE, Stand, Tables, WAIT, count, iovas, on_machines, pci};

/// Bytes of a smallest page.
const BYTES: u64 = PAGE << 12;
/// Smallest pages in a page of the next size.
const PARTS: u64 = 1 << Tables::INDEX_BITS;
/// Pages of 4 KiB in that.
const PAGES: u64 = PARTS * PAGE;
/// Where such a page begins.
const LARGE: u64 = PAGES << 12;

/// The size of the pages of a level.
fn size(level: u8) -> PageSize {
    Level::new(level).unwrap().size::<Tables>().unwrap()
}

/// As many machines as take about as long, whatever the granule.
fn seeds(seeds: u64) -> u64 {
    (seeds / PAGE).max(6)
}

/// A machine whose units all follow a change of page size and have large pages.
fn follows(machine: &mut Machine) {
    machine.host_bridge = None;
    for unit in &mut machine.units {
        unit.set_resizing();
    }
}

/// Maps as much as a large page at [`LARGE`], with pages of at most `largest`.
fn large(stand: &Stand, one: &Kernel, largest: PageSize) -> Range<KernelPaging, Backend, Mapped> {
    let frames = stand.rig.alloc_frames(count(PAGES), size(2));
    one.map_to(iovas(LARGE, PAGES), frames.unwrap(), largest)
}

/// Tables of smallest pages whose addresses every domain has.
const FAR: u64 = if PAGE == 1 { 6 } else { 4 };

/// How many leaves a range has.
fn leaves(one: &Kernel, start: u64, pages: u64) -> usize {
    let mut leaves = 0;
    let _ = one.domain.mappings(iovas(start, pages), |_| {
        leaves += 1;
        ControlFlow::Continue(())
    });
    leaves
}

/// A range is settled: units have at most what the domain says.
fn settled(one: &Kernel, range: &Range<KernelPaging, Backend, Mapped>) {
    assert!(!range.is_in_debt());
    let mut leaves = Vec::new();
    let _ = one.domain.mappings(range.span(), |leaf| {
        leaves.push(leaf);
        ControlFlow::Continue(())
    });
    one.rig.settled(one.tenant, range.span(), &leaves);
}

/// Smallest pages of [`large`] that the device writes.
const PLACES: [u64; 6] = [0, 1, 99, 100, 101, PARTS - 1];

/// The device reaches all of a large page.
fn works(one: &Kernel) {
    for page in PLACES {
        assert!(one.writes(LARGE + page * BYTES), "page {page}");
    }
}

#[test]
fn bc09_a_page_is_split_and_merged_under_a_device_without_a_fault() {
    on_machines(seeds(60), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mut mapped = large(stand, &one, size(2));
        for round in 0..6 {
            works(&one);
            assert_eq!(leaves(&one, LARGE, PAGES), 1);
            let at = [100, 1, PARTS - 1][round % 3];
            // The device keeps at it by itself, in every step of these.
            let (mut low, mut high) = mapped.split_large_at(count(at * PAGE)).unwrap();
            works(&one);
            assert_eq!(leaves(&one, LARGE, PAGES), PARTS as usize);
            if round % 2 == 0 {
                low.settle().unwrap();
                settled(&one, &low);
                high.settle().unwrap();
                settled(&one, &high);
            }
            mapped = low.join(high).unwrap();
            assert_eq!(mapped.merge(), (1, Ok(())));
            works(&one);
            if round % 3 == 0 {
                mapped.settle().unwrap();
                settled(&one, &mapped);
            }
            stand.rig.idle(20);
        }
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

#[test]
fn bc09_xsa_275_what_is_unmapped_of_a_split_page_is_flushed_with_all_of_it() {
    on_machines(seeds(60), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for at in [PARTS - 1, 1, 100] {
            let mapped = large(stand, &one, size(2));
            assert_eq!(leaves(&one, LARGE, PAGES), 1);
            works(&one);
            let (low, high) = mapped.split_large_at(count(at * PAGE)).unwrap();
            works(&one);
            // The translation of all of it is cached: a flush of the part's own pages would leave it.
            one.unmap_and_free(high);
            assert!(one.writes(LARGE));
            assert!(!one.writes(LARGE + at * BYTES));
            one.unmap_and_free(low);
            assert!(!one.writes(LARGE));
            // Else the table of the parts is filled by the next map.
            one.domain.reclaim().unwrap();
        }
        drop(one.end());
    });
}

#[test]
fn bc09_xsa_275_what_is_unmapped_of_a_merged_page_is_flushed_with_its_links() {
    on_machines(seeds(60), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mut mapped = large(stand, &one, size(1));
        works(&one);
        assert_eq!(mapped.merge(), (1, Ok(())));
        works(&one);
        // A link to the old table, full of leaves, is cached: a flush of leaves would leave it.
        one.unmap_and_free(mapped);
        for page in PLACES {
            assert!(!one.writes(LARGE + page * BYTES));
        }
        one.domain.reclaim().unwrap();
        assert_eq!(one.domain.table_pages(), one.root_tables());
        drop(one.end());
    });
}

#[test]
fn bc09_xsa_304_page_sizes_change_with_a_gap_only_where_walkers_cannot_follow() {
    let stiff = |machine: &mut Machine| {
        follows(machine);
        // The server part of the generation.
        machine.host_bridge = Some(0x3c00_8086);
        for unit in &mut machine.units {
            if let Some(identity) = unit.smmu() {
                identity.bbml = (machine.seed % 2) as u8;
            }
        }
    };
    on_machines(seeds(40), stiff, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = large(stand, &one, size(2));
        works(&one);
        let Err(CutError::Refused { range, reason }) = mapped.split_large_at(count(100 * PAGE))
        else {
            panic!("it was cut live");
        };
        assert!(matches!(
            reason,
            CutRefusal::Table(TableError::Breaks { .. })
        ));
        works(&one);
        one.rig.unmapping(one.tenant, range.span());
        let (low, high) = range.split_with_gap_at(count(100 * PAGE)).unwrap();
        for part in [&low, &high] {
            one.rig.mapped(one.tenant, part.span(), part.granted());
            settled(&one, part);
        }
        works(&one);
        let mut mapped = low.join(high).unwrap();
        assert!(matches!(
            mapped.merge(),
            (0, Err(TableError::Breaks { .. }))
        ));
        works(&one);
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

#[test]
fn bc03_a_permission_that_was_lost_is_gone_with_the_receipt() {
    on_machines(seeds(60), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mut mapped = large(stand, &one, size(2));
        for perms in [Perms::Read, Perms::ReadWrite, Perms::Read] {
            one.rig.protecting(one.tenant, mapped.span(), perms);
            mapped.protect(perms).unwrap();
            one.rig
                .protected(one.tenant, mapped.span(), mapped.granted());
            // Either answer is right now; after the receipt only one is.
            one.writes(LARGE + 0x5000);
            mapped.settle().unwrap();
            settled(&one, &mapped);
            assert_eq!(one.writes(LARGE + 0x5000), perms.writable());
        }
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

#[test]
fn bc02_cve_2025_71202_tables_come_back_while_their_domain_lives_and_not_to_a_walk_cache() {
    on_machines(seeds(60), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for round in 0..3 {
            let far = (0..FAR).map(|number| one.map(iovas(number * LARGE, 2 * PAGE)));
            let far: Vec<_> = far.collect();
            for number in 0..FAR {
                assert!(one.writes(number * LARGE));
            }
            let before = one.domain.table_pages();
            for mapped in far {
                one.unmap_and_free(mapped);
            }
            // Links to the empty tables are cached, and a table that is used goes with them: the rig looks at
            // every cache when a table page comes back, and gives it out again at once.
            assert_eq!(one.domain.table_pages(), before);
            one.domain.reclaim().unwrap();
            assert_eq!(one.domain.table_pages(), one.root_tables(), "round {round}");

            // A range that covers its table takes it along.
            let mapped = large(stand, &one, size(1));
            works(&one);
            let before = one.domain.table_pages();
            one.unmap_and_free(mapped);
            assert_eq!(one.domain.table_pages(), before - 1);
        }
        drop(one.end());
    });
}

#[test]
fn bc02_a_table_stays_while_a_cpu_walks_in_it() {
    on_machines(seeds(20), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = large(stand, &one, size(1));
        let span = mapped.span();
        let pages = one.domain.table_pages();
        let (mut mapped, mut pending) = (Some(mapped), None);
        let _ = one.domain.mappings(span, |_| {
            let unmapped = one.unmap(mapped.take().unwrap());
            let receipt = one.domain.flush(FlushSpan::Domain).unwrap();
            let error = unmapped.redeem(&receipt).unwrap_err();
            assert_eq!(error.reason, RedeemRefusal::StillWalked);
            assert_eq!(one.domain.table_pages(), pages);
            pending = Some((error.pending, receipt));
            ControlFlow::Break(())
        });
        let (pending, receipt) = pending.unwrap();
        let (free, frames) = pending.redeem(&receipt).unwrap();
        one.returned(span, &frames);
        stand.rig.free_frames(frames);
        free.release().unwrap();
        assert_eq!(one.domain.table_pages(), pages - 1);
        drop(one.end());
    });
}

#[test]
fn bc01_a_reclaim_whose_flush_fails_leaves_the_tables_as_they_were() {
    on_machines(seeds(20), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = one.map(iovas(2 * LARGE, 2 * PAGE));
        assert!(one.writes(2 * LARGE));
        one.unmap_and_free(mapped);
        let units = stand.rig.machine().units.len();
        for unit in 0..units {
            stand.rig.hang(unit, WAIT * 20);
        }
        let before = one.domain.table_pages();
        assert!(one.domain.reclaim().is_err());
        assert_eq!(one.domain.table_pages(), before);
        let wedged: Vec<UnitIndex> = stand.iommu.wedged_units().collect();
        for unit in 0..units {
            stand.rig.wake(unit);
        }
        for unit in wedged {
            stand.rig.wedged(unit.index(), true);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
        }
        let attached = one.group.as_ref().unwrap();
        attached.enable_bus_mastering(one.device()).unwrap();
        if stand.rig.machine().seed % 2 == 0 {
            one.domain.reclaim().unwrap();
            assert_eq!(one.domain.table_pages(), one.root_tables());
        }
        // What was linked again serves the next mapping, and goes the next time.
        let mapped = one.map(iovas(2 * LARGE, 2 * PAGE));
        assert_eq!(one.domain.table_pages(), before);
        assert!(one.writes(2 * LARGE + BYTES));
        one.unmap_and_free(mapped);
        one.domain.reclaim().unwrap();
        assert_eq!(one.domain.table_pages(), one.root_tables());
        drop(one.end());
    });
}

/// A page goes where it is cut only between two of the smallest, live or not; the range stays as it was.
#[test]
fn bc09_a_smallest_page_is_not_cut() {
    on_machines(seeds(20), follows, |stand| {
        if PAGE == 1 {
            return;
        }
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for largest in [1, 2] {
            let mut mapped = large(stand, &one, size(largest));
            for at in [1, PAGE - 1, PAGE + 1, PAGES - 1] {
                for gap in [false, true] {
                    let cut = match gap {
                        true => mapped.split_with_gap_at(count(at)),
                        false => mapped.split_large_at(count(at)),
                    };
                    let Err(CutError::Refused { range, reason }) = cut else {
                        panic!("a page was cut {at} frames behind its start, or the range is lost");
                    };
                    let cuts = CutRefusal::Table(TableError::CutsPage {
                        at: range.span().page(at).unwrap(),
                        bytes: BYTES,
                    });
                    assert_eq!(reason, cuts);
                    works(&one);
                    assert!(!range.is_in_debt());
                    mapped = range;
                }
            }
            one.unmap_and_free(mapped);
            one.domain.reclaim().unwrap();
        }
        drop(one.end());
    });
}

/// Maps one page of a shared range.
fn share(
    one: &Kernel,
    shared: &SharedRange<KernelPaging, Backend>,
    page: IovaRange,
    frames: FrameRun<Hypervisor>,
) {
    let rig = &one.rig;
    rig.mapping(one.tenant, page, frames.range(), Perms::ReadWrite);
    let start = page.start();
    shared.map(start, frames, Perms::ReadWrite).unwrap();
    rig.mapped(one.tenant, page, Perms::ReadWrite);
}

/// Whoever comes second to a place is told, and gets the frames back.
fn comes_second(
    one: &Kernel,
    shared: &SharedRange<KernelPaging, Backend>,
    at: u64,
    size: PageSize,
) -> TableError {
    let pages = count(size.pages());
    let frames = one.rig.alloc_frames(pages, size).unwrap();
    let range = frames.range();
    let place = iovas(at, size.pages());
    let error = shared
        .map(place.start(), frames, Perms::ReadWrite)
        .unwrap_err();
    let back = error.frames.expect("the frames of a page that was refused");
    assert_eq!(back.range(), range);
    one.rig.free_frames(back);
    match error.reason {
        SharedError::Refused(MapRefusal::Table(reason)) => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn bc02_a_page_of_a_shared_range_comes_back_after_the_flush_only() {
    on_machines(seeds(40), follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for level in [2, 1, 2] {
            let size = size(level);
            let page = |number| iovas(LARGE + number * size.bytes(), size.pages());
            let frames = || stand.rig.alloc_frames(count(size.pages()), size).unwrap();
            let free = one.domain.reserve(iovas(LARGE, 2 * PAGES)).unwrap();
            let mine = free.share().unwrap();
            let others = mine.clone();
            share(&one, &mine, page(0), frames());
            share(&one, &others, page(1), frames());
            for number in 0..2 {
                let at = page(number).start().as_u64();
                assert!(one.writes(at) && one.writes(at + size.bytes() - 0x1000));
                let second = comes_second(&one, &others, at, size);
                assert!(matches!(second, TableError::Occupied { .. }), "{second}");
            }
            // A smaller one inside, and a larger one round it.
            let inside = comes_second(&one, &mine, LARGE, self::size(1));
            assert!(matches!(inside, TableError::Occupied { .. }), "{inside}");
            let round = comes_second(&one, &mine, LARGE, self::size(2));
            let there = match level {
                1 => matches!(round, TableError::TableInTheWay { .. }),
                _ => matches!(round, TableError::Occupied { .. }),
            };
            assert!(there, "{round}");
            if PAGE > 1 {
                let part = comes_second(&one, &mine, LARGE + PAGES * 0x1000, PageSize::Size4K);
                assert!(matches!(part, TableError::NoSuchPage { .. }), "{part}");
            }
            let mine = mine.unshare().expect_err("two handles, and two pages");
            let early = one.domain.flush(FlushSpan::Domain).unwrap();
            for number in [1, 0] {
                let at = page(number).start();
                one.rig.unmapping(one.tenant, page(number));
                let pending = others.unmap(at, size).unwrap();
                assert!(mine.unmap(at, size).is_err(), "it was unmapped");
                let second = comes_second(&one, &mine, at.as_u64(), size);
                assert!(matches!(second, TableError::Occupied { .. }), "{second}");
                let (pending, _) = pending.redeem(&early).unwrap_err();
                let frames = pending.flush().unwrap();
                one.returned(page(number), &frames);
                one.rig.free_frames(frames);
                assert!(!one.writes(at.as_u64()));
                assert!(!one.writes(at.as_u64() + size.bytes() - 0x1000));
            }
            drop(others);
            mine.unshare().unwrap().release().unwrap();
            // Else the table of the smaller pages is in the way of the next.
            one.domain.reclaim().unwrap();
        }
        drop(one.end());
    });
}
