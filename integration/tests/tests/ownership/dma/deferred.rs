//! Deferred flush: the buffer before the flush, its addresses after it, and nothing that is lost.

use std::num::NonZeroUsize;
use std::time::Duration;

use hv_core::Iova;
use hv_core::KernelPaging;
use hv_core::platform::{Clock, FrameSource};
use hv_iommu::{
    Bidirectional, DeferRefusal, DeferredConfig, DeferredError, DmaConfig, Domain, FromDevice,
    ToDevice,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake};

use super::{filled, flushes, reads, trusting, word, writes};
use crate::heap::taken_by;
use crate::machine::{Machine, NIC, end_domain};

/// Lets up to `mappings` wait, for longer than any test takes.
fn allow(domain: &Domain<KernelPaging, Fake>, mappings: usize) {
    allow_for(domain, mappings, Duration::from_secs(3600));
}

fn allow_for(domain: &Domain<KernelPaging, Fake>, mappings: usize, deadline: Duration) {
    let mappings = NonZeroUsize::new(mappings).unwrap();
    let config = DeferredConfig { mappings, deadline };
    domain.allow_deferred_flush(config).unwrap();
}

#[test]
fn bc02_the_buffer_comes_back_before_the_flush_and_its_addresses_after() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    allow(&driver.domain, 4);
    let dma = trusting(&driver);
    let free = driver.domain.free_pages();
    let mapping = dma.map(filled(&machine, 1, 50), Bidirectional).unwrap();
    let (at, span) = (mapping.iova(), mapping.span());
    assert_eq!(reads(&machine, at, 0), Ok(50));
    flushes(&machine);
    let run = mapping.unmap_deferred().unwrap();
    assert_eq!(flushes(&machine), 0);
    // What the mode costs: the device still reaches what the CPU has again.
    writes(&machine, at, 8, 99).unwrap();
    assert_eq!(word(machine.host(), &run, 8), 99);
    // What it does not cost: the addresses lead nowhere else.
    assert_eq!(driver.domain.free_pages(), free - 1);
    let others: Vec<_> = (0..3)
        .map(|_| dma.map(filled(&machine, 1, 0), Bidirectional).unwrap())
        .collect();
    assert!(others.iter().all(|other| !other.span().overlaps(&span)));
    assert!(driver.domain.reserve(span).is_err());

    assert_eq!(driver.domain.flush_deferred(), Ok(1));
    assert_eq!(flushes(&machine), 1);
    assert_eq!(writes(&machine, at, 8, 7), Err(DmaFault::NotMapped));
    assert_eq!(driver.domain.free_pages(), free - 3);
    let again = driver.domain.reserve(span).unwrap();
    again.release().unwrap();
    assert_eq!(driver.domain.flush_deferred(), Ok(0));
    assert_eq!(flushes(&machine), 0, "nothing waits, so nothing is flushed");
    machine.host().free_frames(run);
}

#[test]
fn as_many_wait_as_may_and_one_flush_opens_them_all() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    allow(&driver.domain, 3);
    let dma = trusting(&driver);
    let free = driver.domain.free_pages();
    let mut flushed = Vec::new();
    flushes(&machine);
    for _ in 0..10 {
        let mapping = dma.map(filled(&machine, 2, 0), FromDevice).unwrap();
        machine
            .host()
            .free_frames(mapping.unmap_deferred().unwrap());
        flushed.push(flushes(&machine));
    }
    assert_eq!(flushed, [0, 0, 0, 1, 0, 0, 1, 0, 0, 1]);
    assert_eq!(driver.domain.flush_deferred(), Ok(1));
    assert_eq!(driver.domain.free_pages(), free);
}

#[test]
fn what_waited_its_time_is_flushed_by_who_comes_by() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    // Each look at the clock is a microsecond.
    allow_for(&driver.domain, 8, Duration::from_micros(50));
    let dma = trusting(&driver);
    let one = |machine: &Machine| {
        let mapping = dma.map(filled(machine, 1, 0), ToDevice).unwrap();
        let run = mapping.unmap_deferred().unwrap();
        machine.host().free_frames(run);
    };
    assert_eq!(driver.domain.deferred_due(), None);
    one(&machine);
    let due = driver.domain.deferred_due().unwrap();
    assert_eq!(driver.domain.flush_deferred_if_due(), Ok(0));
    while machine.host().now() < due {}
    assert_eq!(driver.domain.flush_deferred_if_due(), Ok(1));
    assert_eq!(driver.domain.deferred_due(), None);
    one(&machine);
    let due = driver.domain.deferred_due().unwrap();
    while machine.host().now() < due {}
    flushes(&machine);
    // The next one flushes first, and waits by itself then.
    one(&machine);
    assert_eq!(flushes(&machine), 1);
    assert!(driver.domain.deferred_due().unwrap() > due);
    assert_eq!(driver.domain.flush_deferred(), Ok(1));
}

#[test]
fn bc01_xsa_373_a_flush_that_fails_frees_no_address() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    allow(&driver.domain, 1);
    let dma = trusting(&driver);
    let first = dma.map(filled(&machine, 1, 0), ToDevice).unwrap();
    let span = first.span();
    machine.host().free_frames(first.unmap_deferred().unwrap());
    let second = dma.map(filled(&machine, 1, 3), ToDevice).unwrap();
    let at = second.iova();
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let error = second.unmap_deferred().unwrap_err();
    assert!(matches!(error.reason, DeferRefusal::Flush(_)));
    // The mapping is as it was, and so is what waits.
    assert_eq!(reads(&machine, at, 0), Ok(3));
    assert!(driver.domain.reserve(span).is_err());
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    assert!(driver.domain.flush_deferred().is_err());
    assert!(driver.domain.reserve(span).is_err());
    machine
        .host()
        .free_frames(error.mapping.unmap_deferred().unwrap());
    assert!(driver.domain.reserve(span).is_ok());
}

#[test]
fn it_is_for_trusted_devices_of_domains_that_allow_it() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    let dma = trusting(&driver);
    let mapping = dma.map(filled(&machine, 1, 0), ToDevice).unwrap();
    let error = mapping.unmap_deferred().unwrap_err();
    assert_eq!(error.reason, DeferRefusal::NotAllowed);
    allow(&driver.domain, 2);
    let config = DeferredConfig {
        mappings: NonZeroUsize::new(9).unwrap(),
        deadline: Duration::ZERO,
    };
    let mappings = NonZeroUsize::new(2).unwrap();
    assert_eq!(
        driver.domain.allow_deferred_flush(config),
        Err(DeferredError::AlreadyAllowed { mappings })
    );
    machine
        .host()
        .free_frames(error.mapping.unmap_deferred().unwrap());
    let careful = driver.domain.dma_device(DmaConfig::default());
    let mapping = careful.map(filled(&machine, 1, 0), ToDevice).unwrap();
    let error = mapping.unmap_deferred().unwrap_err();
    assert_eq!(error.reason, DeferRefusal::Untrusted);
    machine
        .host()
        .free_frames(error.mapping.unmap().flush().unwrap());
}

#[test]
fn bc18_a_domain_that_ends_waits_for_nothing_and_frees_nothing_twice() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    allow(&driver.domain, 8);
    let dma = trusting(&driver);
    let mapping = dma.map(filled(&machine, 3, 0), ToDevice).unwrap();
    let run = mapping.unmap_deferred().unwrap();
    drop((dma, driver.group.detach().unwrap()));
    // No unit has to be asked: none reaches the domain any more.
    machine.fake.completes(0, Completion::Never);
    flushes(&machine);
    assert_eq!(
        end_domain(driver.domain, machine.host()),
        0,
        "the CPU has them"
    );
    assert_eq!(flushes(&machine), 0);
    assert!(machine.host().is_out(run.range().start()));
    machine.host().free_frames(run);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn runs_that_take_whole_tables_may_wait_as_well() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    allow(&driver.domain, 4);
    let dma = trusting(&driver);
    // Longer than two tables cover, and where no large page fits.
    let odd = machine.host().frames(1);
    let mapping = dma.map(machine.host().frames(1537), ToDevice).unwrap();
    let middle = Iova::new(mapping.iova().as_u64() + (700 << 12));
    let leaf = driver.domain.translate(middle).unwrap();
    assert_eq!(leaf.level, crate::machine::level(1));
    let tables = driver.domain.table_pages();
    assert!(reads(&machine, middle, 0).is_ok());
    let run = mapping.unmap_deferred().unwrap();
    assert_eq!(
        driver.domain.table_pages(),
        tables,
        "hardware may walk there"
    );
    assert_eq!(driver.domain.flush_deferred(), Ok(1));
    assert!(driver.domain.table_pages() <= tables - 2);
    assert_eq!(reads(&machine, middle, 0), Err(DmaFault::NotMapped));
    for run in [run, odd] {
        machine.host().free_frames(run);
    }
}

#[test]
fn deferring_takes_nothing_from_the_heap() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    allow(&driver.domain, 16);
    let dma = trusting(&driver);
    let mut run = machine.host().frames(2);
    for round in 0..16 {
        let (mapping, map) = taken_by(|| dma.map(run, Bidirectional).unwrap());
        let (back, unmap) = taken_by(|| mapping.unmap_deferred().unwrap());
        if round > 4 {
            assert_eq!((map, unmap), (0, 0));
        }
        run = back;
    }
    machine.host().free_frames(run);
}
