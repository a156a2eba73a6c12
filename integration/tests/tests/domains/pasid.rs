//! PASIDs: a function's requests told apart by the number that they carry, each in a domain of its own.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, Pasid, PciAddress, Perms};
use hv_iommu::{
    AttachError, DestroyRefusal, Domain, DomainError, DomainRequest, FaultBudget, Group, Needs,
    Paging, PasidError, PasidParkFailed, PasidRefusal, PasidsRefused, UnitCaps, UnitError,
    UnitIndex, Unmet, UnparkFailed, WithPasids,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Features};

use super::machine::{FAR, Machine, PLAIN, TWIN, end_domain, full_unit, iovas, vm};

const AT: Iova = Iova::new(0x4000);

type Open = Group<Fake, WithPasids<KernelPaging, Fake, Paging>>;
type Space = Domain<KernelPaging, Fake>;

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

/// The device of two functions with open PASIDs, the domain that it is in, and two more; 0x4000 is mapped
/// in those two. On units where binding waits.
fn stand() -> (Machine, Open, Space, [Space; 2]) {
    let waiting = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(waiting, full_unit());
    let group = machine.take(TWIN[0]).claim_for_hypervisor();
    let own = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let more = [(); 2].map(|()| {
        let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let range = domain.reserve(iovas(AT.as_u64(), 1)).unwrap();
        drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
        domain
    });
    let group = group.attach(&own).unwrap().open_pasids().unwrap();
    for member in TWIN {
        group.enable_bus_mastering(member).unwrap();
    }
    (machine, group, own, more)
}

fn reach(machine: &Machine, member: PciAddress, number: u32) -> Result<u64, DmaFault> {
    let to = machine
        .fake
        .dma_with(member, pasid(number), AT, Access::Read)?;
    Ok(to.as_u64())
}

#[test]
fn each_pasid_of_each_function_goes_its_own_way() {
    let (machine, group, own, [one, two]) = stand();
    let first = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap();
    let second = group.attach_pasid(TWIN[0], pasid(2), &two).unwrap();
    let other = group.attach_pasid(TWIN[1], pasid(1), &two).unwrap();
    assert_eq!((first.pasid(), first.member()), (pasid(1), TWIN[0]));
    assert_eq!((group.domain(), first.domain()), (own.uid(), one.uid()));
    let (in_one, in_two) = (
        one.translate(AT).unwrap().to.as_u64(),
        two.translate(AT).unwrap().to.as_u64(),
    );
    assert_eq!(reach(&machine, TWIN[0], 1), Ok(in_one));
    assert_eq!(reach(&machine, TWIN[0], 2), Ok(in_two));
    assert_eq!(reach(&machine, TWIN[1], 1), Ok(in_two));
    assert_eq!(reach(&machine, TWIN[1], 2), Err(DmaFault::NotBound));
    // Requests without one go where they went.
    let plain = machine.fake.dma(TWIN[0], AT, Access::Read);
    assert_eq!(plain, Err(DmaFault::NotMapped));

    group.detach_pasid(first).unwrap();
    assert_eq!(reach(&machine, TWIN[0], 1), Err(DmaFault::NotBound));
    assert_eq!(reach(&machine, TWIN[0], 2), Ok(in_two));
    assert_eq!(end_domain(one, machine.host()), 1);
    group.detach_pasid(second).unwrap();
    group.detach_pasid(other).unwrap();
    let _group = group.close_pasids().unwrap().detach().unwrap();
    assert_eq!(end_domain(two, machine.host()), 1);
    assert_eq!(end_domain(own, machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn bc02_what_is_unmapped_is_reached_with_no_pasid() {
    let (machine, group, _own, [one, _]) = stand();
    let range = one.reserve(iovas(0x9000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let _held = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap();
    let at = Iova::new(0x9000);
    let dma = || machine.fake.dma_with(TWIN[0], pasid(1), at, Access::Read);
    assert!(dma().is_ok());
    let _ = range.unmap().flush().unwrap();
    assert_eq!(dma(), Err(DmaFault::NotMapped));
}

#[test]
fn what_cannot_be_is_refused_by_name_and_takes_nothing() {
    let (mut machine, group, _own, [one, two]) = stand();
    let refusal = |result: Result<_, PasidError<KernelPaging, Fake>>| match result {
        Err(PasidError::Refused(refusal)) => refusal,
        Err(stuck) => panic!("{stuck:?}"),
        Ok(held) => panic!("{held:?}"),
    };
    let held = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap();
    let taken = PasidRefusal::Taken {
        member: TWIN[0],
        pasid: pasid(1),
        domain: one.uid(),
    };
    assert_eq!(refusal(group.attach_pasid(TWIN[0], pasid(1), &two)), taken);
    let wide = PasidRefusal::TooWide {
        pasid: pasid(0x100),
        bits: 8,
    };
    assert_eq!(
        refusal(group.attach_pasid(TWIN[0], pasid(0x100), &two)),
        wide
    );
    assert!(group.attach_pasid(TWIN[0], pasid(0xff), &one).is_ok());
    let stranger = AttachError::NotAMember {
        member: FAR,
        group: group.id(),
    };
    assert_eq!(
        refusal(group.attach_pasid(FAR, pasid(3), &two)),
        PasidRefusal::Attach(stranger)
    );
    let shallow = UnitCaps {
        coherent: false,
        ..full_unit()
    };
    let mut elsewhere = Machine::with_units(shallow, shallow);
    let foreign = elsewhere.driver(TWIN[0]);
    assert!(matches!(
        refusal(group.attach_pasid(TWIN[0], pasid(3), &foreign.domain)),
        PasidRefusal::Attach(AttachError::OtherSystem { .. })
    ));
    // Nothing was taken by the refusals.
    assert_eq!(end_domain(two, machine.host()), 1);
    // A token is of the group that gave it.
    let far = machine.take(FAR).claim_for_hypervisor();
    let far = far.attach(&one).unwrap().open_pasids().unwrap();
    let failed = far.detach_pasid(held).unwrap_err();
    assert!(matches!(failed.error, AttachError::NotAMember { .. }));
    group.detach_pasid(failed.attachment).unwrap();
}

#[test]
fn bc21_pasids_in_use_keep_the_group_open_and_the_domain_alive() {
    let (machine, group, _own, [one, _]) = stand();
    let held = group.attach_pasid(TWIN[1], pasid(7), &one).unwrap();
    let open = group.close_pasids().unwrap_err();
    assert_eq!(open.bound, 1);
    let refused = one.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    open.group.detach_pasid(held).unwrap();
    assert!(open.group.close_pasids().is_ok());
    assert_eq!(end_domain(refused.domain, machine.host()), 1);
}

#[test]
fn a_unit_that_looks_at_no_pasid_opens_none() {
    let mut machine = Machine::new();
    let none = Features {
        pasid_bits: 0,
        ..Features::ALL
    };
    machine.fake.features(0, none);
    let driver = machine.driver(TWIN[0]);
    let Err((group, refused)) = driver.group.open_pasids() else {
        panic!("opened");
    };
    let unmet = Unmet::absent("requests with a PASID");
    assert_eq!(refused, PasidsRefused::Unit(unmet));
    assert_eq!(group.domain(), driver.domain.uid());
}

const WITH_PASIDS: DomainRequest = PLAIN.with(Needs {
    pasids: true,
    dirty_tracking: false,
    coherent_walks: false,
    coherent_dma: false,
});

#[test]
fn a_unit_that_has_pasids_with_first_stages_alone_has_domains_made_for_them() {
    let mut machine = Machine::new();
    let features = Features {
        pasids_by_first_stages: true,
        ..Features::ALL
    };
    machine.fake.features(0, features);
    let unit = machine.iommu.unit_caps(UnitIndex::new(0).unwrap()).unwrap();
    assert!(unit.second_stage);
    // One that nobody asked for opens none, and is none's.
    let driver = machine.driver(TWIN[0]);
    let (plain, unit) = (driver.domain, driver.group.unit());
    let domain = plain.uid();
    let Err((group, refused)) = driver.group.open_pasids() else {
        panic!("opened");
    };
    assert_eq!(refused, PasidsRefused::NotAskedFor { domain, unit });
    assert_eq!(TWIN.map(|member| switch(&machine, member)), [0, 0]);
    let group = group.detach().unwrap();
    let own = Domain::paging_domain_alloc(&group, WITH_PASIDS).unwrap();
    let inner = Domain::paging_domain_alloc(&group, WITH_PASIDS).unwrap();
    assert!(own.hw_id().is_of_first_stage() && !plain.hw_id().is_of_first_stage());
    assert_ne!(own.hw_id().get(), plain.hw_id().get());
    let group = group.attach(&own).unwrap().open_pasids().unwrap();
    let refused = group.attach_pasid(TWIN[0], pasid(1), &plain).unwrap_err();
    let why = PasidsRefused::NotAskedFor { domain, unit };
    assert!(
        matches!(refused, PasidError::Refused(PasidRefusal::Device(error)) if error == why),
        "{refused:?}"
    );
    group.enable_bus_mastering(TWIN[0]).unwrap();
    // What is unmapped is flushed by the id of a first stage, and forgotten.
    let range = inner.reserve(iovas(AT.as_u64(), 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let held = group.attach_pasid(TWIN[0], pasid(1), &inner).unwrap();
    assert!(reach(&machine, TWIN[0], 1).is_ok());
    let (range, frames) = range.unmap().flush().unwrap();
    assert_eq!(reach(&machine, TWIN[0], 1), Err(DmaFault::NotMapped));
    machine.host().free_frames(frames);
    range.release().unwrap();
    group.detach_pasid(held).unwrap();
    drop(group.close_pasids().unwrap().detach().unwrap());
    for domain in [plain, own, inner] {
        assert_eq!(end_domain(domain, machine.host()), 0);
    }
}

#[test]
fn bc10_a_guests_domain_is_of_no_first_stage_for_pasids_either() {
    let mut machine = Machine::new();
    let features = Features {
        pasids_by_first_stages: true,
        ..Features::ALL
    };
    machine.fake.features(0, features);
    let group = machine.take(TWIN[0]).claim_for_guest(vm(1));
    let refused = Domain::user_domain_alloc(&group, WITH_PASIDS).map(drop);
    let (unit, unmet) = (group.unit(), Unmet::absent("PASIDs of such domains"));
    assert_eq!(refused, Err(DomainError::Unmet { unit, unmet }));
    // Where second-stage tables serve, it is as any other's.
    machine.fake.features(0, Features::ALL);
    let domain = Domain::user_domain_alloc(&group, WITH_PASIDS).unwrap();
    assert!(!domain.hw_id().is_of_first_stage());
    let none = Features {
        pasid_bits: 0,
        ..Features::ALL
    };
    machine.fake.features(0, none);
    let refused = Domain::user_domain_alloc(&group, WITH_PASIDS).map(drop);
    assert_eq!(refused, Err(DomainError::Unmet { unit, unmet }));
}

/// The control register of the PASID capability that the machine's functions have.
fn switch(machine: &Machine, member: PciAddress) -> u32 {
    machine.host().register(member, 0x104) >> 16
}

#[test]
fn functions_send_with_pasids_only_while_their_groups_are_open() {
    let mut machine = Machine::new();
    // Firmware left it on, with more than anybody asked for.
    machine
        .host()
        .set_register(TWIN[1], 0x104, 0x7_0000 | 16 << 8, 0x7_0000);
    let driver = machine.driver(TWIN[0]);
    let group = driver.group.open_pasids().unwrap();
    assert_eq!(TWIN.map(|member| switch(&machine, member)), [1, 1]);
    let parked = group.park().unwrap();
    assert_eq!(TWIN.map(|member| switch(&machine, member)), [0, 0]);
    // The reset, and who reset it left something on.
    machine
        .host()
        .set_register(TWIN[0], 0x104, 0x4_0000 | 16 << 8, 0x7_0000);
    let group = parked.unpark().unwrap();
    assert_eq!(TWIN.map(|member| switch(&machine, member)), [1, 1]);
    let _group = group.close_pasids().unwrap();
    assert_eq!(TWIN.map(|member| switch(&machine, member)), [0, 0]);
}

#[test]
fn a_function_that_sends_no_pasids_opens_none() {
    let refused = |prepare: fn(&Machine)| {
        let mut machine = Machine::new();
        prepare(&machine);
        let driver = machine.driver(TWIN[0]);
        let Err((group, refused)) = driver.group.open_pasids() else {
            panic!("opened");
        };
        // Nothing is half done.
        for member in TWIN {
            assert_eq!(switch(&machine, member) & 1, 0);
        }
        (group.id(), refused)
    };
    let hide = |machine: &Machine, member| machine.host().set_register(member, 0x100, 0, 0);
    let (group, why) = refused(|machine| {
        for member in TWIN {
            machine.host().set_register(member, 0x100, 0, 0);
        }
    });
    assert_eq!(why, PasidsRefused::NoneHas { group });
    let (_, why) = refused(|machine| machine.host().set_register(TWIN[1], 0x104, 16 << 8, 0));
    let (function, control) = (TWIN[1], 0);
    assert_eq!(why, PasidsRefused::NotTaken { function, control });
    let (_, why) = refused(|machine| {
        machine.host().set_register(TWIN[1], 0x100, 0x2001_001b, 0);
        machine.host().set_register(TWIN[1], 0x200, 0x0001_000f, 0);
        machine.host().set_register(TWIN[1], 0x204, 1 << 31, 0);
    });
    assert_eq!(why, PasidsRefused::AsksForTranslations { function });

    // One of two has them.
    let mut machine = Machine::new();
    hide(&machine, TWIN[1]);
    let driver = machine.driver(TWIN[0]);
    let group = driver.group.open_pasids().unwrap();
    let attach = |member, number| {
        let outcome = group.attach_pasid(member, pasid(number), &driver.domain);
        match outcome.map_err(|error| match error {
            PasidError::Refused(refusal) => refusal,
            PasidError::Stuck(..) => panic!("stuck"),
        }) {
            Ok(held) => {
                group.detach_pasid(held).unwrap();
                None
            }
            Err(refusal) => Some(refusal),
        }
    };
    let no_capability = PasidsRefused::NoCapability { function };
    assert_eq!(attach(TWIN[0], 1), None);
    assert_eq!(
        attach(TWIN[1], 1),
        Some(PasidRefusal::Device(no_capability))
    );
    // One that sends fewer bits than the unit looks at.
    machine.host().give_pasids(TWIN[0], 3);
    assert_eq!(attach(TWIN[0], 7), None);
    let too_wide = PasidRefusal::TooWide {
        pasid: pasid(8),
        bits: 3,
    };
    assert_eq!(attach(TWIN[0], 8), Some(too_wide));
}

#[test]
fn bc15_a_group_whose_function_does_not_switch_its_pasids_on_after_a_reset_gives_them_up() {
    let (machine, group, own, [one, two], held) = busy();
    let parked = group.park().unwrap();
    machine.host().set_register(TWIN[1], 0x104, 16 << 8, 0);
    let Err(UnparkFailed::Refused { group, error }) = parked.unpark() else {
        panic!("it came back");
    };
    assert!(
        matches!(error, AttachError::Pasids(PasidsRefused::NotTaken { .. })),
        "{error}"
    );
    assert_eq!(reached(&machine), [false; 4]);
    for held in held {
        held.give_up().unwrap();
    }
    drop(group);
    for (domain, frames) in [(one, 1), (two, 1), (own, 0)] {
        assert_eq!(end_domain(domain, machine.host()), frames);
    }
}

#[test]
fn bc05_a_bind_that_fails_is_taken_back() {
    for answer in [Answer::Refuses, Answer::RefusesLate] {
        let (machine, group, _own, [one, _]) = stand();
        machine.fake.plan(0, Call::Bind, 0, answer);
        let failed = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap_err();
        assert!(matches!(failed, PasidError::Refused(_)), "{failed:?}");
        assert_eq!(machine.fake.bound_pasid(TWIN[0], pasid(1)), None);
        // The PASID is free, and the domain.
        let held = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap();
        group.detach_pasid(held).unwrap();
        assert_eq!(end_domain(one, machine.host()), 1, "{answer:?}");
    }
}

#[test]
fn bc05_xsa_302_a_pasid_that_is_not_forgotten_keeps_its_domain_until_the_reset() {
    let lost = [
        (Call::Bind, Answer::Completes(Completion::Never)),
        (Call::Bind, Answer::Completes(Completion::Fails)),
        (Call::Unbind, Answer::Refuses),
        (Call::Unbind, Answer::Completes(Completion::Never)),
        (Call::Unbind, Answer::Completes(Completion::Fails)),
    ];
    for (call, answer) in lost {
        let (machine, group, _own, [one, two]) = stand();
        machine.fake.plan(0, call, 0, answer);
        let stuck = match group.attach_pasid(TWIN[0], pasid(1), &one) {
            Ok(held) => group.detach_pasid(held).unwrap_err().attachment,
            Err(PasidError::Stuck(held, _)) => held,
            Err(refused) => panic!("{call:?}, {answer:?}: {refused:?}"),
        };
        let row = format!("{call:?}, {answer:?}");
        assert_eq!(machine.fake.bound_pasid(TWIN[0], pasid(1)), None, "{row}");
        for member in TWIN {
            assert_eq!(machine.host().bus_master(member), Some(false), "{row}");
        }
        let refused = one.destroy().unwrap_err();
        // While the unit is wedged nobody knows, and the PASID is not free for another domain.
        let failed = group.detach_pasid(stuck).unwrap_err();
        let taken = group.attach_pasid(TWIN[0], pasid(1), &two).unwrap_err();
        assert!(
            matches!(taken, PasidError::Refused(PasidRefusal::Taken { .. })),
            "{row}: {taken:?}"
        );
        machine.iommu.reset_unit(group.unit()).unwrap();
        group.detach_pasid(failed.attachment).unwrap();
        assert_eq!(end_domain(refused.domain, machine.host()), 1, "{row}");
        assert!(group.close_pasids().is_ok());
    }
}

#[test]
fn a_guests_pasid_goes_to_the_guests_domains_alone() {
    let mut machine = Machine::new();
    let first = machine.guest(TWIN[0], vm(1));
    let far = machine.take(FAR).claim_for_guest(vm(2));
    let foreign = Domain::user_domain_alloc(&far, PLAIN).unwrap();
    let group = first.group.open_pasids().unwrap();
    let refused = group.attach_pasid(TWIN[0], pasid(1), &foreign).unwrap_err();
    assert!(matches!(
        refused,
        PasidError::Refused(PasidRefusal::Attach(AttachError::OtherOwner { .. }))
    ));
    assert!(group.attach_pasid(TWIN[0], pasid(1), &first.domain).is_ok());
}

/// What the two functions reach, with PASIDs 1 and 2 of the first and 1 of the second, and without.
fn reached(machine: &Machine) -> [bool; 4] {
    for member in TWIN {
        machine.host().leave_bus_mastering_on(member);
    }
    let plain = machine.fake.dma(TWIN[0], AT, Access::Read);
    [
        reach(machine, TWIN[0], 1).is_ok(),
        reach(machine, TWIN[0], 2).is_ok(),
        reach(machine, TWIN[1], 1).is_ok(),
        // Nothing is mapped there, but it is bound.
        plain == Err(DmaFault::NotMapped),
    ]
}

/// The group with three PASIDs attached, in the domain that it is in and in two more.
fn busy() -> (
    Machine,
    Open,
    Space,
    [Space; 2],
    [hv_iommu::PasidAttachment<KernelPaging, Fake>; 3],
) {
    let (machine, group, own, [one, two]) = stand();
    let held = [
        group.attach_pasid(TWIN[0], pasid(1), &one).unwrap(),
        group.attach_pasid(TWIN[0], pasid(2), &two).unwrap(),
        group.attach_pasid(TWIN[1], pasid(1), &two).unwrap(),
    ];
    assert_eq!(reached(&machine), [true; 4]);
    (machine, group, own, [one, two], held)
}

#[test]
fn bc05_xsa_306_a_group_is_parked_with_all_its_pasids_and_comes_back_with_them() {
    let (machine, group, own, [one, two], [first, second, third]) = busy();
    let parked = group.park().unwrap();
    assert_eq!((parked.owner(), parked.domain()), ((), own.uid()));
    assert_eq!(reached(&machine), [false; 4]);
    // Their domains stay in use, but for what is given up meanwhile.
    let one = one.destroy().unwrap_err().domain;
    second.give_up().unwrap();
    let group = parked.unpark().unwrap();
    for member in TWIN {
        assert_eq!(machine.host().bus_master(member), Some(false));
    }
    assert_eq!(reached(&machine), [true, false, true, true]);
    // An attachment that is live is detached, not given up.
    let first = first.give_up().unwrap_err();
    group.detach_pasid(first).unwrap();
    assert_eq!(end_domain(one, machine.host()), 1);
    let open = group.close_pasids().unwrap_err();
    assert_eq!(open.bound, 1);
    let again = open.group.attach_pasid(TWIN[0], pasid(2), &two).unwrap();
    open.group.detach_pasid(again).unwrap();
    open.group.detach_pasid(third).unwrap();
    drop(open.group.close_pasids().unwrap().detach().unwrap());
    assert_eq!(end_domain(two, machine.host()), 1);
    assert_eq!(end_domain(own, machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn bc05_xsa_400_pasids_of_which_one_does_not_go_back_all_stay_down() {
    // Two requesters first, then the PASIDs.
    for step in 0..5 {
        for answer in [Answer::Refuses, Answer::RefusesLate] {
            let row = format!("{step} {answer:?}");
            let (machine, group, own, [one, two], held) = busy();
            let parked = group.park().unwrap();
            machine.fake.plan(0, Call::Bind, step, answer);
            let Err(UnparkFailed::Refused { group, error }) = parked.unpark() else {
                panic!("{row}");
            };
            assert!(
                matches!(error, AttachError::Unit(UnitError::Hardware { .. })),
                "{error}"
            );
            assert_eq!(reached(&machine), [false; 4], "{row}");
            let [one, two] = [one, two].map(|domain| domain.destroy().unwrap_err().domain);
            for held in held {
                held.give_up().unwrap();
            }
            for domain in [one, two] {
                assert_eq!(end_domain(domain, machine.host()), 1, "{row}");
            }
            let group = group.attach(&own).unwrap();
            drop(group.detach().unwrap());
            assert_eq!(end_domain(own, machine.host()), 0, "{row}");
            assert_eq!(machine.host().frames_out(), 0, "{row}");
        }
    }
}

#[test]
fn bc05_xsa_386_pasids_that_are_not_forgotten_keep_the_group_until_the_reset() {
    let never = Answer::Completes(Completion::Never);
    for step in 0..3 {
        let (machine, group, own, [one, two], held) = busy();
        machine.fake.plan(0, Call::Unbind, step, never);
        let Err(PasidParkFailed::Open { group, .. }) = group.park() else {
            panic!("step {step}");
        };
        for member in TWIN {
            assert_eq!(
                machine.host().bus_master(member),
                Some(false),
                "step {step}"
            );
        }
        let [one, two] = [one, two].map(|domain| domain.destroy().unwrap_err().domain);
        machine.iommu.reset_unit(group.unit()).unwrap();
        // The reset of the devices goes on, and ends with all as it was.
        let group = group.park().unwrap().unpark().unwrap();
        assert_eq!(reached(&machine), [true; 4], "step {step}");
        for held in held {
            group.detach_pasid(held).unwrap();
        }
        drop(group.close_pasids().unwrap().detach().unwrap());
        for (domain, frames) in [(one, 1), (two, 1), (own, 0)] {
            assert_eq!(end_domain(domain, machine.host()), frames, "step {step}");
        }
    }
    // The group's own entries, after those of its PASIDs.
    for step in 3..5 {
        let (machine, group, own, [one, two], held) = busy();
        machine.fake.plan(0, Call::Unbind, step, never);
        let Err(PasidParkFailed::Wedged { group }) = group.park() else {
            panic!("step {step}");
        };
        for held in held {
            held.give_up().unwrap();
        }
        for domain in [one, two] {
            assert_eq!(end_domain(domain, machine.host()), 1, "step {step}");
        }
        machine.iommu.reset_unit(group.unit()).unwrap();
        drop(group.recover().unwrap());
        assert_eq!(end_domain(own, machine.host()), 0, "step {step}");
    }
}

#[test]
fn bc05_xsa_386_pasids_that_go_back_half_way_on_a_unit_that_hangs_are_given_up_after_its_reset() {
    let never = Answer::Completes(Completion::Never);
    for step in 2..5 {
        let (machine, group, own, [one, two], held) = busy();
        let parked = group.park().unwrap();
        machine.fake.plan(0, Call::Bind, step, never);
        let Err(UnparkFailed::Wedged { group }) = parked.unpark() else {
            panic!("step {step}");
        };
        assert_eq!(reached(&machine), [false; 4], "step {step}");
        let failed = step - 2;
        let mut kept = Vec::new();
        for (index, held) in held.into_iter().enumerate() {
            match held.give_up() {
                Ok(()) => assert!(index > failed, "step {step}, {index}"),
                Err(held) => {
                    assert!(index <= failed, "step {step}, {index}");
                    kept.push(held);
                }
            }
        }
        machine.iommu.reset_unit(group.unit()).unwrap();
        for held in kept {
            held.give_up().unwrap();
        }
        drop(group.recover().unwrap());
        for (domain, frames) in [(one, 1), (two, 1), (own, 0)] {
            assert_eq!(end_domain(domain, machine.host()), frames, "step {step}");
        }
    }
}

#[test]
fn bc15_a_group_with_pasids_that_does_not_come_back_leaves_its_domain() {
    let (machine, group, own, [one, two], held) = busy();
    let parked = group.park().unwrap();
    machine.host().unplug(TWIN[0]);
    drop(parked.detach());
    assert_eq!(end_domain(own, machine.host()), 0);
    for held in held {
        held.give_up().unwrap();
    }
    for domain in [one, two] {
        assert_eq!(end_domain(domain, machine.host()), 1);
    }
}

#[test]
fn bc19_a_group_that_was_cut_off_gets_no_further_pasid() {
    let (machine, group, _own, [one, _two]) = stand();
    for page in 0..=u64::from(FaultBudget::default().faults) {
        let at = Iova::new(page * 0x1000);
        machine.fake.dma(TWIN[0], at, Access::Read).unwrap_err();
        machine.iommu.take_faults(|_| ());
    }
    let refused = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap_err();
    let PasidError::Refused(PasidRefusal::Attach(AttachError::CutOff { group: cut_off })) = refused
    else {
        panic!("{refused}");
    };
    assert_eq!(cut_off, group.id());
    let _group = group.close_pasids().unwrap();
}
