//! An attach or detach that fails half-way: the group comes back whole, or wedged, never in between.

use hv_core::{KernelPaging, PciAddress};
use hv_iommu::{
    AttachError, AttachFailed, Attached, Binding, Claimed, DestroyRefusal, Domain, Group,
    HwDomainId, LeafNeeds, UnitCaps, UnitError, Wedged,
};
use hv_tests::fake::{Answer, Call, Completion, Fake, Logged, some_root};

use super::machine::{ALIAS, BRIDGE, Machine, OLD, PLAIN, full_unit};

/// All ids that the group behind the conventional bridge may use, in no order.
const REQUESTERS: [PciAddress; 4] = [OLD[0], OLD[1], BRIDGE, ALIAS];

type Claim = Group<Fake, Claimed<KernelPaging>>;
type Attachment = Group<Fake, Attached<KernelPaging, Fake>>;

/// The group behind the bridge, claimed, and a domain for it, on units where binding has to wait.
fn setup() -> (Machine, Claim, Domain<KernelPaging, Fake>) {
    let waiting = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(waiting, full_unit());
    let group = machine.take(OLD[0]).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    (machine, group, domain)
}

fn bound(machine: &Machine) -> usize {
    let bound = |requester: &&PciAddress| machine.fake.bound(**requester).is_some();
    REQUESTERS.iter().filter(bound).count()
}

fn attached(result: Result<Attachment, AttachFailed<KernelPaging, Fake>>) -> Attachment {
    result.unwrap_or_else(|error| panic!("{error:?}"))
}

#[test]
fn bc05_xsa_449_all_ids_of_a_group_are_bound_and_unbound_together() {
    let (machine, group, domain) = setup();
    let group = attached(group.attach(&domain));
    assert_eq!(bound(&machine), REQUESTERS.len());
    let group = group.detach().unwrap();
    assert_eq!(bound(&machine), 0);
    drop(group);
    assert_eq!(domain.destroy().unwrap().count(), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn bc05_xsa_400_a_bind_that_is_refused_takes_the_ones_before_it_back() {
    for step in 0..REQUESTERS.len() {
        let (machine, group, domain) = setup();
        machine.fake.plan(0, Call::Bind, step, Answer::Refuses);
        let Err(AttachFailed::Refused { group, error }) = group.attach(&domain) else {
            panic!("step {step}");
        };
        assert!(
            matches!(error, AttachError::Unit(UnitError::Hardware { .. })),
            "{error}"
        );
        assert_eq!(bound(&machine), 0, "step {step}");
        let undone = |call: &&Logged| matches!(call, Logged::Unbind { .. });
        let log = machine.fake.take_log(0);
        assert_eq!(log.iter().filter(undone).count(), step, "{log:?}");
        // Nothing is left over: the domain can end, or the group attach.
        let group = attached(group.attach(&domain)).detach().unwrap();
        drop(group);
        assert_eq!(domain.destroy().unwrap().count(), 0, "step {step}");
        assert_eq!(machine.host().frames_out(), 0, "step {step}");
    }
}

/// Asserts that the domain is kept from ending by what may still be cached of it.
fn keeps_its_domain(group: Group<Fake, Wedged<Fake>>, domain: Domain<KernelPaging, Fake>) {
    drop(group);
    let refused = domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
}

#[test]
fn bc05_xsa_302_a_bind_that_never_completes_wedges_the_group() {
    for completion in [Completion::Never, Completion::Fails] {
        for step in 0..REQUESTERS.len() {
            let (machine, group, domain) = setup();
            let answer = Answer::Completes(completion);
            machine.fake.plan(0, Call::Bind, step, answer);
            let Err(AttachFailed::Wedged { group }) = group.attach(&domain) else {
                panic!("step {step}, {completion:?}");
            };
            assert_eq!(bound(&machine), 0, "all entries are down, step {step}");
            assert!(machine.fake.take_log(0).contains(&Logged::Wedge));
            keeps_its_domain(group, domain);
        }
    }
}

#[test]
fn bc05_xsa_400_a_rollback_that_fails_wedges_the_group() {
    let answers = [
        Answer::Refuses,
        Answer::Completes(Completion::Never),
        Answer::Completes(Completion::Fails),
    ];
    for answer in answers {
        for step in 1..REQUESTERS.len() {
            for undo in 0..step {
                let (machine, group, domain) = setup();
                machine.fake.plan(0, Call::Bind, step, Answer::Refuses);
                machine.fake.plan(0, Call::Unbind, undo, answer);
                let Err(AttachFailed::Wedged { group }) = group.attach(&domain) else {
                    panic!("bind {step}, unbind {undo}, {answer:?}");
                };
                assert_eq!(bound(&machine), 0, "bind {step}, unbind {undo}, {answer:?}");
                keeps_its_domain(group, domain);
            }
        }
    }
}

#[test]
fn bc05_xsa_386_a_detach_that_fails_at_any_step_wedges_the_group() {
    let answers = [
        Answer::Refuses,
        Answer::Completes(Completion::Never),
        Answer::Completes(Completion::Fails),
    ];
    for answer in answers {
        for step in 0..REQUESTERS.len() {
            let (machine, group, domain) = setup();
            let group = attached(group.attach(&domain));
            for member in OLD {
                group.enable_bus_mastering(member).unwrap();
            }
            machine.fake.plan(0, Call::Unbind, step, answer);
            let group = group.detach().expect_err("the unit failed");
            // The entries behind the one that failed are taken down as well.
            assert_eq!(bound(&machine), 0, "step {step}, {answer:?}");
            for member in OLD {
                assert_eq!(machine.host().bus_master(member), Some(false));
            }
            keeps_its_domain(group, domain);
        }
    }
}

#[test]
fn bc05_xsa_449_a_bind_that_fails_after_its_entry_was_live_is_taken_back() {
    for step in 0..REQUESTERS.len() {
        let (machine, group, domain) = setup();
        machine.fake.plan(0, Call::Bind, step, Answer::RefusesLate);
        let Err(AttachFailed::Refused { group, .. }) = group.attach(&domain) else {
            panic!("step {step}");
        };
        assert_eq!(bound(&machine), 0, "step {step}");
        drop(group);
        assert_eq!(domain.destroy().unwrap().count(), 0, "step {step}");
    }
}

#[test]
fn an_entry_of_somebody_else_is_left_alone() {
    // Another group's, bound to another domain or to this one.
    for same_domain in [false, true] {
        for requester in REQUESTERS {
            let (machine, group, domain) = setup();
            let other = HwDomainId::new(77);
            let foreign = Binding {
                root: some_root(),
                domain: if same_domain { domain.hw_id() } else { other },
                leaves: LeafNeeds::default(),
            };
            machine.fake.occupy(requester, foreign);
            let Err(AttachFailed::Refused { group, error }) = group.attach(&domain) else {
                panic!("{requester}");
            };
            let taken = UnitError::AlreadyBound {
                requester,
                domain: foreign.domain,
            };
            assert_eq!(error, AttachError::Unit(taken));
            assert_eq!(machine.fake.bound(requester), Some(foreign.domain));
            assert_eq!(bound(&machine), 1, "{requester}");
            drop(group);
            assert_eq!(domain.destroy().unwrap().count(), 0, "{requester}");
        }
    }
}
