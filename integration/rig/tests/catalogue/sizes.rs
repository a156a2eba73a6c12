//! Class 9: page sizes and permissions change under a device's eyes, with the flush that this owes. Class 2:
//! tables come back while their domain lives, and not while a walk cache leads to them.

use core::ops::ControlFlow;

use hv_core::platform::FrameSource;
use hv_core::{KernelPaging, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{CutError, CutRefusal, FlushSpan, Mapped, Range, RedeemRefusal, UnitIndex};
use hv_rig::Machine;

use super::stand::{Backend, Kernel, Stand, WAIT, count, iovas, on_machines, pci};

/// Where a page of 2 MiB begins.
const LARGE: u64 = 0x20_0000;
/// Pages of 4 KiB in it.
const PAGES: u64 = 512;

/// A machine whose units all follow a change of page size and have large pages.
fn follows(machine: &mut Machine) {
    machine.host_bridge = None;
    for unit in &mut machine.units {
        unit.set_resizing();
    }
}

/// Maps 2 MiB at [`LARGE`], with pages of at most `largest`.
fn large(stand: &Stand, one: &Kernel, largest: PageSize) -> Range<KernelPaging, Backend, Mapped> {
    let frames = stand.rig.alloc_frames(count(PAGES), PageSize::Size2M);
    one.map_to(iovas(LARGE, PAGES), frames.unwrap(), largest)
}

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

/// Pages of [`large`] that the device writes.
const PLACES: [u64; 6] = [0, 1, 99, 100, 101, 511];

/// The device reaches all of a large page.
fn works(one: &Kernel) {
    for page in PLACES {
        assert!(one.writes(LARGE + page * 0x1000), "page {page}");
    }
}

#[test]
fn bc09_a_page_is_split_and_merged_under_a_device_without_a_fault() {
    on_machines(60, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mut mapped = large(stand, &one, PageSize::Size1G);
        for round in 0..6 {
            works(&one);
            assert_eq!(leaves(&one, LARGE, PAGES), 1);
            let at = [100, 1, 511][round % 3];
            // The device keeps at it by itself, in every step of these.
            let (mut low, mut high) = mapped.split_large_at(count(at)).unwrap();
            works(&one);
            assert_eq!(leaves(&one, LARGE, PAGES), PAGES as usize);
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
    on_machines(60, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for at in [511, 1, 100] {
            let mapped = large(stand, &one, PageSize::Size1G);
            assert_eq!(leaves(&one, LARGE, PAGES), 1);
            works(&one);
            let (low, high) = mapped.split_large_at(count(at)).unwrap();
            works(&one);
            // The translation of 2 MiB is cached: a flush of the part's own pages would leave it.
            one.unmap_and_free(high);
            assert!(one.writes(LARGE));
            assert!(!one.writes(LARGE + at * 0x1000));
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
    on_machines(60, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mut mapped = large(stand, &one, PageSize::Size4K);
        works(&one);
        assert_eq!(mapped.merge(), (1, Ok(())));
        works(&one);
        // A link to the old table, full of leaves, is cached: a flush of leaves would leave it.
        one.unmap_and_free(mapped);
        for page in PLACES {
            assert!(!one.writes(LARGE + page * 0x1000));
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
    on_machines(40, stiff, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = large(stand, &one, PageSize::Size1G);
        works(&one);
        let Err(CutError::Refused { range, reason }) = mapped.split_large_at(count(100)) else {
            panic!("it was cut live");
        };
        assert!(matches!(
            reason,
            CutRefusal::Table(TableError::Breaks { .. })
        ));
        works(&one);
        one.rig.unmapping(one.tenant, range.span());
        let (low, high) = range.split_with_gap_at(count(100)).unwrap();
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
    on_machines(60, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mut mapped = large(stand, &one, PageSize::Size1G);
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
    on_machines(60, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for round in 0..3 {
            let far: Vec<_> = (0..6).map(|page| one.map(iovas(page << 21, 2))).collect();
            for page in 0..6 {
                assert!(one.writes(page << 21));
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
            let mapped = large(stand, &one, PageSize::Size4K);
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
    on_machines(20, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = large(stand, &one, PageSize::Size4K);
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
    on_machines(20, follows, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let mapped = one.map(iovas(0x40_0000, 2));
        assert!(one.writes(0x40_0000));
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
        let mapped = one.map(iovas(0x40_0000, 2));
        assert_eq!(one.domain.table_pages(), before);
        assert!(one.writes(0x40_1000));
        one.unmap_and_free(mapped);
        one.domain.reclaim().unwrap();
        assert_eq!(one.domain.table_pages(), one.root_tables());
        drop(one.end());
    });
}
