//! Which units hear of a change, and that those which cache what is absent see new mappings.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use hv_core::platform::FrameSource;
use hv_core::{Iova, PageSize, Perms};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan};
use hv_tests::fake::{DmaFault, Logged};
use hv_tests::host::Moment;

use super::machine::{DISK, Machine, NIC, full_unit, iovas};

#[test]
fn units_that_cache_what_is_absent_see_new_mappings_at_once() {
    let caching = hv_iommu::UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(caching, full_unit());
    let driver = machine.driver(NIC);
    let (first, second) = (Iova::new(0x4000), Iova::new(0x5000));
    for at in [first, second] {
        assert_eq!(machine.fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
    }
    machine.fake.take_log(0);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let _mapped = range.map(machine.host().frames(1), Perms::Read).unwrap();
    assert!(
        machine.fake.dma_read(NIC, first).is_ok(),
        "absent tables are forgotten"
    );
    let range = driver.domain.reserve(iovas(0x5000, 1)).unwrap();
    // Now the table is there and only the leaf was absent.
    assert_eq!(machine.fake.dma_read(NIC, second), Err(DmaFault::NotMapped));
    let _mapped = range.map(machine.host().frames(1), Perms::Read).unwrap();
    assert!(machine.fake.dma_read(NIC, second).is_ok());
    let expected: Vec<_> = [0x4000, 0x5000]
        .into_iter()
        .map(|at| {
            let depth = FlushDepth::WalkCaches;
            let span = FlushSpan::Pages(iovas(at, 1));
            Logged::Flush(FlushRequest {
                domain: driver.domain.hw_id(),
                span,
                depth,
            })
        })
        .collect();
    assert_eq!(machine.fake.take_log(0), expected);
}

#[test]
fn bc03_xsa_78_a_flush_goes_to_each_unit_that_the_domain_reaches_and_covers_what_was_unmapped() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let far = machine.take(super::machine::FAR).claim_for_hypervisor();
    let far = far.attach(&driver.domain).unwrap();
    far.enable_bus_mastering(super::machine::FAR).unwrap();
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(0x20_0000, 512)).unwrap();
    let frames = host.frames_aligned(512, PageSize::Size2M);
    let range = range.map(frames, Perms::ReadWrite).unwrap();
    let at = Iova::new(0x20_5000);
    let reach = |device| machine.fake.dma_write(device, at, 1);
    assert_eq!((reach(NIC), reach(super::machine::FAR)), (Ok(()), Ok(())));
    let (_, frames) = range.unmap().flush().unwrap();
    assert_eq!(reach(NIC), Err(DmaFault::NotMapped));
    assert_eq!(reach(super::machine::FAR), Err(DmaFault::NotMapped));
    host.free_frames(frames);

    // A unit that the domain no longer reaches is not asked.
    let far = far.detach().unwrap();
    machine.fake.take_log(1);
    let _receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    assert_eq!(machine.fake.take_log(1), []);
    drop(far);
}

#[test]
fn a_unit_hears_of_flushes_until_the_last_device_behind_it_is_gone() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let disk = machine.take(DISK).claim_for_hypervisor();
    let disk = disk.attach(&driver.domain).unwrap();
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let _disk = disk.detach().unwrap();
    machine.fake.dma_read(NIC, Iova::new(0x4000)).unwrap();
    let (_, frames) = range.unmap().flush().unwrap();
    machine.host().free_frames(frames);
    let gone = machine.fake.dma_read(NIC, Iova::new(0x4000));
    assert_eq!(gone, Err(DmaFault::NotMapped));
}

/// One map links a table; before it tells the units, another map uses that table and returns.
#[test]
fn a_mapping_under_a_link_of_another_cpu_is_seen_when_its_map_returns() {
    let caching = hv_iommu::UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(caching, full_unit());
    let driver = machine.driver(NIC);
    let at = Iova::new(0x5000);
    // The unit remembers that there is no table.
    assert_eq!(machine.fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
    let linker = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let follower = driver.domain.reserve(iovas(0x5000, 1)).unwrap();
    let follower = Mutex::new(Some((follower, machine.host().frames(1))));
    let (fences, seen) = (AtomicU32::new(0), Arc::new(Mutex::new(None)));
    let (fake, found) = (machine.fake.clone(), Arc::clone(&seen));
    let hook = Arc::new(move |moment| {
        // The fence behind the map: both tables are linked, and nobody was told yet.
        // ORDERING: Relaxed, one thread.
        if moment == Moment::WalkerFence && fences.fetch_add(1, Ordering::Relaxed) == 1 {
            let (range, frames) = follower.lock().unwrap().take().unwrap();
            let mapped = range.map(frames, Perms::Read).unwrap();
            *found.lock().unwrap() = Some((fake.dma_read(NIC, at), mapped));
        }
    });
    machine.host().set_hook(Some(hook));
    let _linker = linker.map(machine.host().frames(1), Perms::Read).unwrap();
    machine.host().set_hook(None);
    let (result, _mapped) = seen.lock().unwrap().take().unwrap();
    assert_eq!(result, Ok(0));
}
