//! The row of memory that is lent: what the DMA API adds to the table's own work for a page.

use hv_core::{FrameRun, Hypervisor, KernelPaging, PageCount, PageSize, PhysAddr, PhysRange};
use hv_iommu::{
    Bidirectional, DmaConfig, DmaDevice, Domain, DomainConfig, FlushSpan, Iommu, PendingStream,
};

use super::{BLANK, Job, Row};
use crate::embedder::{Instantly, subsystem};
use crate::engine::Engine;
use crate::lane::{Lane, Mapped, Subject};
use crate::order::Sequential;
use crate::results::Who;
use crate::window::phys;

/// Pages that are mapped and unmapped before one flush opens them.
const BATCH: u64 = 16;
/// Batches in a round.
const BATCHES: u64 = 4096;

/// A driver that lends the same pages over and over. Its domain reaches no unit, so that a flush is a receipt.
struct Driver {
    iommu: Iommu<Instantly>,
    /// Both are there until the end of the row.
    domain: Option<Domain<KernelPaging, Instantly>>,
    dma: Option<DmaDevice<Instantly>>,
    runs: Vec<FrameRun<Hypervisor>>,
    pending: Vec<PendingStream<Instantly, Bidirectional>>,
}

impl Driver {
    #[expect(unsafe_code, reason = "makes up frames, which nobody touches")]
    fn new() -> Self {
        let (iommu, group) = subsystem();
        let group = group.claim_for_hypervisor();
        let config = DomainConfig {
            address_bits: 48,
            largest_page: PageSize::Size2M,
        };
        let domain = Domain::paging_domain_alloc(&group, config).expect("the unit has 48 bits");
        let dma = domain.dma_device(DmaConfig::default());
        let page = |page| PhysRange::new(PhysAddr::new(phys(page)), PageCount::ONE);
        let runs = (0..BATCH)
            .filter_map(|at| page(at).ok())
            // SAFETY: the frames are made up, each once, and nobody reads or writes what they name.
            .map(|range| unsafe { FrameRun::from_raw(range, ()) })
            .collect();
        Self {
            iommu,
            domain: Some(domain),
            dma: Some(dma),
            runs,
            pending: Vec::with_capacity(BATCH as usize),
        }
    }

    #[inline(never)]
    fn lend(&mut self) {
        let (Some(dma), Some(domain)) = (&self.dma, &self.domain) else {
            return;
        };
        for _ in 0..BATCHES {
            for run in self.runs.drain(..) {
                let mapped = dma.map(run, Bidirectional);
                let mapped = mapped.expect("there are frames and addresses");
                self.pending.push(mapped.unmap());
            }
            let receipt = domain.flush(FlushSpan::Domain);
            let receipt = receipt.expect("no unit is asked");
            for pending in self.pending.drain(..) {
                self.runs
                    .push(pending.redeem(&receipt).expect("it was flushed"));
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.dma.take());
        if let Some(Ok(teardown)) = self.domain.take().map(Domain::destroy) {
            // Nothing is mapped, so this frees tables.
            teardown.for_each(drop);
        }
    }
}

impl Subject for Driver {
    fn mapped(&self) -> Vec<Mapped> {
        vec![]
    }
}

/// The bare table, `staying` in one stay all along or with each guard for itself.
fn bare(who: Who, staying: bool) -> Lane {
    let order = Sequential {
        first: 0,
        count: BATCH,
    };
    let table = Engine::<true>::new(BATCH, PageSize::Size4K);
    Lane::new(
        who,
        BATCH * BATCHES,
        table,
        |_| {},
        move |table| {
            let _stay = staying.then(|| table.enter());
            for _ in 0..BATCHES {
                table.pair_owned::<_, true>(&order);
                table.redeem_owned::<_, true>(&order);
            }
        },
    )
}

/// The driver, under the same conditions.
fn lent(who: Who, staying: bool) -> Lane {
    Lane::new(
        who,
        BATCH * BATCHES,
        Driver::new(),
        |_| {},
        move |driver| {
            let iommu = driver.iommu.clone();
            let _stay = staying.then(|| iommu.enter());
            driver.lend();
        },
    )
}

fn lanes() -> Vec<Lane> {
    vec![
        bare(Who::Floor, false),
        lent(Who::Engine, false),
        bare(Who::Variant("floor in a stay of the CPU"), true),
        lent(Who::Variant("engine in a stay of the CPU"), true),
    ]
}

/// The row.
pub(super) const ROWS: &[Row] = &[Row {
    id: "B-D1",
    workload: "lend a page of 4K to a device and have it back, addresses included, the flush not",
    floor: "the engine's table alone: map, unmap and open a page, each with a guard of its own",
    unit: "pair",
    gate: Some(3.0),
    remark: "sixteen pages share a flush that no unit is asked for; two more lanes, of floor and engine, are in a stay, where guards do not fence: the floor is all guards, so its share falls most",
    job: Job::Lanes(|_| lanes()),
    ..BLANK
}];
