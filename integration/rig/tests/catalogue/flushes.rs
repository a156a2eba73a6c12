//! Class 2: nothing comes back before the flush. Class 3: the flush covers what changed.

use hv_core::PageSize;
use hv_core::platform::FrameSource;
use hv_iommu::FlushSpan;

use super::stand::{iovas, on_machines, pci};

/// Where ranges begin: at, before and behind the boundaries of larger pages.
pub(crate) const STARTS: [u64; 5] = [0x10_0000, 0x1f_f000, 0x20_0000, 0x3f_d000, 0x3fff_e000];

#[test]
fn bc02_xsa_480_frames_come_back_after_the_flush_only() {
    on_machines(
        60,
        |_| {},
        |stand| {
            let group = stand.take(pci(0, 2, 0));
            let one = stand.kernel(group);
            for round in 0..12 {
                // The device keeps at it by itself meanwhile; whatever was freed too early, it reaches.
                let mapped = one.map(iovas(0x10_0000 + round % 3 * 0x4000, 4));
                stand.rig.idle(40);
                one.unmap_and_free(mapped);
                stand.rig.idle(40);
            }
            let pending: Vec<_> = (0..6)
                .map(|slot| {
                    let mapped = one.map(iovas(0x20_0000 + slot * 0x3000, 3));
                    stand.rig.idle(20);
                    one.unmap(mapped)
                })
                .collect();
            let receipt = one.domain.flush(FlushSpan::Domain).unwrap();
            for pending in pending {
                let span = pending.span();
                let (free, frames) = pending.redeem(&receipt).unwrap();
                one.returned(span, &frames);
                stand.rig.free_frames(frames);
                free.release().unwrap();
            }
            drop(one.end());
        },
    );
}

#[test]
fn bc02_xsa_346_tables_come_back_after_the_last_walker() {
    on_machines(
        60,
        |_| {},
        |stand| {
            for _ in 0..4 {
                let group = stand.take(pci(0, 2, 0));
                let one = stand.kernel(group);
                for page in 0..6 {
                    drop(one.map(iovas(page << 21, 2)));
                    stand.rig.idle(30);
                }
                stand.groups.push(one.end());
                stand.rig.idle(30);
            }
        },
    );
}

#[test]
fn bc03_xsa_275_a_flush_covers_what_changed() {
    on_machines(
        60,
        |_| {},
        |stand| {
            let group = stand.take(pci(0, 2, 0));
            let one = stand.kernel(group);
            for start in STARTS {
                for pages in [1, 2, 3, 5, 8, 17] {
                    let before = one.map(iovas(start - 0x1000, 1));
                    let mapped = one.map(iovas(start, pages));
                    let behind = (start + pages * 0x1000 < 1 << 31)
                        .then(|| one.map(iovas(start + pages * 0x1000, 1)));
                    for page in 0..pages {
                        assert!(one.writes(start + page * 0x1000), "{start:#x} + {page}");
                    }
                    one.unmap_and_free(mapped);
                    for page in 0..pages {
                        assert!(!one.writes(start + page * 0x1000), "{start:#x} + {page}");
                    }
                    // The neighbours are as they were.
                    assert!(one.writes(start - 0x1000));
                    one.unmap_and_free(before);
                    if let Some(behind) = behind {
                        assert!(one.writes(start + pages * 0x1000));
                        one.unmap_and_free(behind);
                    }
                }
            }
            drop(one.end());
        },
    );
}

#[test]
fn bc03_cve_2026_31735_large_pages_are_flushed_whole() {
    on_machines(
        60,
        |_| {},
        |stand| {
            let group = stand.take(pci(0, 2, 0));
            let one = stand.kernel(group);
            for (pages, align) in [
                (512, PageSize::Size2M),
                (1024, PageSize::Size2M),
                (1536, PageSize::Size2M),
            ] {
                let frames = stand
                    .rig
                    .alloc_frames(super::stand::count(pages), align)
                    .unwrap();
                let range = iovas(0x20_0000, pages);
                let mapped = one.map_to(range, frames, PageSize::Size1G);
                let places = [0, 1, 511, pages / 2, pages - 1];
                for page in places {
                    assert!(one.writes(0x20_0000 + page * 0x1000));
                }
                one.unmap_and_free(mapped);
                for page in places {
                    assert!(!one.writes(0x20_0000 + page * 0x1000));
                }
            }
            let frames = stand
                .rig
                .alloc_frames(super::stand::count(1 << 18), PageSize::Size1G)
                .unwrap();
            let mapped = one.map_to(iovas(1 << 30, 1 << 18), frames, PageSize::Size1G);
            assert!(one.writes(1 << 30) && one.writes((2 << 30) - 0x1000));
            one.unmap_and_free(mapped);
            assert!(!one.writes(1 << 30) && !one.writes((2 << 30) - 0x1000));
            drop(one.end());
        },
    );
}
