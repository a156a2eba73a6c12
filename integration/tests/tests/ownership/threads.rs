//! Several CPUs at once: map, unmap, flush and device accesses, then everything is counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, PageSize, Perms};
use hv_tests::fake::{Completion, DmaFault};
use hv_tests::host::Time;

use super::machine::{Machine, NIC, full_unit, iovas, pages};

/// A number that looks random, the same in each run.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *state >> 33
}

/// Two CPUs work in neighbouring ranges of one leaf table, a device reads all the while. The fake
/// ends the test when the device reaches a frame that was given back.
#[test]
fn two_cpus_and_a_device_lose_nothing() {
    const ROUNDS: u64 = 3000;
    let units = [full_unit(), full_unit()];
    let mut machine = Machine::build(units, Time::Real, |_| ());
    let driver = machine.driver(NIC);
    let (host, fake, domain) = (machine.fake.host(), &machine.fake, &driver.domain);
    fake.completes(0, Completion::AfterPolls(3));
    let (done, hits) = (&AtomicBool::new(false), &AtomicU64::new(0));
    std::thread::scope(|scope| {
        let cpus: Vec<_> = (0..2)
            .map(|cpu| {
                scope.spawn(move || {
                    let mut seed = cpu;
                    let mut range = domain.reserve(iovas(0x10_0000 + cpu * 0x8000, 8)).unwrap();
                    for round in 0..ROUNDS {
                        let count = next(&mut seed) % 7 + 1;
                        let (part, rest) = range.split_at(pages(count)).unwrap();
                        let frames = host.frames(count);
                        let at = part.span().start();
                        let mapped = part.map(frames, Perms::ReadWrite).unwrap();
                        let mark = next(&mut seed);
                        // Its own page is there at once, whatever the other CPU does.
                        fake.dma_write(NIC, at, mark).unwrap();
                        assert_eq!(fake.dma_read(NIC, at), Ok(mark));
                        if round % 100 == 0 {
                            // ORDERING: Relaxed, a count that only tells that time has passed.
                            let before = hits.load(Ordering::Relaxed);
                            // ORDERING: Relaxed, as above.
                            while hits.load(Ordering::Relaxed) == before {
                                std::thread::yield_now();
                            }
                        }
                        let (part, frames) = mapped.unmap().flush().unwrap();
                        assert_eq!(fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
                        assert_eq!(frames.pages(), pages(count));
                        host.free_frames(frames);
                        range = part.join(rest).unwrap();
                    }
                    range.release().unwrap();
                })
            })
            .collect();
        scope.spawn(|| {
            let mut seed = 99;
            // ORDERING: Relaxed, only that the loop ends some day counts.
            while !done.load(Ordering::Relaxed) {
                let at = Iova::new(0x10_0000 + next(&mut seed) % 16 * 0x1000);
                if fake.dma(NIC, at, Access::Read).is_ok() {
                    // ORDERING: Relaxed, a count that is read after the threads joined.
                    hits.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::yield_now();
            }
        });
        let ended: Vec<_> = cpus.into_iter().map(|cpu| cpu.join()).collect();
        // ORDERING: Relaxed, as at its load.
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    // ORDERING: Relaxed, the threads were joined.
    assert!(
        hits.load(Ordering::Relaxed) > 0,
        "the device met live mappings"
    );
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
    assert_eq!(machine.iommu.domains_in_use(), 0);
}

/// Domains come and go on two CPUs: ids, frames and addresses are all there in the end.
#[test]
fn two_cpus_make_and_end_domains() {
    let units = [full_unit(), full_unit()];
    let mut machine = Machine::build(units, Time::Real, |_| ());
    let groups = [NIC, super::machine::FAR].map(|device| (device, machine.take(device)));
    let machine = &machine;
    std::thread::scope(|scope| {
        for (device, group) in groups {
            scope.spawn(move || {
                let mut group = group.claim_for_hypervisor();
                for round in 0..200 {
                    let config = super::machine::PLAIN;
                    let domain = hv_iommu::Domain::paging_domain_alloc(&group, config).unwrap();
                    let attached = group.attach(&domain).unwrap();
                    attached.enable_bus_mastering(device).unwrap();
                    let range = domain.allocate(pages(2), PageSize::Size4K).unwrap();
                    let range = range
                        .map(machine.host().frames(2), Perms::ReadWrite)
                        .unwrap();
                    let at = range.span().start();
                    machine.fake.dma_write(device, at, round).unwrap();
                    group = attached.detach().unwrap();
                    assert_eq!(super::machine::end_domain(domain, machine.host()), 2);
                }
            });
        }
    });
    assert_eq!(machine.host().frames_out(), 0);
    assert_eq!(machine.iommu.domains_in_use(), 0);
}

/// Buffers of one domain on two CPUs: no two overlap, and all addresses come back.
#[test]
fn two_cpus_allocate_buffers_of_one_domain() {
    let units = [full_unit(), full_unit()];
    let mut machine = Machine::build(units, Time::Real, |_| ());
    let driver = machine.driver(NIC);
    let free = driver.domain.free_pages();
    std::thread::scope(|scope| {
        for cpu in 0..2 {
            let (domain, fake) = (&driver.domain, &machine.fake);
            scope.spawn(move || {
                let mut seed = cpu;
                for round in 0..1000 {
                    let request = hv_iommu::BufferRequest {
                        pages: pages(next(&mut seed) % 5 + 1),
                        align: PageSize::Size4K,
                        perms: Perms::ReadWrite,
                    };
                    let buffer = domain.alloc_coherent(request).unwrap();
                    let mark = round << 1 | cpu;
                    fake.dma_write(NIC, buffer.iova(), mark).unwrap();
                    std::thread::yield_now();
                    assert_eq!(u64::from(buffer.read_u32(0).unwrap()), mark);
                    buffer.free().unwrap();
                }
            });
        }
    });
    assert_eq!(driver.domain.free_pages(), free);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}
