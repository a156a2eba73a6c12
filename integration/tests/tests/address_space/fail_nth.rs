//! Scenarios of an address space with each of their allocations failing, of the heap and of frames. After each: no frame
//! out, no pin held, no domain left, and the same goes through again. [`hv_tests::failing`] is the loop.

use std::num::NonZeroUsize;

use hv_core::platform::FrameSource;
use hv_core::{FrameRun, Gpa, GuestMemory, Hypervisor, Iova, PageSize, Perms, Shared, UserManaged};
use hv_iommu::{
    AddressSpace, AddressSpaceError, BulkPart, Claimed, Domain, Group, ReservedFor, TableQuota,
};
use hv_tests::failing::{Outcome, Source, Stand, each, text};
use hv_tests::fake::Fake;
use hv_tests::heap;
use hv_tests::host::Host;

use super::machine::{FAR, Machine, NIC, PLAIN, gpas, iovas, vm};
use super::space::end_space;

/// What a scenario is given, and the error that it stops at.
type Scenario =
    fn(&mut GuestMemory, &mut AddressSpace<Fake>, &mut AddressSpace<Fake>, &Machine) -> Outcome;

/// Two groups of a guest, and frames to give it, in the order in which it gets them.
struct Ready {
    machine: Machine,
    memory: GuestMemory,
    groups: [Group<Fake, Claimed<UserManaged>>; 2],
    given: [Option<FrameRun<Hypervisor>>; 2],
}

impl Ready {
    fn new() -> Self {
        let mut machine = Machine::new();
        let groups = [NIC, FAR].map(|member| machine.take(member).claim_for_guest(vm(1)));
        let given = Self::frames(&machine);
        Self {
            machine,
            memory: GuestMemory::new(vm(1)),
            groups,
            given,
        }
    }

    fn frames(machine: &Machine) -> [Option<FrameRun<Hypervisor>>; 2] {
        let host = machine.host();
        [
            Some(host.frames(64)),
            Some(host.frames_aligned(2560, PageSize::Size2M)),
        ]
    }
}

impl Stand for Ready {
    fn host(&self) -> &Host {
        self.machine.host()
    }

    fn take_down(&mut self) {
        let host = self.machine.host();
        let given = self.given.iter_mut().filter_map(Option::take);
        given.for_each(|run| host.free_frames(run));
        assert_eq!(self.memory.pinned_pages(), 0);
        let slots: Vec<_> = self.memory.slots().map(|slot| slot.range.start()).collect();
        for slot in slots {
            host.free_frames(self.memory.take_back(slot).unwrap());
        }
        assert_eq!(host.frames_out(), 0);
        assert_eq!(self.machine.iommu.domains_in_use(), 0);
        self.given = Self::frames(&self.machine);
    }
}

/// The failing allocations begin with what the guest is given.
fn live(ready: &mut Ready, scenario: Scenario) -> Outcome {
    let Ready {
        machine,
        memory,
        groups,
        given,
    } = ready;
    for (place, given) in [Gpa::new(0), Gpa::new(0x4000_0000)].into_iter().zip(given) {
        if let Some(run) = given.take()
            && let Err((run, error)) = memory.give(place, run)
        {
            *given = Some(run);
            return Err(text(error));
        }
    }
    let space = |group| -> Result<AddressSpace<Fake>, String> {
        let quota = Shared::try_new(TableQuota::new(100)).map_err(text)?;
        let domain = Domain::user_domain_alloc(group, PLAIN).map_err(text)?;
        AddressSpace::new(domain, Some(quota)).map_err(text)
    };
    let [first, second] = groups;
    let mut one = space(first)?;
    let mut two = match space(second) {
        Ok(two) => two,
        Err(error) => {
            end_space(one, memory);
            return Err(error);
        }
    };
    let outcome = scenario(memory, &mut one, &mut two, machine);
    end_space(one, memory);
    end_space(two, memory);
    outcome
}

/// A step that must work or change nothing.
fn step<T>(
    space: &mut AddressSpace<Fake>,
    act: impl FnOnce(&mut AddressSpace<Fake>) -> Result<T, AddressSpaceError>,
) -> Result<T, String> {
    let list = |space: &AddressSpace<Fake>| {
        let _exempt = heap::exempt();
        super::space::listed(space)
    };
    let before = list(space);
    act(space).map_err(|error| {
        assert_eq!(list(space), before, "{}", text(error));
        text(error)
    })
}

/// basic, map_domain: maps, a split, unmaps, windows.
fn map_domain(
    memory: &mut GuestMemory,
    one: &mut AddressSpace<Fake>,
    _two: &mut AddressSpace<Fake>,
    _machine: &Machine,
) -> Outcome {
    step(one, |one| {
        one.reserve(iovas(0x10_0000, 4), ReservedFor::Firmware)
    })?;
    step(one, |one| one.allow(iovas(0, 0x20)))?;
    step(one, |one| one.allow(iovas(0x4000_0000, 0x4_0000)))?;
    step(one, |one| {
        one.map(memory, Iova::new(0x1000), gpas(0, 8), Perms::Read)
    })?;
    let at = Iova::new(0x8000_0000 - 0x40_0000);
    step(one, |one| {
        one.map(memory, at, gpas(0x4000_0000, 1024), Perms::ReadWrite)
    })?;
    step(one, |one| one.split(Iova::new(0x8000_0000 - 0x1000)))?;
    step(one, |one| one.split(Iova::new(0x3000)))?;
    step(one, |one| one.unmap(memory, iovas(0x1000, 2)))?;
    step(one, |one| {
        one.copy_within(memory, iovas(0x4000, 1), Iova::new(0x1_0000), Perms::Read)
    })?;
    step(one, |one| one.unreserve(iovas(0x10_0000, 4)))?;
    step(one, |one| one.disallow(iovas(0, 0x20)))?;
    step(one, |one| one.unmap_all(memory))?;
    Ok(())
}

/// map_two_domains: one in each space, copied from one to the other.
fn map_two_domains(
    memory: &mut GuestMemory,
    one: &mut AddressSpace<Fake>,
    two: &mut AddressSpace<Fake>,
    _machine: &Machine,
) -> Outcome {
    step(one, |one| {
        one.map(memory, Iova::new(0x1000), gpas(0, 8), Perms::ReadWrite)
    })?;
    step(two, |two| {
        two.copy_from(
            memory,
            one,
            iovas(0x2000, 3),
            Iova::new(0x9000),
            Perms::Read,
        )
    })?;
    step(one, |one| one.unmap_all(memory))?;
    step(two, |two| {
        two.map(memory, Iova::new(0), gpas(0x10_000, 2), Perms::Read)
    })?;
    step(two, |two| two.unmap_all(memory))?;
    Ok(())
}

/// A whole guest, by several parts, twice.
fn bulk(
    memory: &mut GuestMemory,
    one: &mut AddressSpace<Fake>,
    two: &mut AddressSpace<Fake>,
    _machine: &Machine,
) -> Outcome {
    step(one, |one| one.map_guest(memory, Perms::ReadWrite))?;
    let parts = NonZeroUsize::new(6).unwrap();
    step(two, |two| {
        let mut parts = two.bulk(memory, Perms::Read, parts)?;
        parts.iter_mut().for_each(BulkPart::map);
        two.adopt(memory, parts).map_err(|(_, error)| error)
    })?;
    step(one, |one| one.unmap_all(memory))?;
    step(two, |two| two.unmap_all(memory))?;
    Ok(())
}

/// A balloon, and a loan that is accepted and handed back.
fn balloon(
    memory: &mut GuestMemory,
    one: &mut AddressSpace<Fake>,
    _two: &mut AddressSpace<Fake>,
    machine: &Machine,
) -> Outcome {
    let mut other = GuestMemory::new(vm(2));
    let loan = memory.lend(gpas(0x4000_0000, 2), vm(2)).map_err(text)?;
    let loan = match other.accept(Gpa::new(0), loan) {
        Ok(_) => other.hand_back(Gpa::new(0)).map_err(text)?,
        Err((loan, error)) => {
            memory.end_loan(loan).map_err(text)?;
            return Err(text(error));
        }
    };
    memory.end_loan(loan).map_err(text)?;
    step(one, |one| {
        one.map(memory, Iova::new(0x1000), gpas(0, 8), Perms::Read)
    })?;
    let taken = memory
        .take_back_part(gpas(0x4020_0000, 511))
        .map_err(text)?;
    machine.host().free_frames(taken);
    step(one, |one| one.unmap_all(memory))?;
    Ok(())
}

const SCENARIOS: [(&str, Scenario, u64, u64); 4] = [
    ("map_domain", map_domain, 20, 6),
    ("map_two_domains", map_two_domains, 18, 6),
    ("bulk", bulk, 20, 8),
    ("balloon", balloon, 20, 4),
];

#[test]
fn bc18_xsa_460_every_scenario_unwinds_whichever_allocation_of_the_heap_fails() {
    for (name, scenario, at_least, _) in SCENARIOS {
        let failed = each(Source::Heap, Ready::new, |ready| live(ready, scenario));
        println!("{name}: {failed} allocations of the heap failed, one by one");
        assert!(failed >= at_least, "{name}: {failed} only");
    }
}

#[test]
fn bc18_xsa_460_every_scenario_unwinds_whichever_allocation_of_frames_fails() {
    for (name, scenario, _, at_least) in SCENARIOS {
        let failed = each(Source::Frames, Ready::new, |ready| live(ready, scenario));
        println!("{name}: {failed} allocations of frames failed, one by one");
        assert!(failed >= at_least, "{name}: {failed} only");
    }
}
