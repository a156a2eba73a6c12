//! The row of the DMA API: a page lent to a device and taken back, beside what the table alone takes.

#![expect(
    unsafe_code,
    reason = "makes up the frames that are lent, which nobody touches"
)]

use std::num::NonZeroUsize;
use std::time::Duration;

use hv_core::{FrameRun, Hypervisor, KernelPaging, PageCount, PageSize, PhysAddr, PhysRange};
use hv_iommu::{Bidirectional, DeferredConfig, DmaConfig, DmaDevice, Domain, DomainConfig, Trust};

use super::{BLANK, Job, Row, Scale};
use crate::embedder::{Instantly, subsystem};
use crate::engine::Engine;
use crate::lane::{Lane, Mapped, Subject};
use crate::order::Sequential;
use crate::results::Who;
use crate::window::phys;

/// Pages that are lent in a round: as many free addresses as a CPU and the depot have at hand.
const PAGES: u64 = 512;

/// A driver with pages to lend.
struct Driver {
    here: Vec<FrameRun<Hypervisor>>,
    back: Vec<FrameRun<Hypervisor>>,
    device: Option<DmaDevice<Instantly>>,
    domain: Option<Domain<KernelPaging, Instantly>>,
}

impl Driver {
    fn new() -> Self {
        let (_, group) = subsystem();
        let group = group.claim_for_hypervisor();
        let domain = Domain::paging_domain_alloc(&group, DomainConfig::default());
        let domain = domain.expect("the unit has 39 bits");
        let queue = DeferredConfig {
            mappings: NonZeroUsize::new(PAGES as usize + 1).expect("not zero"),
            deadline: Duration::from_secs(1),
        };
        domain
            .allow_deferred_flush(queue)
            .expect("the host has memory");
        let config = DmaConfig {
            trust: Trust::Trusted,
            ..DmaConfig::default()
        };
        let device = domain.dma_device(config);
        let run = |page| {
            let range = PhysRange::new(PhysAddr::new(phys(page)), PageCount::ONE).expect("a page");
            // SAFETY: the frames are made up, each once, and nobody reads or writes what they name.
            unsafe { FrameRun::from_raw(range, ()) }
        };
        Self {
            here: (0..PAGES).map(run).collect(),
            back: Vec::with_capacity(PAGES as usize),
            device: Some(device),
            domain: Some(domain),
        }
    }

    /// Lends each page and takes it back before its flush.
    #[inline(never)]
    fn turn(&mut self) {
        let device = self
            .device
            .as_ref()
            .expect("the device lives as long as the row");
        while let Some(run) = self.here.pop() {
            let mapping = device.map(run, Bidirectional).expect("there are addresses");
            let run = mapping.unmap_deferred().expect("the queue has room");
            self.back.push(run);
        }
    }

    /// Flushes, so that all addresses are free again.
    fn ready(&mut self) {
        if let Some(domain) = &self.domain {
            domain.flush_deferred().expect("the unit is well");
        }
        self.here.append(&mut self.back);
    }
}

impl Subject for Driver {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.ready();
        drop(self.device.take());
        if let Some(Ok(teardown)) = self.domain.take().map(Domain::destroy) {
            // Nothing is mapped, so this frees tables.
            teardown.for_each(drop);
        }
    }
}

/// The table alone.
struct Bare(Engine<true>);

impl Subject for Bare {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

fn lend(_scale: &Scale) -> Vec<Lane> {
    let pages = Sequential {
        first: 0,
        count: PAGES,
    };
    let engine = Engine::new(PAGES, PageSize::Size4K);
    vec![
        Lane::new(
            Who::Floor,
            PAGES,
            Bare(engine),
            |bare| bare.0.vacate(),
            move |bare| bare.0.pair_owned::<_, true>(&pages),
        ),
        Lane::new(
            Who::Engine,
            PAGES,
            Driver::new(),
            |driver| driver.ready(),
            |driver| driver.turn(),
        ),
    ]
}

/// The rows.
pub(super) const ROWS: &[Row] = &[Row {
    id: "B-D3",
    workload: "lend a page to a device and take it back (DMA API)",
    floor: "map and unmap of the table alone, a pin each",
    unit: "pair",
    gate: Some(3.0),
    remark: "with an address from the allocator, without the flush: it is deferred, and done between rounds",
    job: Job::Lanes(lend),
    ..BLANK
}];
