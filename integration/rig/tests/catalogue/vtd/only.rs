//! What only VT-d has: write buffers, and absent entries that are kept.

use hv_rig::Machine;

use super::stand::{iovas, on_machines, pci};

#[test]
fn bc04_write_buffers_are_flushed_before_a_device_is_told() {
    let buffered = |machine: &mut Machine| {
        machine.temper.early = false;
        for unit in &mut machine.units {
            unit.vtd().unwrap().cap.rwbf = true;
        }
    };
    on_machines(60, buffered, |stand| {
        for _ in 0..3 {
            let group = stand.take(pci(0, 2, 0));
            let one = stand.kernel(group);
            for page in [1, 2, 0x200, 0x40_000] {
                let mapped = one.map(iovas(page << 12, 1));
                assert!(one.writes(page << 12));
                one.unmap_and_free(mapped);
            }
            stand.groups.push(one.end());
        }
    });
}

#[test]
fn bc03_xsa_80_absent_entries_are_forgotten_on_map_under_caching_mode() {
    let caching = |machine: &mut Machine| {
        for unit in &mut machine.units {
            unit.vtd().unwrap().cap.cm = true;
        }
    };
    on_machines(60, caching, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for start in super::flushes::STARTS {
            // That nothing is there is cached: at the leaf, and at each level above.
            assert!(!one.writes(start) && !one.writes(start + 0x1000));
            let mapped = one.map(iovas(start, 1));
            assert!(one.writes(start), "{start:#x}");
            let next = one.map(iovas(start + 0x1000, 1));
            assert!(one.writes(start + 0x1000), "{start:#x}");
            one.unmap_and_free(mapped);
            one.unmap_and_free(next);
        }
        drop(one.end());
    });
}
