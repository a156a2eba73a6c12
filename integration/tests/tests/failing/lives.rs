//! Lives of groups and domains, after the tests of `ownership`.

use hv_core::platform::FrameSource;
use hv_core::{Iova, PageSize, Perms};
use hv_iommu::{
    AtRest, CutError, Domain, DomainConfig, FlushSpan, ReservedKind, ReservedRegion, UnparkFailed,
};
use hv_tests::failing::{Outcome, text};

use super::machine::{DISK, Machine, PLAIN, iovas, pages};
use super::world::{Scenario, World, attach, end, end_guests, map, map_guests, run, unmap};

/// Mapping and unmapping under a device; what is left comes out of the domain's end.
fn driver(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        world.attached(domain, |world, group| {
            let host = world.machine.host();
            let live = || {
                let first = map(domain, host, 0x4000_0000, 600)?;
                let second = map(domain, host, 0x7fff_e000, 4)?;
                unmap(first, host);
                let third = map(domain, host, 0x4000_0000, 3)?;
                let (third, frames) = third.unmap().flush().unwrap();
                host.free_frames(frames);
                third.release().unwrap();
                let _ = domain.flush(FlushSpan::Domain).map_err(text)?;
                drop(second);
                domain.reclaim().map(drop).map_err(text)
            };
            let outcome = live();
            (group, outcome)
        })
    })
}

/// One domain on two units.
fn two_units(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        let far = world.far.take().unwrap();
        let far = match attach(far, domain) {
            Ok(far) => far,
            Err((far, error)) => {
                world.far = Some(far);
                return Err(error);
            }
        };
        let outcome = world.attached(domain, |world, group| {
            let range = map(domain, world.machine.host(), 0x1000, 2);
            (group, range.map(|range| unmap(range, world.machine.host())))
        });
        world.far = Some(far.detach().unwrap());
        outcome
    })
}

/// A guest with its memory.
fn guest(world: &mut World) -> Outcome {
    let group = world.guests.as_ref().unwrap();
    let domain = Domain::user_domain_alloc(group, PLAIN).map_err(text)?;
    let outcome = world.passed_through(&domain, |world| {
        let low = map_guests(&domain, &world.memory, 0x1000, 16)?;
        let _high = map_guests(&domain, &world.memory, 0x4000_0000, 64)?;
        let (low, pin) = low.unmap().flush().map_err(text)?;
        world.memory.unpin(pin).unwrap();
        low.release().unwrap();
        Ok(())
    });
    end_guests(domain, &world.memory);
    outcome
}

/// A reset in between, and the domain is as it was.
fn reset(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        world.attached(domain, |world, group| {
            let range = map(domain, world.machine.host(), 0x1000, 2);
            // A reset takes no memory. Its end looks whether the group is still apart, which takes some; without it the
            // group stays parked.
            match group.park().unwrap().unpark() {
                Ok(group) => (group, range.map(drop)),
                Err(UnparkFailed::NotApart { group, error }) => {
                    let error = text(error);
                    (group.unpark().unwrap(), Err(error))
                }
                Err(other) => panic!("{other}"),
            }
        })
    })
}

/// A large page is cut and merged.
fn cut(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        let host = world.machine.host();
        let range = map(domain, host, 0x4000_0000, 512)?;
        let (low, high) = match range.split_large_at(pages(7)) {
            Ok(parts) => parts,
            Err(CutError::Refused { reason, .. }) => return Err(text(reason)),
            Err(other) => panic!("{other}"),
        };
        let mut whole = low.join(high).unwrap();
        whole.merge().1.map_err(text)?;
        unmap(whole, host);
        Ok(())
    })
}

/// A shared range, and it is exclusive again.
fn shared(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        let host = world.machine.host();
        let range = domain.reserve(iovas(0x10_0000, 16)).map_err(text)?;
        let shared = range.share().map_err(|(range, error)| {
            range.release().unwrap();
            text(error)
        })?;
        let other = shared.clone();
        let at = Iova::new(0x10_2000);
        let frames = host.alloc_frames(pages(1), PageSize::Size4K);
        if let Err(error) = other.map(at, frames.map_err(text)?, Perms::Read) {
            host.free_frames(error.frames.unwrap());
            return Err(text(error.reason));
        }
        let pending = shared.unmap(at, PageSize::Size4K).map_err(text)?;
        host.free_frames(pending.flush().unwrap());
        drop(other);
        shared.unshare().unwrap().release().unwrap();
        Ok(())
    })
}

/// A machine on which firmware pins a region of the third group, which is the driver's here.
fn pinned_machine() -> World {
    let mut machine = Machine::with_regions(|host| {
        let memory = host.frames(3).into_range();
        host.set_aside(memory);
        let start = Iova::new(memory.start().as_u64());
        let range = hv_core::IovaRange::new(start, memory.pages()).unwrap();
        let kind = ReservedKind::Pinned;
        vec![(DISK, ReservedRegion { range, kind })]
    });
    let AtRest::ForHypervisor(group) = machine.take_at_rest(DISK) else {
        panic!("not firmware's");
    };
    let mut world = World::on(machine);
    world.near = Some(group.claim_for_hypervisor().trust("a test"));
    world
}

/// Two domains for a group with firmware's regions: one before it is attached, one after.
fn pinned(world: &mut World) -> Outcome {
    let wide = DomainConfig {
        address_bits: 48,
        ..PLAIN
    };
    world.in_domain(wide, |world, first| {
        world.attached(first, |world, group| {
            let next = match Domain::paging_domain_alloc(&group, wide) {
                Ok(next) => next,
                Err(error) => return (group, Err(text(error))),
            };
            end(next, world.machine.host());
            (group, Ok(()))
        })
    })
}

#[test]
fn bc18_xsa_460_lives_of_groups_and_domains_unwind_whichever_allocation_fails() {
    let scenario = |name, live, heap, frames| Scenario {
        name,
        make: World::new,
        live,
        heap,
        frames,
    };
    run(&[
        scenario("driver", driver, 5, 6),
        scenario("two units", two_units, 5, 4),
        scenario("guest", guest, 3, 5),
        scenario("reset", reset, 4, 4),
        scenario("cut", cut, 4, 4),
        scenario("shared", shared, 4, 4),
        Scenario {
            make: pinned_machine,
            ..scenario("pinned", pinned, 8, 6)
        },
    ]);
}
