//! Rows of guests: a whole guest's memory mapped through the typed API, pins included.

use hv_core::{
    FrameRun, Gpa, GpaRange, Guest, GuestMemory, Hypervisor, Iova, IovaRange, PageCount, PageSize,
    Perms, PhysAddr, PhysRange, UserManaged, VmId,
};
use hv_iommu::{Domain, DomainConfig, Free, Mapped, Range};

use super::lanes::{Ready, Window};
use super::{BLANK, Job, Own, Row, Scale};
use crate::embedder::{Instantly, subsystem};
use crate::lane::{self, Lane, Mapped as Leaf, Subject, nanos};
use crate::results::{LaneResult, Who};
use crate::stats::Summary;
use crate::window::{PAGE, PAGES_1G, PAGES_2M, iova, phys};
use crate::{clock, crew};

/// Pages of a guest of 64 GiB.
const GUEST: u64 = 64 * PAGES_1G;

/// A guest with its memory and its domain.
struct Vm {
    memory: GuestMemory,
    domain: Option<Domain<UserManaged, Instantly>>,
    free: Vec<Range<UserManaged, Instantly, Free>>,
    mapped: Vec<Range<UserManaged, Instantly, Mapped>>,
    /// Pages of each part that is pinned and mapped by one call.
    part: u64,
}

fn pages(count: u64) -> PageCount {
    PageCount::new(count).expect("some pages")
}

impl Vm {
    #[expect(
        unsafe_code,
        reason = "makes up a guest's memory, which nobody touches"
    )]
    fn new(size: u64) -> Self {
        let part = PAGES_1G.min(size);
        let vm = VmId::new(1).expect("not zero");
        let (_, group) = subsystem();
        let group = group.claim_for_guest(vm);
        let config = DomainConfig {
            address_bits: 48,
            largest_page: PageSize::Size2M,
        };
        let domain = Domain::user_domain_alloc(&group, config).expect("the unit has 48 bits");
        let mut memory = GuestMemory::new(vm);
        let mut free = Vec::new();
        for first in (0..size).step_by(part as usize) {
            let range = PhysRange::new(PhysAddr::new(phys(first)), pages(part)).expect("in range");
            // SAFETY: the frames are made up, each once, and nobody reads or writes what they name.
            let frames = unsafe { FrameRun::<Hypervisor>::from_raw(range, ()) };
            memory
                .give(Gpa::new(iova(first)), frames)
                .expect("slots do not overlap");
            let span = IovaRange::new(Iova::new(iova(first)), pages(part)).expect("in range");
            free.push(domain.reserve(span).expect("nobody else has it"));
        }
        let mapped = Vec::with_capacity(free.len());
        Self {
            memory,
            domain: Some(domain),
            free,
            mapped,
            part,
        }
    }

    fn pin(&self, at: Iova) -> FrameRun<Guest> {
        let range = GpaRange::new(Gpa::new(at.as_u64()), pages(self.part)).expect("in range");
        self.memory.pin(range).expect("the guest's memory")
    }

    /// Pins and maps all of the guest's memory.
    fn map_all(&mut self) {
        while let Some(range) = self.free.pop() {
            let run = self.pin(range.span().start());
            let mapped = range.map_with(run, Perms::ReadWrite, PageSize::Size2M);
            self.mapped.push(mapped.expect("the range is free"));
        }
    }

    /// Brings it back to where nothing is mapped, and no table is there.
    fn unmap_all(&mut self) {
        while let Some(range) = self.mapped.pop() {
            let flushed = range.unmap().flush();
            let (range, run) = flushed.expect("the unit is well");
            self.memory.unpin(run).expect("the guest's memory");
            self.free.push(range);
        }
    }
}

impl Subject for Vm {
    fn mapped(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        for (range, domain) in self.mapped.iter().zip(self.domain.iter().cycle()) {
            let _ = domain.mappings(range.span(), |leaf| {
                leaves.push(Leaf {
                    at: leaf.at.as_u64(),
                    to: leaf.to.as_u64(),
                    bytes: PAGES_2M * PAGE,
                });
                std::ops::ControlFlow::Continue(())
            });
        }
        leaves.sort_by_key(|leaf| leaf.at);
        leaves
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.unmap_all();
        self.free.clear();
        let domain = self.domain.take().map(Domain::destroy);
        if let Some(Ok(teardown)) = domain {
            // Nothing is mapped, so this frees tables.
            teardown.for_each(drop);
        }
    }
}

/// A guest's size at this scale.
fn guest(scale: &Scale) -> u64 {
    match scale.is_short() {
        true => scale.pages,
        false => GUEST,
    }
}

fn map_guest(scale: &Scale) -> Vec<Lane> {
    let size = guest(scale);
    let window = Window {
        pages: size,
        size: PageSize::Size2M,
    };
    let part = PAGES_1G.min(size);
    let floor = window.floor(Ready::Cold, window.leaves(), move |floor| {
        floor.map_blocks::<2>(size, part / PAGES_2M);
    });
    let engine = Lane::new(
        Who::Engine,
        window.leaves(),
        Vm::new(size),
        |vm| vm.unmap_all(),
        |vm| vm.map_all(),
    );
    vec![floor, engine]
}

/// The same with two threads, each of which maps half of the guest: how much faster they are than one.
fn map_guest_in_parallel(scale: &Scale) -> Own {
    let processors = clock::processors();
    if processors.len() < 2 {
        return Own {
            skipped: Some("this program may use one processor only".to_owned()),
            ..Own::default()
        };
    }
    let size = guest(scale);
    let mut vm = Vm::new(size);
    let leaves = (size / PAGES_2M) as f64;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..scale.rounds.max(lane::LEAST) {
        for threads in 1..=2 {
            vm.unmap_all();
            let wall = vm.map_with_threads(threads, processors);
            times[threads - 1].push(nanos(wall) / leaves);
        }
    }
    let [one, two] = times.map(|times| Summary::of(&times));
    let lanes = [(1, one), (2, two)].map(|(threads, summary)| LaneResult {
        kind: "threads",
        name: format!("{threads} threads"),
        quiet: summary.quiet,
        median: summary.median,
        count: summary.count,
        ratio: None,
        paired_ratio: None,
        wall: Some(summary.quiet),
        threads: Some(threads),
        speed_up: Some(one.quiet / summary.quiet),
    });
    Own {
        measure: "speed-up",
        value: Some(one.quiet / two.quiet),
        lanes: lanes.into(),
        ..Own::default()
    }
}

impl Vm {
    /// Pins and maps all with so many threads, and gives the wall time from the first to the last.
    fn map_with_threads(&mut self, threads: usize, processors: &[usize]) -> std::time::Duration {
        let mut shares: Vec<Vec<Range<UserManaged, Instantly, Free>>> =
            (0..threads).map(|_| Vec::new()).collect();
        for (at, range) in std::mem::take(&mut self.free).into_iter().enumerate() {
            shares[at % threads].push(range);
        }
        let shares: Vec<_> = shares.into_iter().map(std::sync::Mutex::new).collect();
        let this = &*self;
        let done = crew::run(threads, processors, |number| {
            let mut share = shares[number].lock().expect("nobody panicked");
            let mut mapped = Vec::with_capacity(share.len());
            while let Some(range) = share.pop() {
                let run = this.pin(range.span().start());
                let range = range.map_with(run, Perms::ReadWrite, PageSize::Size2M);
                mapped.push(range.expect("the range is free"));
            }
            mapped
        });
        let wall = crew::wall(done.iter().map(|(took, _)| took));
        for (_, mapped) in done {
            self.mapped.extend(mapped);
        }
        wall
    }
}

/// The rows.
pub(super) const ROWS: &[Row] = &[
    Row {
        id: "B-G1",
        part: "map",
        workload: "map a guest of 64 GiB by 2M, pins included",
        floor: "unrolled release stores, as of B-R5",
        unit: "leaf",
        gate: Some(4.0),
        remark: "through the typed API, one pin and one call for each run of 1 GiB; tables are built by the engine and not by the floor",
        job: Job::Lanes(map_guest),
        ..BLANK
    },
    Row {
        id: "B-G1",
        part: "two",
        workload: "the same by two threads, half of the guest each",
        unit: "leaf",
        remark: "wall time of one thread divided by that of two",
        job: Job::Own(map_guest_in_parallel),
        ..BLANK
    },
];
