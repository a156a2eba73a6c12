//! A machine on the rig that is up, and shorthands for what the catalogue's tests do with it.

use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{
    Access, FrameRun, Hypervisor, Iova, IovaRange, KernelPaging, PageCount, PageSize, PciAddress,
    Perms, Segment,
};
use hv_iommu::{
    AtRest, Attached, Blocked, Claimed, Config, Domain, DomainConfig, FaultBudget, Format, Group,
    Iommu, Level, Mapped, PendingUnmap, Pinned, Range,
};
use hv_rig::{Driver, FunctionModel, Machine, Outcome, Rig, Temper, Tenant, UnitModel};

pub(crate) use super::Backend;

/// Why no device on the rig needs a reset.
pub(crate) const REMEMBERS: &str = "the rig's devices remember nothing";

/// How long a unit may take.
pub(crate) const WAIT: Duration = Duration::from_millis(100);
/// How much longer where devices have to answer too: more than the rig's units give one.
pub(crate) const DEVICE_WAIT: Duration = Duration::from_secs(3);

/// The function at this place of segment 0: bus, device, function.
pub(crate) const fn pci(bus: u8, device: u8, function: u8) -> PciAddress {
    let requester = (bus as u16) << 8 | (device as u16) << 3 | function as u16;
    PciAddress::from_requester(Segment(0), requester)
}

/// This many pages from this byte on.
pub(crate) fn iovas(start: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), count(pages)).unwrap()
}

/// A count of pages.
pub(crate) fn count(pages: u64) -> PageCount {
    PageCount::new(pages).unwrap()
}

/// A machine that is up.
pub(crate) struct Stand {
    pub(crate) rig: Rig,
    pub(crate) iommu: Iommu<Backend>,
    pub(crate) groups: Vec<Group<Backend, Blocked>>,
    /// Those that firmware goes on using.
    pub(crate) pinned: Vec<Group<Backend, Pinned>>,
    pub(crate) tenants: std::cell::Cell<u64>,
    #[expect(dead_code, reason = "dropped with the stand, behind what is above")]
    pub(crate) retires: Retires,
}

/// Lets go of what a machine takes at the end of its test, with whatever is dropped while devices are attached.
pub(crate) struct Retires(pub(crate) Rig);

impl Drop for Retires {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl Stand {
    /// Brings this machine up, by the strict policy.
    pub(crate) fn new(machine: Machine) -> Self {
        let rig = Rig::new(machine).unwrap();
        let backend = Backend::start(&rig);
        Self::of(rig, backend)
    }

    /// With what came of bringing a machine up.
    pub(crate) fn of(rig: Rig, backend: Result<Backend, String>) -> Self {
        Self::with_budget(rig, backend, FaultBudget::default())
    }

    /// The same, where groups may cause so many faults.
    pub(crate) fn with_budget(
        rig: Rig,
        backend: Result<Backend, String>,
        faults: FaultBudget,
    ) -> Self {
        let config = Config {
            wait: WAIT,
            device_wait: DEVICE_WAIT,
            faults,
        };
        Self::with_config(rig, backend, config)
    }

    /// The same, with all that the hypervisor may say.
    pub(crate) fn with_config(rig: Rig, backend: Result<Backend, String>, config: Config) -> Self {
        let seed = rig.machine().seed;
        let backend = backend.unwrap_or_else(|error| panic!("seed {seed:#x}: {error}"));
        let functions = rig.functions();
        rig.watch();
        let (iommu, at_rest) = Iommu::new(backend, &functions, config).unwrap();
        let (mut groups, mut pinned) = (Vec::new(), Vec::new());
        for group in at_rest {
            match group {
                AtRest::Claimable(group) => groups.push(group),
                AtRest::ForHypervisor(group) => pinned.push(group),
                used @ (AtRest::ToReset(_) | AtRest::AfterDriver(_)) => {
                    panic!("{used:?}, and nobody had it")
                }
            }
        }
        Self {
            retires: Retires(rig.clone()),
            rig,
            iommu,
            groups,
            pinned,
            tenants: std::cell::Cell::new(1),
        }
    }

    /// A name for a new domain in the rig's ledger.
    pub(crate) fn tenant(&self) -> Tenant {
        self.tenants.set(self.tenants.get() + 1);
        Tenant(self.tenants.get())
    }

    /// The group of a function.
    pub(crate) fn take(&mut self, function: PciAddress) -> Group<Backend, Blocked> {
        let has = |group: &Group<Backend, Blocked>| group.members().contains(&function);
        let index = self.groups.iter().position(has).unwrap();
        self.groups.swap_remove(index)
    }

    /// Fresh frames.
    pub(crate) fn frames(&self, pages: u64) -> FrameRun<Hypervisor> {
        let frames = self.rig.alloc_frames(count(pages), PageSize::Size4K);
        frames.unwrap()
    }

    /// Gives frames to the platform.
    pub(crate) fn give_back(&self, frames: FrameRun<Hypervisor>) {
        self.rig.free_frames(frames);
    }

    /// All rules were kept.
    pub(crate) fn check(&self) {
        if let Err(failure) = self.rig.verdict() {
            panic!("{failure}");
        }
    }

    /// A domain of the hypervisor for a group, attached and sending.
    pub(crate) fn kernel(&self, group: Group<Backend, Blocked>) -> Kernel {
        let claimed = group.claim_for_hypervisor().trust("the rig's own");
        let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let tenant = self.tenant();
        let group = self.attach(claimed, &domain, tenant);
        Kernel {
            rig: self.rig.clone(),
            domain,
            tenant,
            group: Some(group),
        }
    }

    /// Attaches a group of the hypervisor and lets it send.
    pub(crate) fn attach(
        &self,
        claimed: Group<Backend, Claimed<KernelPaging>>,
        domain: &Domain<KernelPaging, Backend>,
        tenant: Tenant,
    ) -> Group<Backend, Attached<KernelPaging, Backend>> {
        let members = claimed.members().to_vec();
        self.rig.attaching(&members, tenant);
        let group = claimed.attach(domain).unwrap();
        self.rig.attached(&members, tenant);
        for member in &members {
            group.enable_bus_mastering(*member).unwrap();
        }
        group
    }
}

/// The format of the tables that are tried.
pub(crate) type Tables = <Backend as hv_iommu::Backend>::Format;

/// Pages of 4 KiB in its smallest page.
pub(crate) const PAGE: u64 = 1 << (Tables::PAGE_SHIFT - 12);

/// The size of its smallest page.
pub(crate) fn smallest() -> PageSize {
    Level::LEAF.size::<Tables>().unwrap()
}

/// A domain that every unit can have. Its root stands above tables of smallest pages: those are so large that a few of
/// them, side by side, would be root enough for as many bits.
pub(crate) fn small() -> DomainConfig {
    DomainConfig {
        address_bits: if PAGE == 16 { 34 } else { 31 },
        ..DomainConfig::default()
    }
}

/// A domain of the hypervisor with one group.
pub(crate) struct Kernel {
    pub(crate) rig: Rig,
    pub(crate) domain: Domain<KernelPaging, Backend>,
    pub(crate) tenant: Tenant,
    pub(crate) group: Option<Group<Backend, Attached<KernelPaging, Backend>>>,
}

impl Kernel {
    /// The first device.
    pub(crate) fn device(&self) -> PciAddress {
        self.group.as_ref().unwrap().members()[0]
    }

    /// Maps frames, with pages of at most `largest`.
    pub(crate) fn map_to(
        &self,
        range: IovaRange,
        frames: FrameRun<Hypervisor>,
        largest: PageSize,
    ) -> Range<KernelPaging, Backend, Mapped> {
        let free = self.domain.reserve(range).unwrap();
        self.rig
            .mapping(self.tenant, range, frames.range(), Perms::ReadWrite);
        let mapped = free.map_with(frames, Perms::ReadWrite, largest).unwrap();
        self.rig.mapped(self.tenant, range, mapped.granted());
        mapped
    }

    /// Maps fresh frames.
    pub(crate) fn map(&self, range: IovaRange) -> Range<KernelPaging, Backend, Mapped> {
        let frames = self.rig.alloc_frames(range.pages(), smallest()).unwrap();
        self.map_to(range, frames, PageSize::Size1G)
    }

    /// Unmaps, and leaves it pending.
    pub(crate) fn unmap(
        &self,
        mapped: Range<KernelPaging, Backend, Mapped>,
    ) -> PendingUnmap<KernelPaging, Backend> {
        self.rig.unmapping(self.tenant, mapped.span());
        mapped.unmap()
    }

    /// Unmaps, waits for the receipt, and gives the frames to the platform.
    pub(crate) fn unmap_and_free(&self, mapped: Range<KernelPaging, Backend, Mapped>) {
        let span = mapped.span();
        let (free, frames) = self.unmap(mapped).flush().unwrap();
        self.returned(span, &frames);
        self.rig.free_frames(frames);
        free.release().unwrap();
    }

    /// Notes that the frames of a range came back.
    pub(crate) fn returned(&self, span: IovaRange, frames: &FrameRun<Hypervisor>) {
        self.rig.expect_frames(self.tenant, span, frames.range());
        self.rig.returned(self.tenant, span);
    }

    /// How many tables its root is.
    pub(crate) fn root_tables(&self) -> u64 {
        1 << self.domain.geometry().root_tables.log2()
    }

    /// Whether the device's write to an address arrives.
    pub(crate) fn writes(&self, at: u64) -> bool {
        let outcome = self.rig.access(self.device(), Iova::new(at), Access::Write);
        matches!(outcome, Outcome::Reached { .. })
    }

    /// Detaches the group.
    pub(crate) fn detach(&mut self) -> Group<Backend, Blocked> {
        let group = self.group.take().unwrap();
        let members = group.members().to_vec();
        self.rig.detaching(&members, self.tenant);
        let claimed = group.detach().unwrap();
        self.rig.detached(&members);
        let rest = claimed.release().without_reset(REMEMBERS);
        rest.claimable().unwrap()
    }

    /// Ends the domain, with all that it maps.
    pub(crate) fn end(mut self) -> Group<Backend, Blocked> {
        let group = self.detach();
        let teardown = self.domain.destroy().unwrap();
        self.rig.ended(self.tenant);
        for frames in teardown {
            self.rig.free_frames(frames);
        }
        group
    }
}

/// The test of these tests: `HV_FAULT` names what is taken out, in a build with `RUSTFLAGS="--cfg hv_fault"`, and one of them
/// fails. Not a step of the ladder: a run for each name.
pub(crate) fn fault_of_the_environment() {
    #[cfg(hv_fault)]
    if let Ok(name) = std::env::var("HV_FAULT") {
        hv_core::fault::Fault::from_name(&name).unwrap().switch_on();
    }
}

/// The machine of this seed, with units of the vendor that is tried.
pub(crate) fn drawn(seed: u64) -> Machine {
    fault_of_the_environment();
    super::suited(Machine::draw_of(Backend::VENDOR, seed))
}

/// Bad, but never so that a mistake is hidden by chance.
pub(crate) const BAD: Temper = Temper {
    widening: false,
    evictions: false,
    rogues: false,
    ..Temper::WORST
};

/// Runs a test on machines drawn from seeds, at their worst. Each machine must have kept all rules.
pub(crate) fn on_machines(seeds: u64, change: impl Fn(&mut Machine), test: impl Fn(&mut Stand)) {
    for seed in 0..seeds {
        let mut machine = drawn(seed);
        machine.temper = BAD;
        change(&mut machine);
        let mut stand = Stand::new(machine);
        test(&mut stand);
        stand.check();
    }
}

/// Two units: one for 00:01.0, one for the rest.
pub(crate) fn two_units(seed: u64) -> Machine {
    let mut machine = drawn(seed);
    machine.temper = BAD;
    machine.temper.background = true;
    let first = machine.units[0].clone();
    machine.units = vec![
        UnitModel {
            scopes: Some(vec![pci(0, 1, 0)]),
            ..first.clone()
        },
        UnitModel {
            scopes: None,
            ..first
        },
    ];
    machine
        .functions
        .retain(|function: &FunctionModel| function.address.segment().0 == 0);
    machine
}
