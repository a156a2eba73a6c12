//! Replacing a group's domain with a gap: whole, or as before, or blocked, or wedged; never half.
//!
//! Also the cases of `replace` and of the rotation in `alloc_hwpt` in the tests of Linux iommufd.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, PciAddress, Perms};
use hv_iommu::{
    AttachError, Attached, DestroyRefusal, Domain, DomainConfig, FlushSpan, Group, LevelSet,
    Paging, ReplaceFailed, UnitCaps, UnitError, Unmet,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Logged};

use super::machine::{
    ALIAS, BRIDGE, Machine, NIC, OLD, PLAIN, end_domain, full_unit, iovas, level,
};

/// All ids that the group behind the conventional bridge may use.
pub(crate) const REQUESTERS: [PciAddress; 4] = [OLD[0], OLD[1], BRIDGE, ALIAS];

pub(crate) type Attachment = Group<Fake, Attached<KernelPaging, Fake>>;
pub(crate) type Space = Domain<KernelPaging, Fake>;

/// The group behind the bridge in `one`, sending, and another domain; on units where binding waits. In
/// `one` 0x4000 is mapped, in `two` 0x8000.
pub(crate) struct Stand {
    pub(crate) machine: Machine,
    pub(crate) group: Attachment,
    pub(crate) one: Space,
    pub(crate) two: Space,
}

pub(crate) const IN_ONE: Iova = Iova::new(0x4000);
pub(crate) const IN_TWO: Iova = Iova::new(0x8000);

pub(crate) fn stand() -> Stand {
    let waiting = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(waiting, full_unit());
    let group = machine.take(OLD[0]).claim_for_hypervisor();
    let [one, two] = [IN_ONE, IN_TWO].map(|at| {
        let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let range = domain.reserve(iovas(at.as_u64(), 1)).unwrap();
        drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
        domain
    });
    let group = group.attach(&one).unwrap();
    for member in OLD {
        group.enable_bus_mastering(member).unwrap();
    }
    // All that can be cached is.
    for requester in REQUESTERS {
        machine.fake.dma(requester, IN_ONE, Access::Read).unwrap();
    }
    machine.fake.take_log(0);
    Stand {
        machine,
        group,
        one,
        two,
    }
}

/// Asserts that every requester translates through the domain in which `mapped` is, and through it alone.
pub(crate) fn translates(machine: &Machine, mapped: Iova) {
    for requester in REQUESTERS {
        for at in [IN_ONE, IN_TWO] {
            let reached = machine.fake.dma(requester, at, Access::Read);
            match at == mapped {
                true => assert!(reached.is_ok(), "{requester} at {at}: {reached:?}"),
                false => assert_eq!(reached.map(drop), Err(DmaFault::NotMapped), "{requester}"),
            }
        }
    }
}

/// Asserts that nothing is left of the group in either domain.
pub(crate) fn ends(machine: &Machine, one: Space, two: Space) {
    assert_eq!(end_domain(one, machine.host()), 1);
    assert_eq!(end_domain(two, machine.host()), 1);
    assert_eq!(machine.host().frames_out(), 0);
}

fn bound(machine: &Machine) -> usize {
    let bound = |requester: &&PciAddress| machine.fake.bound(**requester).is_some();
    REQUESTERS.iter().filter(bound).count()
}

#[test]
fn a_group_moves_whole_and_its_old_domain_is_free() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    let group = group.replace_with_gap(&two).unwrap();
    assert_eq!(group.domain(), two.uid());
    translates(&machine, IN_TWO);
    assert_eq!(end_domain(one, machine.host()), 1);
    let refused = two.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    let _group = group.detach().unwrap();
    assert_eq!(end_domain(refused.domain, machine.host()), 1);
}

#[test]
fn the_domain_that_it_is_in_already_is_no_move() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    let group = group.replace_with_gap(&one).unwrap();
    assert_eq!(machine.fake.take_log(0), []);
    translates(&machine, IN_ONE);
    let _group = group.detach().unwrap();
    ends(&machine, one, two);
}

#[test]
fn rotating_between_two_domains_leaves_nothing() {
    let Stand {
        machine,
        mut group,
        one,
        two,
    } = stand();
    for _ in 0..3 {
        group = group.replace_with_gap(&two).unwrap();
        translates(&machine, IN_TWO);
        group = group.replace_with_gap(&one).unwrap();
        translates(&machine, IN_ONE);
    }
    let _group = group.detach().unwrap();
    ends(&machine, one, two);
}

#[test]
fn a_domain_that_does_not_fit_leaves_the_group_where_it_is() {
    let shallow = UnitCaps {
        levels: LevelSet::EMPTY.with(level(3)),
        ..full_unit()
    };
    let mut machine = Machine::with_units(shallow, full_unit());
    let driver = machine.driver(NIC);
    let far = machine.take(super::machine::FAR).claim_for_hypervisor();
    let config = DomainConfig {
        address_bits: 48,
        ..PLAIN
    };
    let deep = Domain::paging_domain_alloc(&far, config).unwrap();
    machine.fake.take_log(0);
    let Err(ReplaceFailed::Refused { group, error }) = driver.group.replace_with_gap(&deep) else {
        panic!("moved");
    };
    let unit = group.unit();
    let unmet = Unmet {
        what: "levels of tables",
        needed: 4,
        found: 3,
    };
    assert_eq!(error, AttachError::Incompatible { unit, unmet });
    let said = "unit 0 cannot serve the domain: levels of tables: needed 4, the unit has 3";
    assert_eq!(error.to_string(), said);
    assert_eq!(group.domain(), driver.domain.uid());
    assert_eq!(machine.fake.take_log(0), []);
    assert_eq!(
        end_domain(deep, machine.host()),
        0,
        "it never counted the group"
    );
}

#[test]
fn a_group_is_parked_in_the_blocked_domain_and_comes_back() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    // Any group of the same owner's will do to name the owner.
    let mut elsewhere = Machine::new();
    let blocked = Domain::blocked(&elsewhere.take(NIC).claim_for_hypervisor());
    let group = group.replace_with_gap(&blocked).unwrap();
    assert_eq!(bound(&machine), 0);
    for member in OLD {
        assert_eq!(machine.host().bus_master(member), Some(false));
        machine.host().leave_bus_mastering_on(member);
    }
    let reached = machine.fake.dma(OLD[0], IN_ONE, Access::Read);
    assert_eq!(reached, Err(DmaFault::NotBound));
    let group = group.replace_with_gap(&two).unwrap();
    for member in OLD {
        group.enable_bus_mastering(member).unwrap();
    }
    translates(&machine, IN_TWO);
    let _group = group.detach().unwrap();
    ends(&machine, one, two);
}

/// Has the unit refuse each call of this kind in turn, before and after it did what was asked: the group must be whole
/// in its old domain. `check` sees what is left of the new one.
pub(crate) fn refused_at_each_step(
    call: Call,
    moved: impl Fn(Attachment, &Space) -> Result<Attachment, ReplaceFailed<KernelPaging, Fake, Paging>>,
    check: impl Fn(&Machine, &Space),
) {
    for answer in [Answer::Refuses, Answer::RefusesLate] {
        for step in 0..REQUESTERS.len() {
            let Stand {
                machine,
                group,
                one,
                two,
            } = stand();
            machine.fake.plan(0, call, step, answer);
            let Err(ReplaceFailed::Refused { group, error }) = moved(group, &two) else {
                panic!("step {step}, {answer:?}");
            };
            let failed = AttachError::Unit(UnitError::Hardware {
                unit: group.unit(),
                what: "a deliberate failure",
                expected: 0,
                found: 1,
            });
            assert_eq!(error, failed);
            assert_eq!(group.domain(), one.uid());
            translates(&machine, IN_ONE);
            check(&machine, &two);
            let _group = group.detach().unwrap();
            ends(&machine, one, two);
        }
    }
}

#[test]
fn bc05_xsa_400_a_bind_that_is_refused_takes_the_group_back_to_its_old_domain() {
    let moved = |group: Attachment, to: &Space| group.replace_with_gap(to);
    refused_at_each_step(Call::Bind, moved, |_, _| ());
}

#[test]
fn bc05_xsa_400_a_way_back_that_is_refused_leaves_the_group_claimed_and_blocked() {
    for step in 0..REQUESTERS.len() {
        for back in 0..REQUESTERS.len() {
            let Stand {
                machine,
                group,
                one,
                two,
            } = stand();
            machine.fake.plan(0, Call::Bind, step, Answer::Refuses);
            let later = step + 1 + back;
            machine.fake.plan(0, Call::Bind, later, Answer::Refuses);
            let Err(ReplaceFailed::Unbound { group, .. }) = group.replace_with_gap(&two) else {
                panic!("bind {step}, back {back}");
            };
            assert_eq!(bound(&machine), 0, "bind {step}, back {back}");
            for member in OLD {
                assert_eq!(machine.host().bus_master(member), Some(false));
            }
            let group = group.attach(&two).unwrap();
            let _group = group.detach().unwrap();
            ends(&machine, one, two);
        }
    }
}

/// The answers after which nobody knows whether the unit forgot.
const LOST: [Answer; 3] = [
    Answer::Refuses,
    Answer::Completes(Completion::Never),
    Answer::Completes(Completion::Fails),
];

/// Asserts that a wedged group keeps `held`, and that all comes back after a reset, when neither domain reaches the unit.
pub(crate) fn recovers(
    stand: (Machine, Space, Space),
    group: Group<Fake, hv_iommu::Wedged<Fake>>,
    held: [bool; 2],
) {
    let (machine, one, two) = stand;
    assert_eq!(bound(&machine), 0, "all entries are down");
    for member in OLD {
        assert_eq!(machine.host().bus_master(member), Some(false));
    }
    let mut kept = Vec::new();
    for (domain, held) in [one, two].into_iter().zip(held) {
        match (domain.destroy(), held) {
            (Err(refused), true) => {
                let attached = DestroyRefusal::Attached { attachments: 1 };
                assert_eq!(refused.reason, attached);
                kept.push(refused.domain);
            }
            (Ok(teardown), false) => {
                teardown.for_each(|frames| machine.host().free_frames(frames));
            }
            (Ok(_), true) => panic!("a domain that may be cached was destroyed"),
            (Err(refused), false) => panic!("{refused}"),
        }
    }
    machine.iommu.reset_unit(group.unit()).unwrap();
    let _group = group.recover().unwrap();
    machine.fake.take_log(0);
    for domain in &kept {
        let _ = domain.flush(FlushSpan::Domain).unwrap();
    }
    assert_eq!(machine.fake.take_log(0), []);
    for domain in kept {
        assert_eq!(end_domain(domain, machine.host()), 1);
    }
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn bc05_xsa_386_an_unbind_that_fails_wedges_the_group_in_its_old_domain() {
    for answer in LOST {
        for step in 0..REQUESTERS.len() {
            let Stand {
                machine,
                group,
                one,
                two,
            } = stand();
            machine.fake.plan(0, Call::Unbind, step, answer);
            let Err(ReplaceFailed::Wedged { group }) = group.replace_with_gap(&two) else {
                panic!("step {step}, {answer:?}");
            };
            recovers((machine, one, two), group, [true, false]);
        }
    }
}

#[test]
fn bc05_xsa_302_a_bind_that_never_completes_wedges_the_group_in_its_new_domain() {
    for completion in [Completion::Never, Completion::Fails] {
        for step in 0..REQUESTERS.len() {
            let Stand {
                machine,
                group,
                one,
                two,
            } = stand();
            let answer = Answer::Completes(completion);
            machine.fake.plan(0, Call::Bind, step, answer);
            let Err(ReplaceFailed::Wedged { group }) = group.replace_with_gap(&two) else {
                panic!("step {step}, {completion:?}");
            };
            recovers((machine, one, two), group, [false, true]);
        }
    }
}

#[test]
fn bc02_what_was_cached_of_the_old_domain_is_forgotten_before_the_new_one_is_bound() {
    let Stand {
        machine,
        group,
        one,
        two,
    } = stand();
    let _group = group.replace_with_gap(&two).unwrap();
    let log = machine.fake.take_log(0);
    let unbinds = log
        .iter()
        .position(|call| matches!(call, Logged::Bind(..)))
        .unwrap();
    assert_eq!(unbinds, REQUESTERS.len(), "{log:?}");
    assert_eq!(machine.fake.cached(0, one.hw_id()), 0);
}
