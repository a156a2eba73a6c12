//! Class 12 for devices that ask not to snoop the CPU's caches: where a domain says that they do all the same, they do.

use std::cell::Cell;

use hv_core::platform::{CacheMaintenance, FrameSource};
use hv_core::{Iova, PageSize};
use hv_iommu::{Domain, Needs};

use hv_rig::{Machine, UnitModel};

use super::stand::{Kernel, REMEMBERS, Stand, count, iovas, on_machines, pci, small};

/// Where a page of each size is mapped: alone, and as a part of a large one.
const SPOTS: [(u64, u64); 2] = [(0x10_0000, 3), (0x20_0000, 512)];

/// A domain of a device whose requests all snoop; `None` where the unit has none.
fn snooping(stand: &mut Stand) -> Option<Kernel> {
    let claimed = stand.take(pci(0, 2, 0)).claim_for_hypervisor();
    let needs = Needs {
        coherent_dma: true,
        ..Needs::default()
    };
    let Ok(domain) = Domain::paging_domain_alloc(&claimed, small().with(needs)) else {
        let rest = claimed.release().without_reset(REMEMBERS);
        stand.groups.push(rest.claimable().unwrap());
        return None;
    };
    assert!(domain.snoops().is_some());
    let tenant = stand.tenant();
    stand.rig.snoops(tenant);
    let group = stand.attach(claimed, &domain, tenant);
    Some(Kernel {
        rig: stand.rig.clone(),
        domain,
        tenant,
        group: Some(group),
    })
}

/// What the CPU wrote and did not write back is what a device reads, and what it writes is what the CPU reads.
fn is_coherent(stand: &Stand, one: &Kernel, (start, pages): (u64, u64)) -> bool {
    let range = iovas(start, pages);
    let frames = stand.rig.alloc_frames(count(pages), PageSize::Size2M);
    let frames = frames.unwrap();
    frames.write(&stand.rig, 0x40, b"from the CPU").unwrap();
    let mapped = one.map_to(range, frames, PageSize::Size1G);
    let at = Iova::new(start + 0x40);
    let mut seen = [0; 12];
    let device = one.device();
    stand
        .rig
        .device_read_no_snoop(device, at, &mut seen)
        .unwrap();
    let reads = &seen == b"from the CPU";
    stand
        .rig
        .device_write_no_snoop(device, at, b"the device's")
        .unwrap();
    // Devices ask by themselves too, and the watcher looks.
    stand.rig.idle(40);
    let (free, frames) = one.unmap(mapped).flush().unwrap();
    one.returned(range, &frames);
    stand
        .rig
        .write_back(frames.range().start(), frames.range().pages().bytes());
    frames.read(&stand.rig, 0x40, &mut seen).unwrap();
    let writes = &seen == b"the device's";
    stand.give_back(frames);
    free.release().unwrap();
    assert_eq!(
        reads, writes,
        "either the caches are in the way or they are not"
    );
    reads
}

#[test]
fn bc12_devices_that_ask_not_to_snoop_do_where_their_domain_says_so() {
    let (forced, refused) = (Cell::new(0), Cell::new(0));
    // Of every other machine it is sure that it can.
    let can = |machine: &mut Machine| {
        if machine.seed & 1 == 0 {
            machine.units.iter_mut().for_each(UnitModel::set_snooping);
        }
    };
    on_machines(80, can, |stand| match snooping(stand) {
        Some(one) => {
            for spot in SPOTS {
                assert!(is_coherent(stand, &one, spot), "{spot:x?}");
            }
            drop(one.end());
            forced.set(forced.get() + 1);
        }
        None => refused.set(refused.get() + 1),
    });
    assert!(
        forced.get() >= 40 && refused.get() > 5,
        "{forced:?} {refused:?}"
    );
}

/// The same devices are seen to go past the caches where nothing keeps them from it.
#[test]
fn devices_that_ask_not_to_snoop_do_not_where_nobody_was_asked_to_make_them() {
    let past = Cell::new(0);
    on_machines(
        80,
        |_| {},
        |stand| {
            let device = pci(0, 1, 0);
            let group = stand.take(device);
            let one = stand.kernel(group);
            let heeds = stand.rig.machine().heeds_no_snoop(device.segment());
            for spot in SPOTS {
                assert_eq!(is_coherent(stand, &one, spot), !heeds, "{spot:x?}");
            }
            past.set(past.get() + u32::from(heeds));
            drop(one.end());
        },
    );
    assert!(past.get() > 20, "{past:?}");
}
