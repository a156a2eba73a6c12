//! The way out after a unit was wedged: an explicit reset, then new flushes and recovered groups.

use std::sync::{Arc, mpsc};

use hv_core::{Access, Iova, KernelPaging, Perms};
use hv_iommu::{
    AtRest, AttachFailed, Attached, Backend, Binding, DestroyRefusal, Domain, FaultNotice,
    FlushError, FlushSpan, Group, LeafNeeds, RedeemRefusal, UnitError, UnitIndex, Wedged,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Logged, some_root};

use super::machine::{
    DISK, Driver, FAR, Machine, NIC, OLD, PLAIN, end_domain, full_unit, iovas, isolated, vm,
};

const UNIT: UnitIndex = match UnitIndex::new(0) {
    Some(unit) => unit,
    None => unreachable!(),
};

const WEDGED: UnitError = UnitError::Wedged { unit: UNIT };
const WELL: Completion = Completion::AfterPolls(0);

/// Has unit 0 miss a flush of this driver's domain, and answer again from then on.
fn wedge(machine: &Machine, driver: &Driver) {
    machine.fake.completes(0, Completion::Never);
    assert!(driver.domain.flush(FlushSpan::Domain).is_err());
    machine.fake.completes(0, WELL);
}

/// How many flushes unit 0 was asked for since the last look.
fn flushes(machine: &Machine) -> usize {
    let log = machine.fake.take_log(0);
    let flush = |call: &&Logged| matches!(call, Logged::Flush(_));
    log.iter().filter(flush).count()
}

#[test]
fn bc01_what_was_pending_opens_only_with_a_flush_after_the_reset() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let frames = machine.host().frames(1);
    let frame = frames.range().start();
    let range = range.map(frames, Perms::ReadWrite).unwrap();
    let at = Iova::new(0x4000);
    machine.fake.dma_write(NIC, at, 1).unwrap();
    let before = driver.domain.flush(FlushSpan::Domain).unwrap();
    machine.fake.dma_write(NIC, at, 2).unwrap();
    machine.fake.completes(0, Completion::Never);
    let pending = range.unmap().flush().unwrap_err().pending;
    machine.fake.completes(0, WELL);

    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    // The device is silent until its holder lets it out, and then the unit has nothing cached.
    let write = || machine.fake.dma_write(NIC, at, 3);
    assert_eq!(write(), Err(DmaFault::NotBusMaster));
    driver.group.enable_bus_mastering(NIC).unwrap();
    assert_eq!(write(), Err(DmaFault::NotMapped));
    // The reset alone opens nothing, and neither does what was proved before.
    assert!(machine.host().is_out(frame));
    assert_eq!(machine.fake.take_log(0).last(), Some(&Logged::Reset));
    let refused = pending.redeem(&before).unwrap_err();
    let too_old = matches!(refused.reason, RedeemRefusal::TooOld { .. });
    assert!(too_old, "{refused:?}");
    let (range, frames) = refused.pending.flush().unwrap();
    assert_eq!(frames.range().start(), frame);
    assert_eq!(flushes(&machine), 1);
    assert!(range.map(frames, Perms::ReadWrite).is_ok());
    assert_eq!(write(), Ok(()));
}

#[test]
fn bc01_no_domain_of_a_wedged_unit_gets_a_receipt_before_the_reset() {
    let mut machine = Machine::new();
    let drivers = [machine.driver(NIC), machine.driver(DISK)];
    let far = machine.driver(FAR);
    wedge(&machine, &drivers[0]);
    let refused = Err(FlushError::Unit(WEDGED));
    for driver in &drivers {
        assert_eq!(driver.domain.flush(FlushSpan::Domain), refused);
    }
    assert!(far.domain.flush(FlushSpan::Domain).is_ok());
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    for (driver, device) in drivers.iter().zip([NIC, DISK]) {
        assert!(driver.domain.flush(FlushSpan::Domain).is_ok());
        assert_eq!(machine.host().bus_master(device), Some(false));
        driver.group.enable_bus_mastering(device).unwrap();
    }
    // The other unit's device never noticed.
    assert_eq!(machine.host().bus_master(FAR), Some(true));
    for driver in drivers {
        assert_eq!(driver.end(machine.host()), 0);
    }
}

#[test]
fn a_reset_that_fails_leaves_everything_wedged() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    for answer in [
        Answer::Refuses,
        Answer::RefusesLate,
        Answer::Completes(Completion::Never),
        Answer::Completes(Completion::Fails),
    ] {
        machine.fake.plan(0, Call::Reset, 0, answer);
        let error = machine.iommu.reset_unit(UNIT).unwrap_err();
        assert!(matches!(error, UnitError::Hardware { .. }), "{error}");
        let flushed = driver.domain.flush(FlushSpan::Domain);
        assert_eq!(flushed, Err(FlushError::Unit(WEDGED)));
        assert!(driver.group.enable_bus_mastering(NIC).is_err());
        assert_eq!(machine.host().bus_master(NIC), Some(false));
    }
    let group = driver.group.detach().unwrap_err();
    let group = group.recover().unwrap_err();
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    assert!(group.recover().is_ok());
}

#[test]
fn a_unit_that_is_well_or_not_there_is_not_reset() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let well = Err(UnitError::NotWedged { unit: UNIT });
    assert_eq!(machine.iommu.reset_unit(UNIT), well);
    assert_eq!(machine.host().bus_master(NIC), Some(true));
    let unit = UnitIndex::new(2).unwrap();
    let none = Err(UnitError::NoSuchUnit { unit });
    assert_eq!(machine.iommu.reset_unit(unit), none);
    wedge(&machine, &driver);
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    assert_eq!(machine.iommu.reset_unit(UNIT), well);
}

#[test]
fn devices_are_cut_off_once_more_and_one_reset_runs_at_a_time() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    // Something else in the system let the device out again.
    machine.host().leave_bus_mastering_on(NIC);
    assert_eq!(machine.host().bus_master(NIC), Some(true));
    let (iommu, fake) = (machine.iommu.clone(), machine.fake.clone());
    let (tell, told) = mpsc::channel();
    machine.fake.during_reset(0, move || {
        tell.send((iommu.reset_unit(UNIT), fake.host().bus_master(NIC)))
            .unwrap();
    });
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    let (second, sends) = told.recv().unwrap();
    assert!(matches!(second, Err(UnitError::Busy { .. })), "{second:?}");
    assert_eq!(sends, Some(false));
}

#[test]
fn callers_that_keep_asking_do_not_spoil_a_reset() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    let domain = driver.domain;
    let (tell, told) = mpsc::channel();
    machine.fake.during_reset(0, move || {
        let flushed = domain.flush(FlushSpan::Domain);
        tell.send((domain, flushed)).unwrap();
    });
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    let (domain, flushed) = told.recv().unwrap();
    assert_eq!(flushed, Err(FlushError::Unit(WEDGED)));
    assert!(domain.flush(FlushSpan::Domain).is_ok());
}

#[test]
fn a_refusal_from_before_a_reset_does_not_wedge_the_unit_after_it() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    let iommu = machine.iommu.clone();
    machine.fake.after_refusal(0, move || {
        assert_eq!(iommu.reset_unit(UNIT), Ok(()));
    });
    let flushed = driver.domain.flush(FlushSpan::Domain);
    assert_eq!(flushed, Err(FlushError::Unit(WEDGED)));
    assert!(driver.domain.flush(FlushSpan::Domain).is_ok());
    assert_eq!(driver.group.enable_bus_mastering(NIC), Ok(()));
}

#[test]
fn a_unit_that_its_backend_wedged_is_cut_off_by_the_first_who_is_refused() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    machine.fake.wedge(UNIT);
    assert!(driver.domain.flush(FlushSpan::Domain).is_err());
    assert_eq!(machine.host().bus_master(NIC), Some(false));
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    assert!(driver.domain.flush(FlushSpan::Domain).is_ok());
}

#[test]
fn bc01_a_reset_is_too_early_for_an_entry_that_went_while_it_ran() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    let group = driver.group;
    let (tell, told) = mpsc::channel();
    let iommu = machine.iommu.clone();
    // The unit has forgotten all; then the entry goes, and its flush is refused. Another reset that is
    // asked for now changes nothing about that.
    machine.fake.during_reset(0, move || {
        tell.send(group.detach().unwrap_err()).unwrap();
        assert!(iommu.reset_unit(UNIT).is_err());
    });
    assert_eq!(machine.iommu.reset_unit(UNIT), Err(WEDGED));
    let group = told.recv().unwrap().recover().unwrap_err();
    let flushed = driver.domain.flush(FlushSpan::Domain);
    assert_eq!(flushed, Err(FlushError::Unit(WEDGED)));
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    drop(group.recover().unwrap());
    assert_eq!(end_domain(driver.domain, machine.host()), 0);
}

type Stuck = Group<Fake, Wedged<Fake>>;

/// The group behind the bridge, which has four requesters, wedged: attached to a domain that `NIC` is
/// attached to as well, then detached, or never fully attached.
fn stuck(plans: &[(Call, usize, Answer)]) -> (Machine, Driver, Stuck) {
    // Binding waits on this unit, so that it can fail too.
    let waiting = hv_iommu::UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(waiting, full_unit());
    let driver = machine.driver(NIC);
    let old = machine.take(OLD[0]).claim_for_hypervisor();
    let plan = || {
        for &(call, after, answer) in plans {
            machine.fake.plan(0, call, after, answer);
        }
    };
    let at_attach = plans.iter().any(|(call, ..)| *call == Call::Bind);
    if at_attach {
        plan();
    }
    let group = match old.attach(&driver.domain) {
        Ok(group) => {
            assert!(!at_attach, "{plans:?}");
            plan();
            group.detach().unwrap_err()
        }
        Err(AttachFailed::Wedged { group }) => group,
        Err(error) => panic!("{plans:?}: {error}"),
    };
    (machine, driver, group)
}

/// Ways in which a group gets wedged: at which requester, and how.
fn ways() -> Vec<Vec<(Call, usize, Answer)>> {
    let never = Answer::Completes(Completion::Never);
    let fails = Answer::Completes(Completion::Fails);
    let mut ways = Vec::new();
    for step in 0..4 {
        for answer in [Answer::Refuses, never, fails] {
            ways.push(vec![(Call::Unbind, step, answer)]);
        }
        for answer in [never, fails] {
            ways.push(vec![(Call::Bind, step, answer)]);
        }
        for undo in 0..step {
            ways.push(vec![
                (Call::Bind, step, Answer::Refuses),
                (Call::Unbind, undo, never),
            ]);
        }
    }
    ways
}

#[test]
fn a_group_recovers_and_the_domain_forgets_its_unit_no_sooner_or_later() {
    for plans in ways() {
        let (machine, driver, group) = stuck(&plans);
        let Driver { group: nic, domain } = driver;
        assert_eq!(group.unit(), UNIT, "{plans:?}");
        let group = group.recover().expect_err("the unit is wedged");
        assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()), "{plans:?}");
        let refused = domain.destroy().unwrap_err();
        let attached = DestroyRefusal::Attached { attachments: 2 };
        assert_eq!(refused.reason, attached, "{plans:?}");
        let domain = refused.domain;
        let group = group.recover().unwrap();
        for member in OLD {
            assert_eq!(machine.host().bus_master(member), Some(false));
        }
        // The other device of the domain is behind that unit still, and then is not.
        flushes(&machine);
        assert!(domain.flush(FlushSpan::Domain).is_ok());
        assert_eq!(flushes(&machine), 1, "{plans:?}");
        let nic = nic.detach().unwrap();
        flushes(&machine);
        assert!(domain.flush(FlushSpan::Domain).is_ok());
        assert_eq!(flushes(&machine), 0, "{plans:?}");
        assert_eq!(end_domain(domain, machine.host()), 0, "{plans:?}");
        drop(nic);
        // Another owner has it now.
        let AtRest::AfterDriver(group) = group else {
            panic!("{group:?}, which a driver had");
        };
        let reset = group.reset_members(|_| Ok::<_, ()>(())).unwrap();
        let group = reset.all().unwrap().claimable().unwrap();
        let group = group.claim_for_guest(vm(3));
        let domain = Domain::user_domain_alloc(&group, PLAIN).unwrap();
        let group = group.attach_for_guest(&domain, &isolated()).unwrap();
        group.enable_bus_mastering(OLD[0]).unwrap();
        let nothing = machine.fake.dma(OLD[0], Iova::new(0), Access::Read);
        assert_eq!(nothing, Err(DmaFault::NotMapped));
        drop(group.detach().unwrap());
        assert_eq!(domain.destroy().unwrap().count(), 0);
        assert_eq!(machine.host().frames_out(), 0, "{plans:?}");
        assert_eq!(machine.iommu.domains_in_use(), 0, "{plans:?}");
    }
}

#[test]
fn an_entry_that_is_still_there_is_taken_down_and_waited_for() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    let attached: Group<_, Attached<KernelPaging, _>> = driver.group;
    let mut group = attached.detach().unwrap_err();
    let left = Binding {
        root: some_root(),
        domain: driver.domain.hw_id(),
        leaves: LeafNeeds::default(),
    };
    for answer in [Answer::Refuses, Answer::Completes(Completion::Never)] {
        machine.fake.occupy(NIC, left);
        assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
        machine.fake.plan(0, Call::Unbind, 0, answer);
        group = group.recover().expect_err("the unit did not forget it");
        assert_ne!(group.error(), WEDGED, "{answer:?}");
        // It may be cached: the unit is wedged again.
        group = group.recover().unwrap_err();
        let refused = driver.domain.flush(FlushSpan::Domain);
        assert_eq!(refused, Err(FlushError::Unit(WEDGED)));
    }
    machine.fake.occupy(NIC, left);
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    drop(group.recover().unwrap());
    assert_eq!(machine.fake.bound(NIC), None);
    assert_eq!(end_domain(driver.domain, machine.host()), 0);
}

/// What looks at the faults tell of unit 0.
fn failures(machine: &Machine) -> usize {
    let mut told = 0;
    machine.iommu.take_faults(|notice| match notice {
        FaultNotice::Failed(UNIT) => told += 1,
        other => panic!("{other:?}"),
    });
    told
}

#[test]
fn wedged_a_failure_that_a_look_finds_cuts_off_unless_a_reset_came_first() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let sends = || {
        let write = machine.fake.dma_write(NIC, Iova::new(0x4000), 1);
        write != Err(DmaFault::NotBusMaster)
    };
    machine.fake.fails(0, || ());
    assert_eq!((failures(&machine), sends()), (1, false));
    assert_eq!(machine.iommu.wedged_units().collect::<Vec<_>>(), [UNIT]);
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    driver.group.enable_bus_mastering(NIC).unwrap();

    // Somebody else is refused, so that the unit is cut off, and resets it, before the caller goes on.
    let (iommu, domain) = (machine.iommu.clone(), Arc::new(driver.domain));
    let other = Arc::clone(&domain);
    machine.fake.fails(0, move || {
        assert!(other.flush(FlushSpan::Domain).is_err());
        assert_eq!(iommu.reset_unit(UNIT), Ok(()));
    });
    assert_eq!(failures(&machine), 0, "it is over");
    assert_eq!(machine.iommu.wedged_units().count(), 0);
    assert!(domain.flush(FlushSpan::Domain).is_ok());

    // The same, and the reset has not come to its end: it is none the worse for what came before it.
    driver.group.enable_bus_mastering(NIC).unwrap();
    let (iommu, other) = (machine.iommu.clone(), Arc::clone(&domain));
    let (inside, looked) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel::<()>();
    machine.fake.during_reset(0, move || {
        inside.send(()).unwrap();
        gone_on.recv().unwrap();
    });
    let (tell, reset) = mpsc::channel();
    machine.fake.fails(0, move || {
        assert!(other.flush(FlushSpan::Domain).is_err());
        std::thread::spawn(move || tell.send(iommu.reset_unit(UNIT)));
        looked.recv().unwrap();
    });
    assert_eq!(failures(&machine), 0);
    go_on.send(()).unwrap();
    assert_eq!(reset.recv().unwrap(), Ok(()));
    assert!(domain.flush(FlushSpan::Domain).is_ok());
}

#[test]
fn wedged_a_unit_that_fails_again_when_its_reset_is_all_but_over_stays_wedged() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    wedge(&machine, &driver);
    machine.fake.fails_again(0);
    assert_eq!(machine.iommu.reset_unit(UNIT), Err(WEDGED));
    assert_eq!(machine.iommu.wedged_units().collect::<Vec<_>>(), [UNIT]);
    assert!(driver.group.enable_bus_mastering(NIC).is_err());
    assert_eq!(machine.iommu.reset_unit(UNIT), Ok(()));
    assert!(driver.domain.flush(FlushSpan::Domain).is_ok());
}
