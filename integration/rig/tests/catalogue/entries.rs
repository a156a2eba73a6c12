//! Class 4: entries wider than a store are never live in parts. Write-back and order of tables.

use hv_rig::Machine;

use super::stand::{iovas, on_machines, pci};

#[test]
fn bc04_cve_2026_45944_context_entries_are_never_torn() {
    on_machines(
        80,
        |_| {},
        |stand| {
            for _ in 0..6 {
                let group = stand.take(pci(0, 2, 0));
                let one = stand.kernel(group);
                let mapped = one.map(iovas(0x10_0000, 2));
                assert!(one.writes(0x10_1000));
                stand.rig.idle(20);
                one.unmap_and_free(mapped);
                // The next domain has another id and table; its entry is where the old one was.
                stand.groups.push(one.end());
            }
        },
    );
}

#[test]
fn bc04_xsa_347_tables_reach_memory_before_their_links() {
    let blind = |machine: &mut Machine| {
        machine.temper.weak_stores = true;
        for unit in &mut machine.units {
            unit.set_coherent(false);
        }
    };
    on_machines(80, blind, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        for page in [1, 0x200, 0x40_000, 0x201, 0x7_fff0] {
            let mapped = one.map(iovas(page << 12, 3));
            assert!(one.writes(page << 12) && one.writes((page + 2) << 12));
            one.unmap_and_free(mapped);
            assert!(!one.writes(page << 12));
        }
        drop(one.end());
    });
}
