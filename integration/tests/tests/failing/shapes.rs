//! Domains of every shape and moves between them, after the tests of `domains`.

use hv_core::{Gpa, Pasid};
use hv_iommu::{
    AttachFailed, DirtyBitmap, Domain, Needs, PasidError, ReplaceFailed, TrustedDevice, UserDomain,
};
use hv_tests::failing::{Outcome, text};
use hv_tests::fake::{Fake, UserStage};

use super::machine::{OLD, PLAIN, iovas};
use super::world::{Moved, Scenario, World, end, end_guests, map, map_guests, run};

/// Two domains that are made for an attached group: it is moved with a gap, then without, then back.
fn moves(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, first| {
        world.attached(first, |world, group| {
            let host = world.machine.host();
            let mut made = [None, None];
            for place in &mut made {
                match Domain::paging_domain_alloc(&group, PLAIN) {
                    Ok(domain) => *place = Some(domain),
                    Err(error) => {
                        made.into_iter().flatten().for_each(|made| end(made, host));
                        return (group, Err(text(error)));
                    }
                }
            }
            let [Some(second), Some(third)] = made else {
                panic!("both were made");
            };
            let (group, outcome) = through(group, &second, &third);
            // Wherever it was left, it goes back.
            let group = group.replace_with_gap(first).unwrap();
            [second, third].into_iter().for_each(|made| end(made, host));
            (group, outcome)
        })
    })
}

fn through(
    group: hv_iommu::AttachedGroup<hv_core::KernelPaging, Fake>,
    second: &super::world::Space,
    third: &super::world::Space,
) -> Moved {
    let refused = |error| match error {
        ReplaceFailed::Refused { group, error } => (group, Err(text(error))),
        other => panic!("{other}"),
    };
    let group = match group.replace_with_gap(second) {
        Ok(group) => group,
        Err(error) => return refused(error),
    };
    let gapless = group.gapless().unwrap();
    match group.replace(third, &gapless) {
        Ok(group) => (group, Ok(())),
        Err(error) => refused(error),
    }
}

/// All memory, by name.
fn identity(world: &mut World) -> Outcome {
    let group = world.near.take().unwrap();
    let trusted = TrustedDevice::vouch_for(&group, "a test");
    let domain = match Domain::identity_domain_alloc(&group, &trusted) {
        Ok(domain) => domain,
        Err(error) => {
            world.near = Some(group);
            return Err(text(error));
        }
    };
    let (group, outcome) = match group.attach_untranslated(&domain, trusted) {
        Ok(group) => (group.detach().unwrap(), Ok(())),
        Err(AttachFailed::Refused { group, error }) => (group, Err(text(error))),
        Err(wedged) => panic!("{wedged}"),
    };
    world.near = Some(group);
    domain.destroy().unwrap();
    outcome
}

/// A guest's own first stage on its parent.
fn nested(world: &mut World) -> Outcome {
    let group = world.guests.as_ref().unwrap();
    let parent = match Domain::user_domain_alloc_or_plain(group, PLAIN).map_err(text)? {
        UserDomain::Parent(parent) => parent,
        UserDomain::Plain { .. } => panic!("the unit can be a parent's"),
    };
    let live = |world: &mut World| {
        let _range = map_guests(&parent, &world.memory, 0, 16)?;
        let (table, levels) = (0x3000, 1);
        let zeroes = [0; 64];
        let host = world.machine.host();
        for line in 0..64 {
            let at = Gpa::new(table + line * 64);
            world.memory.write(host, at, &zeroes).map_err(text)?;
        }
        let stage = Domain::alloc_nested(&parent, &UserStage { table, levels }).map_err(text)?;
        let outcome = world.passed_through(&stage, |_| {
            stage.invalidate(&[[1, 5], [0, 0]]).map_err(text)
        });
        stage.destroy().unwrap();
        outcome
    };
    let outcome = live(world);
    end_guests(parent, &world.memory);
    outcome
}

/// Requests told apart by PASID.
fn pasids(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        world.attached(domain, |world, group| {
            let group = group.open_pasids().unwrap();
            let live = || {
                let inner = Domain::paging_domain_alloc(&group, PLAIN).map_err(text)?;
                let mut attached = [None, None];
                let mut outcome = Ok(());
                for (place, member) in attached.iter_mut().zip(OLD) {
                    let pasid = Pasid::new(1).unwrap();
                    match group.attach_pasid(member, pasid, &inner) {
                        Ok(attachment) => *place = Some(attachment),
                        Err(PasidError::Refused(refusal)) => outcome = Err(text(refusal)),
                        Err(stuck) => panic!("{stuck}"),
                    }
                }
                for attachment in attached.into_iter().flatten() {
                    group.detach_pasid(attachment).unwrap();
                }
                end(inner, world.machine.host());
                outcome
            };
            let outcome = live();
            let Ok(group) = group.close_pasids() else {
                panic!("one is open");
            };
            (group, outcome)
        })
    })
}

/// What a device wrote.
fn dirty(world: &mut World) -> Outcome {
    let needs = Needs {
        dirty_tracking: true,
        coherent_walks: true,
        coherent_dma: false,
        pasids: false,
    };
    world.in_domain(PLAIN.with(needs), |world, domain| {
        world.attached(domain, |world, group| {
            let live = || {
                let _range = map(domain, world.machine.host(), 0x4000_0000, 8)?;
                let mut words = [0; 1];
                let mut bitmap = DirtyBitmap::new(iovas(0x4000_0000, 8), &mut words).unwrap();
                let tracking = domain.dirty().unwrap();
                tracking.read(&mut bitmap).map_err(text)?;
                tracking.read_and_clear(&mut bitmap).map_err(text)
            };
            let outcome = live();
            (group, outcome)
        })
    })
}

#[test]
fn bc18_xsa_460_domains_of_every_shape_unwind_whichever_allocation_fails() {
    let scenario = |name, live, heap, frames| Scenario {
        name,
        make: World::new,
        live,
        heap,
        frames,
    };
    run(&[
        scenario("moves", moves, 10, 3),
        scenario("identity", identity, 2, 0),
        scenario("nested", nested, 5, 3),
        scenario("pasids", pasids, 8, 2),
        scenario("dirty", dirty, 4, 4),
    ]);
}
