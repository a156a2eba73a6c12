//! What larger smallest pages change: the runs that a map takes, the spans that a flush names, and how large a page is
//! that was written.

use hv_core::platform::FrameSource;
use hv_core::{FrameRun, Hypervisor, Iova, KernelPaging, PageSize, Perms};
use hv_iommu::{DirtyBitmap, Domain, Format, MapError, Mapped, Needs, Range};
use hv_rig::Machine;

use super::stand::{Kernel, Stand, count, iovas, on_machines, pci, small};
use super::{Format as Tables, ORDER};

/// Bytes of a page of the granule, and how many of 4 KiB that are.
const BYTES: u64 = PAGES << 12;
const PAGES: u64 = 1 << ORDER;

/// All units have the granule.
fn has(machine: &mut Machine) {
    for unit in &mut machine.units {
        unit.smmu().unwrap().large_granules = (true, true);
    }
}

/// The same, and note what is written.
fn notes(machine: &mut Machine) {
    has(machine);
    for unit in &mut machine.units {
        unit.set_coherent(true);
        unit.smmu().unwrap().httu = 2;
    }
}

fn kernel(stand: &mut Stand, needs: Needs) -> Kernel {
    let claimed = stand
        .take(pci(0, 2, 0))
        .claim_for_hypervisor()
        .trust("the rig's own");
    let domain = Domain::paging_domain_alloc(&claimed, small().with(needs)).unwrap();
    let tenant = stand.tenant();
    let group = stand.attach(claimed, &domain, tenant);
    Kernel {
        rig: stand.rig.clone(),
        domain,
        tenant,
        group: Some(group),
    }
}

/// Frames for so many pages of the granule, at a multiple of its size.
fn frames(stand: &Stand, pages: u64) -> FrameRun<Hypervisor> {
    let run = stand
        .rig
        .alloc_frames(count(pages * PAGES), PageSize::Size2M);
    run.unwrap()
}

/// Maps so many pages of the granule, at the one with this number.
fn map(
    stand: &Stand,
    one: &Kernel,
    page: u64,
    pages: u64,
) -> Range<KernelPaging, super::Backend, Mapped> {
    one.map_to(
        iovas(page * BYTES, pages * PAGES),
        frames(stand, pages),
        PageSize::Size1G,
    )
}

/// The device reaches every 4 KiB of a page, and nothing beside it.
#[test]
fn bc03_all_of_a_page_is_reached_and_all_of_it_is_forgotten() {
    assert_eq!(1 << Tables::PAGE_SHIFT, BYTES);
    on_machines(20, has, |stand| {
        let one = kernel(stand, Needs::default());
        let edge = (1 << Tables::INDEX_BITS) - 8;
        for (page, pages) in [(8, 1), (9, 3), (edge, 20)] {
            let mapped = map(stand, &one, page, pages);
            let (start, end) = (page * BYTES, (page + pages) * BYTES);
            for at in [start, start + BYTES - 0x1000, end - BYTES, end - 0x1000] {
                assert!(one.writes(at), "{at:#x}");
            }
            assert!(!one.writes(start - 0x1000) && !one.writes(end));
            one.unmap_and_free(mapped);
            assert!(!one.writes(start) && !one.writes(end - 0x1000));
        }
        // What is no whole page is refused, and nothing is lost.
        let free = one.domain.reserve(iovas(8 * BYTES, 1)).unwrap();
        let Err(MapError::Refused { range, frames, .. }) =
            free.map(stand.frames(1), Perms::ReadWrite)
        else {
            panic!("a part of a page was mapped, or lost");
        };
        stand.give_back(frames);
        range.release().unwrap();
        drop(one.end());
    });
}

/// Many maps and unmaps in a small space, with tables that go and come back: a life, of what there is without
/// large pages.
#[test]
fn bc02_tables_come_back_while_their_domain_lives() {
    on_machines(20, has, |stand| {
        let one = kernel(stand, Needs::default());
        let mut mapped: Vec<Range<KernelPaging, super::Backend, Mapped>> = Vec::new();
        let mut choice = stand.rig.machine().seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..80 {
            choice = choice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // In eight tables of pages.
            let apart = (1 << Tables::INDEX_BITS) / 8 + 1;
            let (page, pages) = ((choice >> 40) % 64 * apart, 1 + (choice >> 20) % 20);
            let range = iovas(page * BYTES, pages * PAGES);
            match (
                choice >> 60,
                mapped.iter().all(|other| !other.span().overlaps(&range)),
            ) {
                (0..9, true) => mapped.push(map(stand, &one, page, pages)),
                (14, _) => {
                    one.domain.reclaim().unwrap();
                }
                _ if mapped.is_empty() => {}
                _ => {
                    let index = (choice >> 8) as usize % mapped.len();
                    let gone = mapped.swap_remove(index);
                    let at = gone.span().start().as_u64();
                    assert!(one.writes(at));
                    one.unmap_and_free(gone);
                    assert!(!one.writes(at));
                }
            }
        }
        for gone in mapped {
            one.unmap_and_free(gone);
        }
        one.domain.reclaim().unwrap();
        assert_eq!(one.domain.table_pages(), one.root_tables());
        drop(one.end());
    });
}

/// A page that was written is marked whole, however large it is.
#[test]
fn bc03_all_of_a_page_that_was_written_is_told() {
    let needs = Needs {
        dirty_tracking: true,
        ..Needs::default()
    };
    on_machines(15, notes, |stand| {
        let one = kernel(stand, needs);
        let mapped = map(stand, &one, 8, 4);
        assert!(one.writes(9 * BYTES + 0x2000));
        let mut words = vec![0; (4 * PAGES).div_ceil(64) as usize];
        let mut bitmap = DirtyBitmap::new(iovas(8 * BYTES, 4 * PAGES), &mut words).unwrap();
        one.domain
            .dirty()
            .unwrap()
            .read_and_clear(&mut bitmap)
            .unwrap();
        let told: Vec<u64> = bitmap.pages().map(Iova::as_u64).collect();
        for part in 0..PAGES {
            assert!(
                told.contains(&(9 * BYTES + part * 0x1000)),
                "part {part}: {told:x?}"
            );
        }
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}
