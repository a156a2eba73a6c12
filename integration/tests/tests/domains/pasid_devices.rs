//! Whether functions send with PASIDs, and which tables a unit tells them apart with: what opening them takes.

use hv_core::platform::FrameSource;
use hv_core::{PciAddress, Perms};
use hv_iommu::{
    AttachError, Domain, DomainError, DomainRequest, Needs, PasidError, PasidRefusal,
    PasidsRefused, UnitIndex, Unmet, UnparkFailed,
};
use hv_tests::fake::{Answer, Call, DmaFault, Features};

use super::machine::{Machine, PLAIN, TWIN, end_domain, iovas, vm};
use super::pasid::{AT, busy, pasid, reach, reached};

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

/// Whoever had it before let it ask for translations, which keeps its PASIDs as they are.
#[test]
fn a_function_that_was_left_asking_is_stopped_before_its_pasids_are_opened() {
    let mut machine = Machine::new();
    let function = TWIN[1];
    machine.host().set_register(function, 0x100, 0x2001_001b, 0);
    machine.host().set_register(function, 0x200, 0x0001_000f, 0);
    machine
        .host()
        .set_register(function, 0x204, 1 << 31, 1 << 31);
    let driver = machine.driver(TWIN[0]);
    let Ok(group) = driver.group.open_pasids() else {
        panic!("refused for good");
    };
    assert_eq!(machine.host().register(function, 0x204), 0);
    assert_eq!(TWIN.map(|member| switch(&machine, member)), [1, 1]);
    let _group = group.close_pasids().unwrap();
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
fn functions_of_a_group_that_does_not_come_back_with_its_pasids_send_with_none() {
    // The entries of two requesters first, then those of the PASIDs.
    for step in 2..5 {
        let (machine, group, own, [one, two], held) = busy();
        let parked = group.park().unwrap();
        machine.fake.plan(0, Call::Bind, step, Answer::Refuses);
        let Err(UnparkFailed::Refused { group, .. }) = parked.unpark() else {
            panic!("step {step}");
        };
        assert_eq!(TWIN.map(|member| switch(&machine, member)), [0, 0]);
        for held in held {
            held.give_up().unwrap();
        }
        drop(group);
        for (domain, frames) in [(one, 1), (two, 1), (own, 0)] {
            assert_eq!(end_domain(domain, machine.host()), frames);
        }
    }
}

#[test]
fn a_capability_at_the_end_of_configuration_space_is_none() {
    let mut machine = Machine::new();
    let beyond = 16 << 8;
    // The list of its device leads there, and its registers would be the next function's.
    machine
        .host()
        .set_register(TWIN[0], 0x100, 0xffc << 20 | 0x1_000b, 0);
    machine.host().set_register(TWIN[0], 0xffc, 0x1_001b, 0);
    machine
        .host()
        .set_register(TWIN[0], 0x1000, beyond, u32::MAX);
    let driver = machine.driver(TWIN[0]);
    let group = driver.group.open_pasids().unwrap();
    assert_eq!(machine.host().register(TWIN[0], 0x1000), beyond);
    assert_eq!(switch(&machine, TWIN[1]), 1);
    let _group = group.close_pasids().unwrap();
}
