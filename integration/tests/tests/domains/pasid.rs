//! PASIDs: a function's requests told apart by the number that they carry, each in a domain of its own.

use hv_core::{Access, Iova, KernelPaging, Pasid, PciAddress, Perms};
use hv_iommu::{
    AttachError, DestroyRefusal, Domain, FaultBudget, Group, Paging, PasidError, PasidParkFailed,
    PasidRefusal, PasidsRefused, UnitCaps, UnitError, Unmet, UnparkFailed, WithPasids,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Features};

use super::machine::{FAR, Machine, NIC, PLAIN, TWIN, end_domain, full_unit, iovas, vm};

pub(super) const AT: Iova = Iova::new(0x4000);

pub(super) type Open = Group<Fake, WithPasids<KernelPaging, Fake, Paging>>;
pub(super) type Space = Domain<KernelPaging, Fake>;

pub(super) fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

/// The device of two functions with open PASIDs, the domain that it is in, and two more; 0x4000 is mapped
/// in those two. On units where binding waits.
pub(super) fn stand() -> (Machine, Open, Space, [Space; 2]) {
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

pub(super) fn reach(machine: &Machine, member: PciAddress, number: u32) -> Result<u64, DmaFault> {
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
    let unmet = Unmet::absent("requests with a PASID, or firmware does not say that they reach it");
    assert_eq!(refused, PasidsRefused::Unit(unmet));
    assert_eq!(group.domain(), driver.domain.uid());
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

/// A backend may wait in the middle of a bind, and take the entry back by itself.
#[test]
fn a_bind_that_times_out_half_way_cuts_its_unit_off() {
    let (machine, group, own, [one, two]) = stand();
    let unit = group.unit();
    group.enable_bus_mastering(TWIN[0]).unwrap();
    machine.fake.plan(0, Call::Bind, 0, Answer::TimesOut);
    let failed = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap_err();
    assert!(matches!(failed, PasidError::Refused(_)), "{failed:?}");
    assert!(machine.iommu.wedged_units().eq([unit]));
    assert_eq!(machine.host().bus_master(TWIN[0]), Some(false));
    machine.iommu.reset_unit(unit).unwrap();
    // The same where a PASID goes back after a reset of its device.
    let held = group.attach_pasid(TWIN[0], pasid(1), &one).unwrap();
    let parked = group.park().unwrap();
    machine.fake.plan(0, Call::Bind, 2, Answer::TimesOut);
    let Err(UnparkFailed::Wedged { group }) = parked.unpark() else {
        panic!("it came back");
    };
    assert!(machine.iommu.wedged_units().eq([unit]));
    machine.iommu.reset_unit(unit).unwrap();
    held.give_up().unwrap();
    drop(group.recover().unwrap());
    for (domain, frames) in [(one, 1), (two, 1), (own, 0)] {
        assert_eq!(end_domain(domain, machine.host()), frames);
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
pub(super) fn reached(machine: &Machine) -> [bool; 4] {
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
pub(super) fn busy() -> (
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

/// A group whose unit hung when it was parked is parked again after the reset, and whoever has one of its PASIDs gives that
/// up in the middle of it. Its domain is counted out once, so flushes for another device in it still reach the unit.
///
/// Shows: bc07.
#[test]
fn bc07_a_pasid_that_is_given_up_while_its_group_is_parked_is_counted_out_once() {
    let (mut machine, group, _own, [one, two], [first, second, third]) = busy();
    let other = machine.take(NIC).claim_for_hypervisor();
    let other = other.attach(&one).unwrap();
    other.enable_bus_mastering(NIC).unwrap();
    let range = one.reserve(iovas(0x9000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    machine.fake.plan(0, Call::Unbind, 0, Answer::Refuses);
    let Err(PasidParkFailed::Open { group, .. }) = group.park() else {
        panic!("it is parked");
    };
    machine.iommu.reset_unit(group.unit()).unwrap();
    other.enable_bus_mastering(NIC).unwrap();
    let at = Iova::new(0x9000);
    let dma = || machine.fake.dma(NIC, at, Access::Read);
    assert!(dma().is_ok());
    // Its entry is down and forgotten, which the group finds out just now.
    let (say, given) = std::sync::mpsc::channel();
    let give_up = move || say.send(first.give_up()).unwrap();
    machine.fake.during_call(0, Call::Unbind, give_up);
    let parked = group.park().unwrap();
    let given = given.try_recv().unwrap();
    let _ = range.unmap().flush().unwrap();
    assert_eq!(
        dma(),
        Err(DmaFault::NotMapped),
        "a flush that skipped its unit"
    );
    // Whoever was too early tries again.
    if let Err(first) = given {
        first.give_up().unwrap();
    }
    let group = parked.unpark().unwrap();
    assert_eq!(machine.fake.bound_pasid(TWIN[0], pasid(1)), None);
    assert!(machine.fake.bound_pasid(TWIN[0], pasid(2)).is_some());
    group.detach_pasid(second).unwrap();
    group.detach_pasid(third).unwrap();
    drop(other.detach().unwrap());
    assert_eq!(end_domain(one, machine.host()), 1);
    assert_eq!(end_domain(two, machine.host()), 1);
    drop(group);
}
