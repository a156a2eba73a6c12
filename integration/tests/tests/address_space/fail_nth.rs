//! iommufd_fail_nth: whole scenarios with their n-th allocation failing, for n = 0, 1, 2, ... until one passes;
//! allocations of the heap and of frames. After each: no frame out, no pin held, no domain left.

use std::num::NonZeroUsize;

use hv_core::platform::FrameSource;
use hv_core::{Gpa, GuestMemory, Iova, PageSize, Perms, Shared};
use hv_iommu::{AddressSpace, AddressSpaceError, BulkPart, Domain, ReservedFor, TableQuota};
use hv_tests::fake::Fake;
use hv_tests::heap;

use super::machine::{FAR, Machine, NIC, PLAIN, gpas, iovas, vm};
use super::space::end_space;

/// What a scenario is given, and the error that it stops at.
type Scenario =
    fn(&mut GuestMemory, &mut AddressSpace<Fake>, &mut AddressSpace<Fake>, &Machine) -> Outcome;
type Outcome = Result<(), String>;

fn text(error: impl std::fmt::Debug) -> String {
    // The message itself is memory, too.
    let _exempt = heap::exempt();
    format!("{error:?}")
}

/// Runs it until no allocation fails; gives how many failed.
fn fail_nth(frames: bool, scenario: Scenario) -> u64 {
    let mut failing = 0;
    loop {
        let mut machine = Machine::new();
        let mut memory = GuestMemory::new(vm(1));
        // The failing allocations begin with the spaces.
        let one = machine.take(NIC).claim_for_guest(vm(1));
        let two = machine.take(FAR).claim_for_guest(vm(1));
        let given = [
            machine.host().frames(64),
            machine.host().frames_aligned(2560, PageSize::Size2M),
        ];
        arm(&machine, frames, Some(failing));
        let mut given = given.into_iter();
        let outcome = live(&machine, &mut memory, [&one, &two], &mut given, scenario);
        arm(&machine, frames, None);
        drop(
            given
                .map(|run| machine.host().free_frames(run))
                .collect::<Vec<_>>(),
        );
        assert_eq!(memory.pinned_pages(), 0, "{failing}: {outcome:?}");
        let slots: Vec<_> = memory.slots().map(|slot| slot.range.start()).collect();
        for slot in slots {
            machine.host().free_frames(memory.take_back(slot).unwrap());
        }
        assert_eq!(machine.host().frames_out(), 0, "{failing}: {outcome:?}");
        assert_eq!(machine.iommu.domains_in_use(), 0, "{failing}: {outcome:?}");
        if outcome.is_ok() {
            return failing;
        }
        failing += 1;
        assert!(failing < 500, "{outcome:?}");
    }
}

fn arm(machine: &Machine, frames: bool, failing: Option<u64>) {
    match frames {
        true => machine.host().fail_allocation_after(failing),
        false => heap::fail_after(failing),
    }
}

fn live(
    machine: &Machine,
    memory: &mut GuestMemory,
    groups: [&hv_iommu::Group<Fake, hv_iommu::Claimed<hv_core::UserManaged>>; 2],
    given: &mut dyn Iterator<Item = hv_core::FrameRun<hv_core::Hypervisor>>,
    scenario: Scenario,
) -> Outcome {
    let places = [Gpa::new(0), Gpa::new(0x4000_0000)];
    for place in places {
        if let Some(run) = given.next()
            && let Err((run, error)) = memory.give(place, run)
        {
            machine.host().free_frames(run);
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
        let failed = fail_nth(false, scenario);
        println!("{name}: {failed} allocations of the heap failed, one by one");
        assert!(failed >= at_least, "{name}: {failed} only");
    }
}

#[test]
fn bc18_xsa_460_every_scenario_unwinds_whichever_allocation_of_frames_fails() {
    for (name, scenario, _, at_least) in SCENARIOS {
        let failed = fail_nth(true, scenario);
        println!("{name}: {failed} allocations of frames failed, one by one");
        assert!(failed >= at_least, "{name}: {failed} only");
    }
}
