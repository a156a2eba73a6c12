//! Waits for a unit that waits for devices: how long they are, and whom they hold up.

use std::sync::mpsc;
use std::time::Duration;

use hv_core::{Pasid, Perms};
use hv_iommu::{Domain, FlushError, RedeemRefusal, UnitError};
use hv_tests::fake::{Call, Completion, UserStage};
use hv_tests::host::Time;

use super::machine::{
    Driver, FAR, Machine, NIC, PLAIN, TWIN, end_domain, full_unit, iovas, isolated, vm,
};

/// One page, unmapped and pending.
fn flush(machine: &Machine, driver: &Driver) -> Result<(), UnitError> {
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::ReadWrite);
    match range.unwrap().unmap().flush() {
        Ok((range, frames)) => {
            hv_core::platform::FrameSource::free_frames(machine.host(), frames);
            range.release().unwrap();
            Ok(())
        }
        Err(failed) => match failed.reason {
            RedeemRefusal::Flush(FlushError::Unit(error)) => Err(error),
            other => panic!("{other}"),
        },
    }
}

/// Each device that does not answer is given its time, and who waits for all of them waits as long.
#[test]
fn bc01_who_waits_while_it_is_found_out_who_does_not_answer_begins_anew_with_each() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    // Looks at the clock take a microsecond, and waits are over after a millisecond, or three more for devices.
    machine.fake.finds_out(0, 3000);
    machine.fake.completes(0, Completion::AfterPolls(20_000));
    assert_eq!(flush(&machine, &driver), Ok(()));
    // One that is given more time than that is never found out.
    machine.fake.finds_out(0, 6000);
    match flush(&machine, &driver) {
        Err(UnitError::Timeout { waited, .. }) => {
            assert!(waited > Duration::from_millis(4) && waited < Duration::from_millis(6));
        }
        other => panic!("{other:?}"),
    }
}

/// Somebody looks for the last time whether a flush is done, and is held up before it says that it was not. Meanwhile the
/// unit fails, is wedged for that, and is reset. What was seen before says nothing of the unit as it is now, and the flush
/// is done.
///
/// Shows: bc01.
#[test]
fn bc01_a_time_out_of_before_a_reset_wedges_nothing_after_it() {
    // The first look is the last: the wait is over by the time of it.
    let time = Time::PerLook(Duration::from_millis(2));
    let mut machine = Machine::build([full_unit(), full_unit()], time, |_| ());
    let driver = machine.driver(NIC);
    let unit = driver.group.unit();
    machine.fake.completes(0, Completion::Never);
    let (iommu, fake) = (machine.iommu.clone(), machine.fake.clone());
    machine.fake.after_look(0, move || {
        let other = std::thread::spawn(move || {
            fake.fails(0, || ());
            iommu.take_faults(|_| ());
            assert!(iommu.wedged_units().eq([unit]));
            fake.completes(0, Completion::AfterPolls(0));
            iommu.reset_unit(unit).unwrap();
        });
        other.join().unwrap();
    });
    assert_eq!(flush(&machine, &driver), Ok(()));
    assert_eq!(machine.iommu.wedged_units().count(), 0);
    // One that is not reset meanwhile is wedged.
    machine.fake.completes(0, Completion::Never);
    let late = flush(&machine, &driver);
    assert!(matches!(late, Err(UnitError::Timeout { .. })), "{late:?}");
    assert!(machine.iommu.wedged_units().eq([unit]));
}

/// A driver of another unit, in whose domain are tables that nothing needs any more.
fn with_empty_tables(machine: &mut Machine) -> Driver {
    let far = machine.driver(FAR);
    for index in 1..20 {
        let range = far.domain.reserve(iovas(index << 21, 1)).unwrap();
        let range = range
            .map(machine.host().frames(1), Perms::ReadWrite)
            .unwrap();
        let (range, frames) = range.unmap().flush().unwrap();
        hv_core::platform::FrameSource::free_frames(machine.host(), frames);
        range.release().unwrap();
    }
    assert!(far.domain.table_pages() > 19);
    far
}

/// Has those tables taken out by another CPU in the middle of `act`, which a CPU does that stays in the hypervisor: it takes
/// two grace periods.
fn holds_back_nothing(
    machine: &Machine,
    far: Driver,
    middle: impl FnOnce(Box<dyn FnOnce() + Send>),
    act: impl FnOnce(),
) {
    let before = far.domain.table_pages();
    let (given, back) = mpsc::channel();
    middle(Box::new(move || {
        let other = std::thread::spawn(move || (far.domain.reclaim(), far));
        given.send(other.join()).unwrap();
    }));
    let stay = machine.iommu.enter();
    act();
    drop(stay);
    let (reclaimed, far) = back.recv().unwrap().unwrap();
    assert_eq!(reclaimed, Ok(before - 1));
    assert_eq!(far.end(machine.host()), 0);
}

/// A CPU that finds out which devices do not answer is in one look at its unit for all of that time.
#[test]
fn a_cpu_that_waits_for_devices_holds_back_nothing_that_is_retired() {
    let mut machine = Machine::new();
    let (driver, far) = (machine.driver(NIC), with_empty_tables(&mut machine));
    let middle = |job| machine.fake.during_poll(0, job);
    holds_back_nothing(&machine, far, middle, || {
        assert_eq!(flush(&machine, &driver), Ok(()));
    });
    assert_eq!(driver.end(machine.host()), 0);
}

/// So may one be that binds a device, moves it or unbinds it: that waits for room in the queue, and for steps in between.
#[test]
fn a_cpu_that_binds_or_unbinds_holds_back_nothing_that_is_retired() {
    for call in [Call::Bind, Call::Rebind, Call::Unbind] {
        let mut machine = Machine::new();
        let group = machine.take(NIC).claim_for_hypervisor();
        let one = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let two = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let far = with_empty_tables(&mut machine);
        let middle = |job| machine.fake.during_call(0, call, job);
        holds_back_nothing(&machine, far, middle, || {
            let group = group.attach(&one).unwrap();
            let gapless = group.gapless().unwrap();
            let group = group.replace(&two, &gapless).unwrap();
            drop(group.detach().unwrap());
        });
        for domain in [one, two] {
            assert_eq!(end_domain(domain, machine.host()), 0);
        }
    }
}

#[test]
fn a_cpu_that_hands_a_guests_invalidations_over_holds_back_nothing_that_is_retired() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let parent = Domain::user_parent_alloc(&group, PLAIN).unwrap();
    let user = UserStage {
        table: 0x3000,
        levels: 1,
    };
    let stage = Domain::alloc_nested(&parent, &user).unwrap();
    let far = with_empty_tables(&mut machine);
    let group = group.attach_for_guest(&stage, &isolated()).unwrap();
    let middle = |job| machine.fake.during_call(0, Call::Nested, job);
    holds_back_nothing(&machine, far, middle, || {
        stage.invalidate(&[[0, 0]]).unwrap();
    });
    drop(group.detach().unwrap());
}

/// A PASID is bound and unbound like a device.
#[test]
fn a_cpu_that_binds_a_pasid_holds_back_nothing_that_is_retired() {
    for call in [Call::Bind, Call::Unbind] {
        let mut machine = Machine::new();
        let group = machine.take(TWIN[0]).claim_for_hypervisor();
        let own = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let space = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
        let group = group.attach(&own).unwrap().open_pasids().unwrap();
        let far = with_empty_tables(&mut machine);
        let middle = |job| machine.fake.during_call(0, call, job);
        holds_back_nothing(&machine, far, middle, || {
            let pasid = Pasid::new(1).unwrap();
            let attached = group.attach_pasid(TWIN[0], pasid, &space).unwrap();
            group.detach_pasid(attached).unwrap();
        });
    }
}
