//! Class 12: units whose registers say that addresses have 52 bits, and memory that takes them. Tables, queues and stream
//! table lie up there too.

use hv_core::platform::FrameSource;
use hv_core::{PageSize, Perms};
use hv_iommu::Format;
use hv_rig::{Driver, Machine, Rig};
use hv_smmu::{Smmu, Vmsa, Vmsa16K};

use super::stand::{Backend, PAGE, Tables, count, iovas, on_machines, pci, smallest};

/// Bytes of a smallest page.
const BYTES: u64 = PAGE << 12;
/// Pages of 4 KiB in a page of the next size.
const LARGE: u64 = PAGE << Tables::INDEX_BITS;

/// The device reaches pages on both sides of an address whose upper bits are others, by small and by large leaves, in
/// ranges of its own and in shared ones.
#[test]
fn bc12_memory_above_48_bits_is_reached_by_tables_that_tell_it() {
    assert_eq!(Tables::OUTPUT_BITS, 52);
    let high = |machine: &mut Machine| {
        machine.set_high_memory();
        // By either stage.
        let by_first = machine.seed % 2 == 1;
        for unit in &mut machine.units {
            unit.set_resizing();
            let identity = unit.smmu().unwrap();
            identity.first_stage |= by_first;
            identity.second_stage = !by_first;
        }
    };
    on_machines(16, high, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let crossing = |at: u64| at >> 48 != (at + 1200 * BYTES - 1) >> 48;
        for round in 0..2 {
            // Of the lowest addresses that there are.
            let frames = stand.rig.alloc_frames(count(1200 * PAGE), smallest());
            let frames = frames.unwrap();
            assert!(
                crossing(frames.range().start().as_u64()),
                "{}",
                frames.range()
            );
            let range = iovas((3 + round) * BYTES, 1200 * PAGE);
            let mapped = one.map_to(range, frames, PageSize::LARGEST);
            for page in (0..1200).step_by(7).chain([1199]) {
                assert!(one.writes((3 + round + page) * BYTES + page % PAGE * 0x1000));
            }
            one.unmap_and_free(mapped);
            assert!(!one.writes((3 + round) * BYTES) && !one.writes((1202 + round) * BYTES));
            one.domain.reclaim().unwrap();
        }
        let size = hv_iommu::Level::new(2).unwrap().size::<Tables>().unwrap();
        let frames = stand.rig.alloc_frames(count(LARGE), size).unwrap();
        assert_ne!(frames.range().start().as_u64() >> 48, 0);
        let mapped = one.map_to(iovas(LARGE << 12, LARGE), frames, PageSize::LARGEST);
        assert!(one.writes(LARGE << 12) && one.writes((LARGE << 13) - 0x1000));
        let (low, high) = mapped.split_large_at(count(100 * PAGE)).unwrap();
        assert!(one.writes(LARGE << 12) && one.writes((LARGE << 13) - 0x1000));
        let mut mapped = low.join(high).unwrap();
        assert_eq!(mapped.merge(), (1, Ok(())));
        assert!(one.writes(LARGE << 12) && one.writes((LARGE << 13) - 0x1000));
        one.unmap_and_free(mapped);

        let shared = one
            .domain
            .reserve(iovas(0, 8 * PAGE))
            .unwrap()
            .share()
            .unwrap();
        let frames = stand.rig.alloc_frames(count(PAGE), smallest()).unwrap();
        let (page, phys) = (iovas(5 * BYTES, PAGE), frames.range());
        one.rig.mapping(one.tenant, page, phys, Perms::ReadWrite);
        shared.map(page.start(), frames, Perms::ReadWrite).unwrap();
        one.rig.mapped(one.tenant, page, Perms::ReadWrite);
        assert!(one.writes(5 * BYTES));
        one.rig.unmapping(one.tenant, page);
        let pending = shared.unmap(page.start(), smallest()).unwrap();
        let frames = pending.flush().unwrap();
        assert_eq!(frames.range(), phys);
        one.returned(page, &frames);
        stand.rig.free_frames(frames);
        shared.unshare().unwrap().release().unwrap();
        drop(one.end());
    });
}

/// Words of smaller granules' tables have room for 48 bits, without an extension that is not used: what would lie above is
/// refused, and not cut off.
#[test]
fn bc12_tables_that_tell_48_bits_take_no_memory_above() {
    for seed in 0..8 {
        let mut machine = super::stand::drawn(seed);
        machine.set_high_memory();
        let start = |machine: &Machine| {
            let rig = Rig::new(machine.clone()).unwrap();
            let small = Smmu::<Rig, Vmsa>::start(&rig).err();
            let middle = Smmu::<Rig, Vmsa16K>::start(&rig).err();
            (small, middle, Backend::start(&rig).err())
        };
        let (small, middle, large) = start(&machine);
        for refused in [small, middle] {
            let refused = refused.expect("memory above the addresses that tables can tell");
            assert!(refused.contains("output size"), "{refused}");
        }
        assert_eq!(large, None, "seed {seed}");
    }
}
