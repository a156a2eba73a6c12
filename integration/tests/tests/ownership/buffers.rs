//! The DMA API: coherent buffers, their bounds, and that no failure leaks.

use hv_core::{Access, Iova, OutOfBounds, PageSize, Perms};
use hv_iommu::table::TableError;
use hv_iommu::{BufferRequest, DmaError, Domain, IovaAlign, MapRefusal, SpaceError};
use hv_tests::fake::{Answer, Call, Completion, DmaFault};

use super::machine::{Machine, NIC, PLAIN, full_unit, iovas, pages};

fn request(count: u64) -> BufferRequest {
    BufferRequest {
        pages: pages(count),
        align: PageSize::Size4K,
        perms: Perms::ReadWrite,
    }
}

#[test]
fn cpu_and_device_see_the_same_bytes() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let buffer = driver.domain.alloc_coherent(request(2)).unwrap();
    let at = buffer.iova();
    assert_ne!(at.as_u64(), 0, "drivers take 0 for no address");
    buffer
        .write(0x1ffc, &0x1234_5678_u32.to_le_bytes())
        .unwrap();
    let last = at.checked_add(0x1ff8).unwrap();
    assert_eq!(machine.fake.dma_read(NIC, last), Ok(0x1234_5678 << 32));
    machine.fake.dma_write(NIC, last, 0xcafe).unwrap();
    assert_eq!(buffer.read_u32(0x1ff8), Ok(0xcafe));
    let mut bytes = [0xff; 3];
    buffer.read(0x1ff8, &mut bytes).unwrap();
    assert_eq!(bytes, [0xfe, 0xca, 0]);
    let reached = machine.fake.dma(NIC, at, Access::Write).unwrap();
    assert_eq!(reached, buffer.phys());
    buffer.free().unwrap();
    assert_eq!(machine.fake.dma_read(NIC, last), Err(DmaFault::NotMapped));
    let buffer = driver.domain.alloc_coherent(request(2)).unwrap();
    assert_eq!(buffer.iova(), at, "the addresses are free again");
    assert_eq!(buffer.read_u32(0x1ff8), Ok(0), "a new buffer is zero");
}

#[test]
fn accesses_past_the_end_are_refused() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let buffer = driver.domain.alloc_coherent(request(1)).unwrap();
    let past = |offset, bytes| {
        Err(OutOfBounds {
            offset,
            bytes,
            end: 4096,
        })
    };
    assert_eq!(buffer.write(4095, &[1, 2]), past(4095, 2));
    assert_eq!(buffer.read(u64::MAX, &mut [0]), past(u64::MAX, 1));
    assert_eq!(buffer.read_u32(4096), past(4096, 4).map(|()| 0));
    assert_eq!(buffer.read_u32(2), past(2, 4).map(|()| 0));
    assert_eq!(buffer.read(4096, &mut []), Ok(()));
}

#[test]
fn bc18_xsa_360_no_failing_allocation_leaks() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let mut successes = 0;
    loop {
        let host = machine.fake.host();
        let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let (out, free) = (host.frames_out(), domain.free_pages());
        host.fail_allocation_after(Some(successes));
        let wanted = domain.alloc_coherent(request(4));
        host.fail_allocation_after(None);
        let Err(error) = wanted else { break };
        assert_eq!(domain.free_pages(), free, "after {successes} allocations");
        match error {
            DmaError::OutOfFrames(_) => assert_eq!(successes, 0),
            DmaError::Map(MapRefusal::Table(TableError::OutOfFrames { missing })) => {
                assert_eq!((host.frames_out() - out, missing), (0, 3 - successes));
            }
            other => panic!("{other}"),
        }
        // A second try succeeds, and its end gives all back.
        domain.alloc_coherent(request(4)).unwrap().free().unwrap();
        assert_eq!(super::machine::end_domain(domain, host), 0);
        assert_eq!(host.frames_out(), 0, "after {successes} allocations");
        successes += 1;
    }
    assert_eq!(successes, 3, "the buffer, and two levels of tables");
}

#[test]
fn a_buffer_that_finds_no_addresses_gives_its_frames_back() {
    let small = hv_iommu::UnitCaps {
        iova_bits: 16,
        ..full_unit()
    };
    let config = hv_iommu::DomainConfig {
        address_bits: 16,
        ..PLAIN
    };
    let mut machine = Machine::with_units(small, full_unit());
    let driver = machine.driver_with(NIC, config);
    let out = machine.host().frames_out();
    let _rest = driver.domain.reserve(iovas(0x2000, 14)).unwrap();
    let error = driver.domain.alloc_coherent(request(2)).unwrap_err();
    let full = SpaceError::Full {
        pages: pages(2),
        align: IovaAlign::PAGE,
        limit: Iova::new(0xffff),
    };
    assert_eq!(error, DmaError::Space(full));
    assert_eq!(machine.host().frames_out(), out);
    let one = driver.domain.alloc_coherent(request(1)).unwrap();
    assert_eq!(one.iova().as_u64(), 0x1000);
}

#[test]
fn freed_buffers_leave_nothing_behind() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let free = driver.domain.free_pages();
    for round in 0..50 {
        let buffers: Vec<_> = (1..=8)
            .map(|count| driver.domain.alloc_coherent(request(count)).unwrap())
            .collect();
        for buffer in &buffers {
            machine.fake.dma_write(NIC, buffer.iova(), round).unwrap();
        }
        buffers
            .into_iter()
            .for_each(|buffer| buffer.free().unwrap());
    }
    assert_eq!(driver.domain.free_pages(), free);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn large_buffers_are_aligned_for_device_and_memory() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let wanted = BufferRequest {
        align: PageSize::Size2M,
        ..request(512)
    };
    let buffer = driver.domain.alloc_coherent(wanted).unwrap();
    assert!(buffer.iova().is_aligned(PageSize::Size2M));
    assert!(buffer.phys().is_aligned(PageSize::Size2M));
    let leaf = driver.domain.translate(buffer.iova()).unwrap();
    assert_eq!(leaf.level, super::machine::level(2));
}

#[test]
fn a_buffer_that_cannot_be_flushed_stays_with_its_domain() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let buffer = driver.domain.alloc_coherent(request(1)).unwrap();
    let (at, phys) = (buffer.iova(), buffer.phys());
    machine.fake.dma_write(NIC, at, 1).unwrap();
    machine.fake.completes(0, Completion::Never);
    assert!(buffer.free().is_err());
    assert!(machine.host().is_out(phys));
    assert!(driver.domain.reserve(iovas(at.as_u64(), 1)).is_err());
}

/// A unit that keeps what is absent does not take the flush that a new mapping needs. The buffer is unmapped again, and all
/// of it is back; but where the unit does not forget that either, it stays with the domain.
///
/// Shows: bc18.
#[test]
fn bc18_a_buffer_that_no_unit_is_told_of_is_given_back() {
    let caching = hv_iommu::UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(caching, full_unit());
    let driver = machine.driver(NIC);
    // The tables are there from now on.
    let buffer = driver.domain.alloc_coherent(request(2)).unwrap();
    buffer.free().unwrap();
    let (out, free) = (machine.host().frames_out(), driver.domain.free_pages());
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let error = driver.domain.alloc_coherent(request(2)).unwrap_err();
    assert!(matches!(error, DmaError::NotVisible(_)), "{error}");
    assert_eq!(machine.host().frames_out(), out);
    assert_eq!(driver.domain.free_pages(), free);

    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    machine.fake.plan(0, Call::Submit, 1, Answer::Busy);
    let error = driver.domain.alloc_coherent(request(2)).unwrap_err();
    assert!(matches!(error, DmaError::Stuck(_)), "{error}");
    assert_eq!(machine.host().frames_out(), out + 2);
    assert_eq!(driver.end(machine.host()), 2, "the end gives them back");
}
