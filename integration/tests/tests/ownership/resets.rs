//! Devices that are reset, and devices that are pulled out: at any moment, with nothing reached in between.

use hv_core::{Access, Iova, KernelPaging, PciAddress, Perms};
use hv_iommu::{
    AtRest, AttachError, Attached, DestroyRefusal, Domain, Group, Parked, ResetMembers, UnitError,
    UnparkFailed,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Logged};

use super::machine::{
    ALIAS, BRIDGE, DISK, Machine, NIC, OLD, PLAIN, Passthrough, end_domain, iovas, vm,
};

const AT: Iova = Iova::new(0x4000);

/// All ids that the group behind the conventional bridge may use.
const REQUESTERS: [PciAddress; 4] = [OLD[0], OLD[1], BRIDGE, ALIAS];

type Attachment = Group<Fake, Attached<KernelPaging, Fake>>;

/// The group behind the bridge, attached, with a page mapped.
fn setup() -> (Machine, Attachment, Domain<KernelPaging, Fake>) {
    let mut machine = Machine::new();
    let group = machine.take(OLD[0]).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let range = domain.reserve(iovas(AT.as_u64(), 1)).unwrap();
    drop(
        range
            .map(machine.host().frames(1), Perms::ReadWrite)
            .unwrap(),
    );
    let group = group.attach(&domain).unwrap();
    (machine, group, domain)
}

fn bound(machine: &Machine) -> usize {
    let bound = |requester: &&PciAddress| machine.fake.bound(**requester).is_some();
    REQUESTERS.iter().filter(bound).count()
}

/// What each id reaches, sending whatever its command register says.
fn reach(machine: &Machine) -> Vec<Result<(), DmaFault>> {
    let each = REQUESTERS.iter().map(|requester| {
        machine.host().leave_bus_mastering_on(*requester);
        machine.fake.dma(*requester, AT, Access::Write).map(drop)
    });
    each.collect()
}

#[test]
fn bc05_xsa_306_a_device_that_is_reset_reaches_nothing_with_any_of_its_ids() {
    let (machine, group, domain) = setup();
    assert_eq!(reach(&machine), [Ok(()); 4]);
    let group: Group<Fake, Parked<KernelPaging, Fake>> = group.park().unwrap();
    assert_eq!((bound(&machine), group.domain()), (0, domain.uid()));
    // A device that ignores its bus master bit, or a reset that sets it.
    assert_eq!(reach(&machine), [Err(DmaFault::NotBound); 4]);
    let refused = domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    let domain = refused.domain;
    machine.fake.take_log(0);
    let group = group.unpark().unwrap();
    let binds = machine.fake.take_log(0);
    assert_eq!(
        binds
            .iter()
            .filter(|call| matches!(call, Logged::Bind(..)))
            .count(),
        4
    );
    for requester in REQUESTERS {
        if OLD.contains(&requester) {
            assert_eq!(machine.host().bus_master(requester), Some(false));
        }
    }
    assert_eq!(reach(&machine), [Ok(()); 4], "as it was");
    let group = group.detach().unwrap();
    assert_eq!(bound(&machine), 0);
    drop(group);
    assert_eq!(end_domain(domain, machine.host()), 1);
}

#[test]
fn bc05_xsa_400_a_group_that_cannot_go_back_after_a_reset_is_claimed_and_whole() {
    for step in 0..REQUESTERS.len() {
        let (machine, group, domain) = setup();
        let group = group.park().unwrap();
        machine.fake.plan(0, Call::Bind, step, Answer::Refuses);
        let Err(UnparkFailed::Refused { group, error }) = group.unpark() else {
            panic!("step {step}");
        };
        assert!(
            matches!(error, AttachError::Unit(UnitError::Hardware { .. })),
            "{error}"
        );
        assert_eq!(bound(&machine), 0, "step {step}");
        // The domain is free of it, or takes it again.
        let group = group.attach(&domain).unwrap().detach().unwrap();
        drop(group);
        assert_eq!(end_domain(domain, machine.host()), 1, "step {step}");
    }
}

#[test]
fn bc05_xsa_386_a_group_that_cannot_be_parked_or_put_back_cleanly_is_wedged() {
    let never = Answer::Completes(Completion::Never);
    for step in 0..REQUESTERS.len() {
        let (machine, group, domain) = setup();
        machine.fake.plan(0, Call::Unbind, step, never);
        assert!(group.park().is_err(), "step {step}");
        assert_eq!(bound(&machine), 0);
        let reason = domain.destroy().unwrap_err().reason;
        assert_eq!(reason, DestroyRefusal::Attached { attachments: 1 });
    }
    for step in 1..REQUESTERS.len() {
        let (machine, group, domain) = setup();
        let group = group.park().unwrap();
        machine.fake.plan(0, Call::Bind, step, Answer::Refuses);
        machine.fake.plan(0, Call::Unbind, 0, never);
        let Err(UnparkFailed::Wedged { group }) = group.unpark() else {
            panic!("step {step}");
        };
        let refused = domain.destroy().unwrap_err();
        assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
        machine.iommu.reset_unit(group.unit()).unwrap();
        assert!(matches!(group.recover().unwrap(), AtRest::AfterDriver(_)));
        assert_eq!(end_domain(refused.domain, machine.host()), 1, "step {step}");
    }
}

#[test]
fn bc15_a_device_that_does_not_come_back_from_its_reset_leaves_its_domain() {
    let (machine, group, domain) = setup();
    let group = group.park().unwrap();
    machine.host().unplug(OLD[0]);
    let group = group.detach();
    assert_eq!(end_domain(domain, machine.host()), 1);
    // The other member is reset; which one was not is said, and by name let go, or tried again.
    let mut seen = Vec::new();
    let reset = group.release().reset_members(|member| {
        seen.push(member);
        Ok::<_, ()>(())
    });
    let gone = reset.unwrap().all().unwrap_err();
    assert_eq!((seen.as_slice(), gone.gone()), (&OLD[1..], &OLD[..1]));
    let reset = gone.try_again().reset_members(|_| Ok::<_, ()>(())).unwrap();
    let gone = reset.all().unwrap_err();
    assert!(gone.without_them("a test").claimable().is_ok());
}

/// Moments at which the device is pulled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Claimed,
    Attached,
    Sending,
    Unmapping,
    Parked,
    Detached,
    Released,
}

#[test]
fn bc15_cve_2026_43161_a_device_may_be_pulled_out_at_any_moment() {
    use Moment::{Attached, Claimed, Detached, Parked, Released, Sending, Unmapping};
    for moment in [
        Claimed, Attached, Sending, Unmapping, Parked, Detached, Released,
    ] {
        let mut machine = Machine::new();
        let pull = |now: Moment, host: &hv_tests::host::Host| {
            if now == moment {
                host.unplug(DISK);
            }
        };
        let gone = Err(AttachError::Gone { function: DISK });
        let is_gone_by = |now: &[Moment]| now.contains(&moment);
        let group = machine.take(DISK).claim_for_guest(vm(1));
        let host = machine.fake.host();
        pull(Claimed, host);
        let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
        let group = group
            .attach_for_guest(&domain, &super::machine::isolated())
            .unwrap();
        pull(Attached, host);
        let enabled = group.enable_bus_mastering(DISK);
        assert_eq!(
            enabled,
            if is_gone_by(&[Claimed, Attached]) {
                gone
            } else {
                Ok(())
            },
            "{moment:?}"
        );
        pull(Sending, host);
        let mut memory = hv_core::GuestMemory::new(vm(1));
        memory.give(hv_core::Gpa::new(0), host.frames(4)).unwrap();
        let pin = memory.pin(super::machine::gpas(0, 4)).unwrap();
        let mapped = domain
            .reserve(iovas(AT.as_u64(), 4))
            .unwrap()
            .map(pin, Perms::ReadWrite)
            .unwrap();
        pull(Unmapping, host);
        let (range, pin) = mapped.unmap().flush().unwrap();
        memory.unpin(pin).unwrap();
        range.release().unwrap();
        let group = group.park().unwrap();
        pull(Parked, host);
        let group = group.unpark().unwrap();
        let again = group.enable_bus_mastering(DISK);
        assert_eq!(
            again,
            if is_gone_by(&[Detached, Released]) {
                Ok(())
            } else {
                gone
            },
            "{moment:?}"
        );
        let group = group.detach().unwrap();
        pull(Detached, host);
        let group = group.release();
        pull(Released, host);
        // Nothing to reset in a device that is not there, which is said.
        let reset = group.reset_members(Err::<(), PciAddress>).unwrap();
        let gone = reset.all().unwrap_err();
        assert_eq!(gone.gone(), [DISK]);
        let group = gone.without_them("a test").claimable().unwrap();
        assert_eq!(group.members(), [DISK]);
        assert_eq!(domain.destroy().unwrap().count(), 0);
        assert!(machine.iommu.wedged_units().next().is_none(), "{moment:?}");
    }
}

#[test]
fn bc05_xsa_302_what_a_guest_armed_is_gone_before_the_next_claim() {
    let mut machine = Machine::new();
    let Passthrough { group, domain, .. } = machine.guest(NIC, vm(1));
    let released = group.detach().unwrap().release();
    let mut seen = Vec::new();
    let reset = released.reset_members(|member| {
        // What the reset itself sends reaches nothing, and leaves no bus mastering behind.
        machine.host().leave_bus_mastering_on(member);
        seen.push((member, machine.fake.dma(member, AT, Access::Write)));
        Ok::<_, ()>(())
    });
    assert_eq!(seen, [(NIC, Err(DmaFault::NotBound))]);
    assert!(matches!(reset, Ok(ResetMembers::All(AtRest::Claimable(_)))));
    assert_eq!(machine.host().bus_master(NIC), Some(false));
    assert_eq!(domain.destroy().unwrap().count(), 0);
}

#[test]
fn bc05_xsa_302_a_guests_group_that_was_wedged_waits_for_its_reset_too() {
    let mut machine = Machine::new();
    let Passthrough { group, domain, .. } = machine.guest(NIC, vm(1));
    let never = Answer::Completes(Completion::Never);
    machine.fake.plan(0, Call::Unbind, 0, never);
    let wedged = group.detach().unwrap_err();
    machine.iommu.reset_unit(wedged.unit()).unwrap();
    let AtRest::ToReset(group) = wedged.recover().unwrap() else {
        panic!("claimable as the guest left it");
    };
    assert_eq!(group.last_owner(), vm(1));
    assert_eq!(domain.destroy().unwrap().count(), 0);
}
