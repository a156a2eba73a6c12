//! Replacing a group's domain without a gap, where the unit can: each request goes through one of the two.

use hv_core::{Access, KernelPaging};
use hv_iommu::{AttachError, Domain, ReplaceFailed, UnitError};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Features, Logged};

use super::machine::{FAR, Machine, NIC, PLAIN, end_domain};
use super::replace::{
    Attachment, IN_ONE, IN_TWO, REQUESTERS, Space, Stand, recovers, refused_at_each_step, stand,
    translates,
};

#[test]
fn each_entry_is_switched_and_never_absent() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    let gapless = group.gapless().unwrap();
    let group = group.replace(&two, &gapless).unwrap();
    let (from, to) = (one.hw_id(), two.hw_id());
    let switched: Vec<_> = machine.fake.take_log(0);
    let mut seen = Vec::new();
    for call in &switched {
        let Logged::Rebind(requester, old, new) = *call else {
            panic!("{switched:?}");
        };
        assert_eq!((old, new), (from, to));
        seen.push(requester);
    }
    seen.sort();
    let mut all = REQUESTERS;
    all.sort();
    assert_eq!(seen, all);
    // Bus mastering was never off, and what was cached of the old domain is gone.
    translates(&machine, IN_TWO);
    assert_eq!(machine.fake.cached(0, from), 0);
    assert_eq!(end_domain(one, machine.host()), 1);
    let group = group.replace(&two, &gapless).unwrap();
    assert_eq!(machine.fake.take_log(0), [], "no move");
    let _group = group.detach().unwrap();
    assert_eq!(end_domain(two, machine.host()), 1);
}

#[test]
fn a_unit_that_cannot_gives_no_witness_and_another_units_does_not_serve() {
    let mut machine = Machine::new();
    let never = Features {
        replace: false,
        ..Features::ALL
    };
    machine.fake.features(1, never);
    let (near, far) = (machine.driver(NIC), machine.driver(FAR));
    assert!(far.group.gapless().is_none());
    let witness = near.group.gapless().unwrap();
    let Err(ReplaceFailed::Refused { group, error }) = far.group.replace(&near.domain, &witness)
    else {
        panic!("replaced");
    };
    let expected = AttachError::OtherUnit {
        unit: group.unit(),
        witnessed: near.group.unit(),
    };
    assert_eq!(error, expected);
    assert_eq!(group.domain(), far.domain.uid());
    // With a gap it moves.
    assert!(group.replace_with_gap(&near.domain).is_ok());
}

#[test]
fn bc05_xsa_400_a_switch_that_fails_is_taken_back() {
    let moved = |group: Attachment, to: &Space| {
        let gapless = group.gapless().unwrap();
        group.replace(to, &gapless)
    };
    refused_at_each_step(Call::Rebind, moved, |machine, two| {
        assert_eq!(machine.fake.cached(0, two.hw_id()), 0);
        let entry = |call: &Logged| !matches!(call, Logged::Rebind(..));
        let log = machine.fake.take_log(0);
        assert!(!log.iter().any(entry), "no entry was down: {log:?}");
    });
}

/// A unit whose queue others hold has changed nothing: the entry at hand has no way back to go.
#[test]
fn a_switch_that_finds_the_queue_held_leaves_the_group_as_it_was() {
    for step in 0..REQUESTERS.len() {
        let Stand {
            machine,
            group,
            one,
            two,
        } = stand();
        let gapless = group.gapless().unwrap();
        machine.fake.plan(0, Call::Rebind, step, Answer::Busy);
        let Err(ReplaceFailed::Refused { group, error }) = group.replace(&two, &gapless) else {
            panic!("step {step}");
        };
        let busy = matches!(error, AttachError::Unit(UnitError::Busy { .. }));
        assert!(busy, "{error}");
        assert_eq!(group.domain(), one.uid());
        translates(&machine, IN_ONE);
        let log = machine.fake.take_log(0);
        let there_and_back: Vec<_> = log
            .iter()
            .filter(|call| matches!(call, Logged::Rebind(..)))
            .collect();
        assert_eq!(there_and_back.len(), 2 * step, "{log:?}");
        let _group = group.detach().unwrap();
        assert_eq!(end_domain(one, machine.host()), 1);
        assert_eq!(end_domain(two, machine.host()), 1);
    }
}

#[test]
fn bc05_xsa_302_a_switch_that_is_lost_wedges_the_group_in_both_domains() {
    let refuse = |back| (Answer::Refuses, Some(back));
    let lost = [
        (Answer::Completes(Completion::Never), None),
        (Answer::Completes(Completion::Fails), None),
        refuse(Answer::Refuses),
        refuse(Answer::Completes(Completion::Never)),
    ];
    for (answer, back) in lost {
        for step in 0..REQUESTERS.len() {
            let Stand {
                machine,
                group,
                one,
                two,
            } = stand();
            let gapless = group.gapless().unwrap();
            machine.fake.plan(0, Call::Rebind, step, answer);
            if let Some(back) = back {
                // The first way back of an entry that has moved; there is none before the first step. The
                // failed one itself is looked at first, and has not.
                machine.fake.plan(0, Call::Rebind, step + 2, back);
            }
            let failed = group.replace(&two, &gapless);
            let group = match failed {
                Err(ReplaceFailed::Wedged { group }) => group,
                Err(ReplaceFailed::Refused { .. }) if back.is_some() && step == 0 => continue,
                other => panic!("step {step}, {answer:?}: {:?}", other.map(drop)),
            };
            recovers((machine, one, two), group, [true, true]);
        }
    }
}

#[test]
fn flushes_reach_the_unit_for_the_new_domain_and_no_longer_for_the_old() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    let gapless = group.gapless().unwrap();
    let group = group.replace(&two, &gapless).unwrap();
    machine.fake.take_log(0);
    let _ = one.flush(hv_iommu::FlushSpan::Domain).unwrap();
    assert_eq!(machine.fake.take_log(0), []);
    let _ = two.flush(hv_iommu::FlushSpan::Domain).unwrap();
    assert_eq!(machine.fake.take_log(0).len(), 1);
    drop(group);
}

#[test]
fn a_device_that_was_silent_stays_silent() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    driver.group.disable_bus_mastering(NIC).unwrap();
    let gapless = driver.group.gapless().unwrap();
    let other = machine.take(FAR).claim_for_hypervisor();
    let next: Domain<KernelPaging, Fake> = Domain::paging_domain_alloc(&other, PLAIN).unwrap();
    let group = driver.group.replace(&next, &gapless).unwrap();
    let silent = machine.fake.dma(NIC, IN_ONE, Access::Read);
    assert_eq!(silent, Err(DmaFault::NotBusMaster));
    drop(group);
}
