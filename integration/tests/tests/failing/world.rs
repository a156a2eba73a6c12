//! A machine whose groups are claimed, a guest's memory, and steps that give everything back when they fail.

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, KernelPaging, PageSize, Perms, UserManaged};
use hv_iommu::{
    AttachFailed, AttachedGroup, Claimed, Domain, DomainRequest, Group, MapError, Mapped, Range,
};
use hv_tests::failing::{Outcome, Source, Stand, each, text};
use hv_tests::fake::Fake;
use hv_tests::host::Host;

use super::machine::{FAR, Machine, NIC, OLD, gpas, iovas, isolated, pages, vm};

pub(crate) type Drivers = Group<Fake, Claimed<KernelPaging>>;
pub(crate) type Guests = Group<Fake, Claimed<UserManaged>>;
pub(crate) type Space = Domain<KernelPaging, Fake>;

/// Who holds what between two runs.
pub(crate) struct World {
    pub(crate) machine: Machine,
    /// Behind unit 0, of four requesters; and behind unit 1.
    pub(crate) near: Option<Drivers>,
    pub(crate) far: Option<Drivers>,
    pub(crate) guests: Option<Guests>,
    /// 64 pages of the guest's at address 0.
    pub(crate) memory: GuestMemory,
    out: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::on(Machine::new())
    }

    pub(crate) fn on(mut machine: Machine) -> Self {
        let near = Some(machine.take(OLD[0]).claim_for_hypervisor().trust("a test"));
        let far = Some(machine.take(FAR).claim_for_hypervisor());
        let guests = Some(machine.take(NIC).claim_for_guest(vm(1)));
        let mut memory = GuestMemory::new(vm(1));
        memory.give(Gpa::new(0), machine.host().frames(64)).unwrap();
        let out = machine.host().frames_out();
        Self {
            machine,
            near,
            far,
            guests,
            memory,
            out,
        }
    }

    /// A domain of the driver's, until `act` is over. Its end takes no memory.
    pub(crate) fn in_domain(
        &mut self,
        request: impl Into<DomainRequest>,
        act: impl FnOnce(&mut Self, &Space) -> Outcome,
    ) -> Outcome {
        let group = self.near.as_ref().unwrap();
        let domain = Domain::paging_domain_alloc(group, request).map_err(text)?;
        let outcome = act(self, &domain);
        end(domain, self.machine.host());
        outcome
    }

    /// The driver's group in a domain, until `act` gives it back, attached to whichever.
    pub(crate) fn attached(
        &mut self,
        domain: &Space,
        act: impl FnOnce(&Self, AttachedGroup<KernelPaging, Fake>) -> Moved,
    ) -> Outcome {
        let group = self.near.take().unwrap();
        let group = match attach(group, domain) {
            Ok(group) => group,
            Err((group, error)) => {
                self.near = Some(group);
                return Err(error);
            }
        };
        let (group, outcome) = act(self, group);
        self.near = Some(group.detach().unwrap());
        outcome
    }

    /// The guest's group in a domain of the guest's, until `act` is over.
    pub(crate) fn passed_through<S: hv_iommu::Confines<UserManaged, Fake>>(
        &mut self,
        domain: &Domain<UserManaged, Fake, S>,
        act: impl FnOnce(&Self) -> Outcome,
    ) -> Outcome {
        let group = self.guests.take().unwrap();
        let group = match group.attach_for_guest(domain, &isolated()) {
            Ok(group) => group,
            Err(AttachFailed::Refused { group, error }) => {
                self.guests = Some(group);
                return Err(text(error));
            }
            Err(wedged) => panic!("{wedged}"),
        };
        let outcome = act(self);
        self.guests = Some(group.detach().unwrap());
        outcome
    }
}

/// A group that was moved, and how that went.
pub(crate) type Moved = (AttachedGroup<KernelPaging, Fake>, Outcome);

pub(crate) fn attach(
    group: Drivers,
    domain: &Space,
) -> Result<AttachedGroup<KernelPaging, Fake>, (Drivers, String)> {
    match group.attach(domain) {
        Ok(group) => Ok(group),
        Err(AttachFailed::Refused { group, error }) => Err((group, text(error))),
        Err(wedged) => panic!("{wedged}"),
    }
}

/// Ends a driver's domain, and gives back the frames that are in it.
pub(crate) fn end(domain: Space, host: &Host) {
    domain
        .destroy()
        .unwrap()
        .for_each(|run| host.free_frames(run));
}

/// Ends a guest's domain, and unpins what is in it.
pub(crate) fn end_guests<S>(domain: Domain<UserManaged, Fake, S>, memory: &GuestMemory)
where
    S: hv_iommu::Shape<UserManaged, Fake, Ended = hv_iommu::Teardown<UserManaged, Fake>>,
{
    domain
        .destroy()
        .unwrap()
        .for_each(|run| memory.unpin(run).unwrap());
}

/// Maps new frames.
pub(crate) fn map(
    domain: &Space,
    host: &Host,
    at: u64,
    count: u64,
) -> Result<Range<KernelPaging, Fake, Mapped>, String> {
    let frames = host.alloc_frames(pages(count), PageSize::Size2M);
    let frames = frames.map_err(text)?;
    let range = match domain.reserve(iovas(at, count)) {
        Ok(range) => range,
        Err(error) => {
            host.free_frames(frames);
            return Err(text(error));
        }
    };
    match range.map(frames, Perms::ReadWrite) {
        Ok(range) => Ok(range),
        Err(MapError::Refused {
            range,
            frames,
            reason,
        }) => {
            host.free_frames(frames);
            range.release().unwrap();
            Err(text(reason))
        }
        Err(other) => panic!("{other}"),
    }
}

/// Unmaps, and frees the frames.
pub(crate) fn unmap(range: Range<KernelPaging, Fake, Mapped>, host: &Host) {
    let (range, frames) = range.unmap().flush().unwrap();
    host.free_frames(frames);
    range.release().unwrap();
}

/// Maps pages of the guest's, from its first one on.
pub(crate) fn map_guests<S: hv_iommu::Pages<UserManaged, Fake>>(
    domain: &Domain<UserManaged, Fake, S>,
    memory: &GuestMemory,
    at: u64,
    count: u64,
) -> Result<Range<UserManaged, Fake, Mapped>, String> {
    let pin = memory.pin(gpas(0, count)).map_err(text)?;
    let range = match domain.reserve(iovas(at, count)) {
        Ok(range) => range,
        Err(error) => {
            memory.unpin(pin).unwrap();
            return Err(text(error));
        }
    };
    match range.map(pin, Perms::ReadWrite) {
        Ok(range) => Ok(range),
        Err(MapError::Refused { frames, reason, .. }) => {
            memory.unpin(frames).unwrap();
            Err(text(reason))
        }
        Err(other) => panic!("{other}"),
    }
}

impl Stand for World {
    fn host(&self) -> &Host {
        self.machine.host()
    }

    fn take_down(&mut self) {
        assert!(self.near.is_some() && self.far.is_some() && self.guests.is_some());
        assert_eq!(self.memory.pinned_pages(), 0);
        assert_eq!(self.machine.host().frames_out(), self.out);
        assert_eq!(self.machine.iommu.domains_in_use(), 0);
        for requester in OLD.into_iter().chain([NIC, FAR]) {
            assert!(self.machine.fake.bound(requester).is_none(), "{requester}");
        }
    }
}

/// A scenario, and how many allocations of either kind it has at least.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) make: fn() -> World,
    pub(crate) live: fn(&mut World) -> Outcome,
    pub(crate) heap: u64,
    pub(crate) frames: u64,
}

/// Runs each scenario with each allocation failing.
pub(crate) fn run(scenarios: &[Scenario]) {
    for scenario in scenarios {
        for (source, at_least) in [
            (Source::Heap, scenario.heap),
            (Source::Frames, scenario.frames),
        ] {
            let failed = each(source, scenario.make, scenario.live);
            let name = scenario.name;
            println!("{name}: {failed} allocations failed one by one, {source:?}");
            assert!(failed >= at_least, "{name}: {failed} only, {source:?}");
        }
    }
}
