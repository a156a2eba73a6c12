//! The end of a domain: when it is refused, what it waits for, and what is left of its values.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{
    AttachError, AttachFailed, BufferRequest, DestroyRefusal, Domain, DomainError, FlushSpan,
    MapError, MapRefusal, RedeemRefusal, UnitCaps,
};
use hv_tests::fake::{DmaFault, Fake};
use hv_tests::host::{Moment, Time};

use super::machine::{FAR, Machine, NIC, PLAIN, end_domain, full_unit, iovas, pages};

#[test]
fn bc21_xsa_207_a_domain_with_a_device_is_not_destroyed() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let far = machine.take(FAR).claim_for_hypervisor();
    let far = far.attach(&driver.domain).unwrap();
    let refused = driver.domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 2 });
    let far = far.detach().unwrap();
    let refused = refused.domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    // It says which: the one that is left.
    let left = driver.group.id();
    assert_eq!(refused.group, Some(left));
    assert_ne!(far.id(), left);
    let said = refused.to_string();
    assert!(said.contains(&format!("{left} among them")), "{said}");
    // The refusal changed nothing.
    let range = refused.domain.reserve(iovas(0x4000, 1)).unwrap();
    let _range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000), Access::Read)
            .is_ok()
    );
    let _group = driver.group.detach().unwrap();
    assert_eq!(end_domain(refused.domain, machine.host()), 1);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn a_dropped_attachment_keeps_the_domain_alive() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    drop(driver.group);
    let refused = driver.domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
}

#[test]
fn a_dropped_domain_stays_whole_under_its_device() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let _range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    drop(driver.domain);
    // Making domains is when the subsystem lets go of dead ones.
    let other = machine.driver(FAR);
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000), Access::Read)
            .is_ok()
    );
    drop(driver.group);
    let group = other.group.detach().unwrap();
    let _third = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    assert!(
        machine
            .fake
            .dma(NIC, Iova::new(0x4000), Access::Read)
            .is_ok()
    );
    assert_eq!(machine.iommu.domains_in_use(), 3);
}

#[test]
fn the_end_waits_for_a_cpu_that_walks() {
    let units = [full_unit(), full_unit()];
    let mut machine = Machine::build(units, Time::Real, |_| ());
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = domain.reserve(iovas(0x4000, 1)).unwrap();
    let frames = machine.host().frames(1);
    let (entered, seen) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // The map asks for a table frame under its guard, and stays there until told to go on.
    let hook = Arc::new(move |moment| {
        if moment != Moment::Allocation {
            return;
        }
        let _ = entered.send(());
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
    });
    machine.host().set_hook(Some(hook));
    std::thread::scope(|scope| {
        let mapper = scope.spawn(|| range.map(frames, Perms::Read));
        seen.recv_timeout(Duration::from_secs(10)).unwrap();
        machine.host().set_hook(None);
        let ender = scope.spawn(|| end_domain(domain, machine.fake.host()));
        std::thread::sleep(Duration::from_millis(50));
        let early = ender.is_finished();
        let _ = go.send(());
        assert!(!early, "the tables are freed under a walk");
        // The map was under way when the domain ended, so its frames came out of the end.
        assert!(mapper.join().unwrap().is_ok());
        assert_eq!(ender.join().unwrap(), 1);
    });
    assert_eq!(machine.host().frames_out(), 0);
}

/// A domain whose end gave up, since it was asked for from inside a map, which cannot go on before the answer.
pub(crate) fn ended_in_a_walk(
    machine: &Machine,
    domain: Domain<KernelPaging, Fake>,
) -> Domain<KernelPaging, Fake> {
    let range = domain.reserve(iovas(0x4000, 1)).unwrap();
    let frames = machine.host().frames(1);
    let (inside, outcome) = (Mutex::new(Some(domain)), Arc::new(Mutex::new(None)));
    let found = Arc::clone(&outcome);
    let hook = Arc::new(move |moment| {
        if moment == Moment::Allocation
            && let Some(domain) = inside.lock().unwrap().take()
        {
            *found.lock().unwrap() = Some(domain.destroy().map(drop));
        }
    });
    machine.host().set_hook(Some(hook));
    let _mapped = range.map(frames, Perms::Read).unwrap();
    machine.host().set_hook(None);
    let outcome = outcome.lock().unwrap().take().unwrap();
    let refused = outcome.expect_err("the walk goes on");
    assert_eq!(refused.reason, DestroyRefusal::Busy);
    refused.domain
}

#[test]
fn an_end_that_gives_up_waiting_can_be_asked_for_again() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let domain = ended_in_a_walk(&machine, domain);
    let group = match group.attach(&domain) {
        Err(AttachFailed::Refused { group, error }) => {
            assert_eq!(error, AttachError::Ended(domain.uid()));
            group
        }
        other => panic!("attached to a closed table: {:?}", other.map(drop)),
    };
    assert_eq!(end_domain(domain, machine.host()), 1);
    assert_eq!(machine.host().frames_out(), 0);
    drop(group);
}

#[test]
fn values_of_an_ended_domain_do_nothing() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let map = |start| {
        let range = driver.domain.reserve(iovas(start, 1)).unwrap();
        range.map(host.frames(1), Perms::Read).unwrap()
    };
    let (mapped, pending) = (map(0x4000), map(0x5000).unmap());
    let shared = driver.domain.reserve(iovas(0x8000, 4)).unwrap();
    let shared = shared.share().unwrap();
    shared
        .map(Iova::new(0x8000), host.frames(1), Perms::Read)
        .unwrap();
    let free = driver.domain.reserve(iovas(0x6000, 1)).unwrap();
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    assert_eq!(driver.end(host), 3);
    assert_eq!(host.frames_out(), 0);

    let ended = RedeemRefusal::Table(TableError::Ended);
    assert_eq!(pending.redeem(&receipt).unwrap_err().reason, ended);
    assert_eq!(mapped.unmap().flush().unwrap_err().reason, ended);
    assert!(shared.unmap(Iova::new(0x8000), PageSize::Size4K).is_err());
    let frames = host.frames(1);
    match free.map(frames, Perms::Read).unwrap_err() {
        MapError::Refused {
            range,
            frames,
            reason,
        } => {
            assert_eq!(reason, MapRefusal::Table(TableError::Ended));
            host.free_frames(frames);
            range.release().unwrap();
        }
        error @ MapError::NotVisible { .. } => panic!("{error}"),
    }
    assert!(shared.unshare().is_err());
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_buffer_in_use_keeps_its_memory_from_the_end_of_the_domain() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let request = BufferRequest {
        pages: pages(1),
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    };
    let buffer = driver.domain.alloc_coherent(request).unwrap();
    let dropped = driver.domain.alloc_coherent(request).unwrap();
    let ranged = driver.domain.alloc_coherent(request).unwrap().into_range();
    drop(dropped);
    let _group = driver.group.detach().unwrap();
    let refused = match driver.domain.destroy() {
        Err(refused) => refused,
        Ok(teardown) => {
            // Then these accesses reach memory that belongs to somebody else.
            teardown.for_each(|frames| host.free_frames(frames));
            buffer.write(0, &[1]).unwrap();
            unreachable!("the host ends the test at the write");
        }
    };
    assert_eq!(refused.reason, DestroyRefusal::BuffersInUse { buffers: 1 });
    buffer.write(0, &[1]).unwrap();
    buffer.free().unwrap();
    drop(ranged);
    assert_eq!(end_domain(refused.domain, host), 2);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn bc07_xsa_399_an_id_is_reused_only_after_the_end_of_its_domain() {
    let few = UnitCaps {
        domain_ids: 3,
        ..full_unit()
    };
    let mut machine = Machine::with_units(full_unit(), few);
    let driver = machine.driver(NIC);
    let id = driver.domain.hw_id();
    let group = machine.take(FAR).claim_for_hypervisor();
    let make = || Domain::<KernelPaging, Fake>::paging_domain_alloc(&group, PLAIN);
    let second = make().unwrap();
    assert_eq!(make().unwrap_err(), DomainError::NoDomainId);
    assert_eq!(machine.iommu.domains_in_use(), 2);

    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
    machine
        .fake
        .dma(NIC, Iova::new(0x4000), Access::Read)
        .unwrap();
    let free_group = driver.group.detach().unwrap();
    let mut teardown = driver.domain.destroy().unwrap();
    machine.host().free_frames(teardown.next().unwrap());
    assert_eq!(
        make().unwrap_err(),
        DomainError::NoDomainId,
        "the teardown goes on"
    );
    assert!(teardown.next().is_none());
    let third = make().unwrap();
    assert_eq!(third.hw_id(), id);

    // Nothing that was cached under the id is left: neither leaves nor links.
    let nic = free_group.attach(&third).unwrap();
    nic.enable_bus_mastering(NIC).unwrap();
    let stale = machine.fake.dma(NIC, Iova::new(0x4000), Access::Read);
    assert_eq!(stale, Err(DmaFault::NotMapped));
    drop(second);
}

#[test]
fn a_domain_that_cannot_be_made_takes_nothing() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    machine.host().fail_allocation_after(Some(0));
    let refused = Domain::paging_domain_alloc(&group, PLAIN).unwrap_err();
    assert_eq!(
        refused,
        DomainError::Table(TableError::OutOfFrames { missing: 1 })
    );
    let config = hv_iommu::DomainConfig {
        address_bits: 49,
        ..PLAIN
    };
    let refused = Domain::paging_domain_alloc(&group, config).unwrap_err();
    assert_eq!(
        refused,
        DomainError::TooManyBits {
            needed: 49,
            found: 48
        }
    );
    assert_eq!(machine.iommu.domains_in_use(), 0);
    assert_eq!(machine.host().frames_out(), 0);
}
