//! Faults: who caused them, in which group and domain, and what a full log says.

use std::time::Duration;

use hv_core::{Access, Iova, KernelPaging, Owner, Pasid, PciAddress, Perms, UserManaged};
use hv_iommu::{
    AttachError, CutOffReason, Domain, FaultBudget, FaultClass, FaultNotice, FaultReport,
    ReplaceFailed,
};
use hv_tests::fake::{Call, DmaFault, FAULT_LOG};
use hv_tests::host::Time;

use super::machine::{
    ALIAS, BRIDGE, Machine, NIC, OLD, PLAIN, TWIN, full_unit, iovas, isolated, vm,
};

fn notices(machine: &Machine) -> Vec<FaultNotice> {
    let mut found = Vec::new();
    machine.iommu.take_faults(|notice| found.push(notice));
    found
}

fn reports(machine: &Machine) -> Vec<FaultReport> {
    let report = |notice| match notice {
        FaultNotice::Fault(report) => report,
        other => panic!("{other:?}"),
    };
    notices(machine).into_iter().map(report).collect()
}

#[test]
fn a_fault_names_device_address_group_domain_and_owner() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let guest = machine.guest(TWIN[1], vm(7));
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    drop(range.map(machine.host().frames(1), Perms::Read).unwrap());
    for (device, at, access) in [
        (NIC, 0x4010, Access::Write),
        (TWIN[1], 0x123_4567, Access::Read),
        (TWIN[1], 1 << 40, Access::Read),
    ] {
        machine.fake.dma(device, Iova::new(at), access).unwrap_err();
    }
    let of_driver = (
        driver.group.id(),
        driver.domain.uid(),
        KernelPaging::owner_id(()),
    );
    let of_guest = (
        guest.group.id(),
        guest.domain.uid(),
        UserManaged::owner_id(vm(7)),
    );
    let found: Vec<_> = reports(&machine)
        .into_iter()
        .map(|report| {
            let fault = report.fault;
            let what = (fault.address.as_u64(), fault.access, fault.class);
            (fault.requester, what, report.bound_to)
        })
        .collect();
    let expected = [
        (
            NIC,
            (0x4000, Access::Write, FaultClass::NotPermitted),
            Some(of_driver),
        ),
        (
            TWIN[1],
            (0x123_4000, Access::Read, FaultClass::NotPermitted),
            Some(of_guest),
        ),
        (
            TWIN[1],
            (1 << 40, Access::Read, FaultClass::AddressTooWide),
            Some(of_guest),
        ),
    ];
    assert_eq!(found, expected);
    assert_eq!(notices(&machine), [], "a fault is told once");
}

#[test]
fn a_fault_of_an_unbound_device_is_nobodys() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let _group = driver.group.detach().unwrap();
    machine.host().leave_bus_mastering_on(NIC);
    let unbound = machine.fake.dma(NIC, Iova::new(0), Access::Read);
    assert_eq!(unbound, Err(DmaFault::NotBound));
    let [report] = reports(&machine)[..] else {
        panic!("one fault");
    };
    assert_eq!(
        (report.fault.class, report.bound_to),
        (FaultClass::NotBound, None)
    );
}

#[test]
fn a_fault_under_an_alias_names_the_group() {
    let mut machine = Machine::new();
    let driver = machine.driver(OLD[0]);
    // The bridge forwards for its devices under an id that no function has.
    machine
        .fake
        .dma(ALIAS, Iova::new(0x9000), Access::Read)
        .unwrap_err();
    let [report] = reports(&machine)[..] else {
        panic!("one fault");
    };
    let owner = KernelPaging::owner_id(());
    let expected = Some((driver.group.id(), driver.domain.uid(), owner));
    assert_eq!((report.fault.requester, report.bound_to), (ALIAS, expected));
}

/// Shows: bc19.
#[test]
fn a_storm_is_told_in_bounded_steps_with_what_was_lost() {
    let mut machine = Machine::new();
    let _driver = machine.driver(NIC);
    for page in 0..FAULT_LOG as u64 + 5 {
        let at = Iova::new(page * 0x1000);
        machine.fake.dma(NIC, at, Access::Read).unwrap_err();
    }
    let found = notices(&machine);
    assert_eq!(found.len(), FAULT_LOG + 1);
    let lost =
        |notice: &FaultNotice| matches!(notice, FaultNotice::Lost(unit) if unit.index() == 0);
    assert_eq!(found.iter().position(lost), Some(FAULT_LOG));
    assert_eq!(notices(&machine), []);
}

/// Faults of a device at page after page, looked at after each.
fn storm(machine: &Machine, device: PciAddress, faults: u64) -> Vec<FaultNotice> {
    let mut found = Vec::new();
    for page in 0..faults {
        let at = Iova::new(page * 0x1000);
        machine.fake.dma(device, at, Access::Read).unwrap_err();
        found.extend(notices(machine));
    }
    found
}

fn sends(machine: &Machine, device: PciAddress) -> bool {
    machine.host().bus_master(device).unwrap()
}

/// Shows: bc19.
#[test]
fn bc19_a_device_that_faults_without_end_is_cut_off_and_its_owner_told_once() {
    let budget = FaultBudget::default();
    let most = u64::from(budget.faults);
    let mut machine = Machine::new();
    let loose = machine.guest(TWIN[1], vm(7));
    let well = machine.driver(NIC);
    // As many as the budget allows are told, and nothing happens.
    let within = storm(&machine, TWIN[1], most);
    assert_eq!(within.len() as u64, most);
    assert!(
        within
            .iter()
            .all(|notice| matches!(notice, FaultNotice::Fault(_)))
    );
    assert!(sends(&machine, TWIN[1]));
    // One more, and many more.
    let after = storm(&machine, TWIN[1], 100);
    let [FaultNotice::Fault(_), FaultNotice::CutOff(told)] = after[..] else {
        panic!("{after:?}");
    };
    assert_eq!((told.requester, told.group), (TWIN[1], loose.group.id()));
    let reason = CutOffReason::Faults(budget);
    assert_eq!((told.domain, told.reason), (loose.domain.uid(), reason));
    assert_eq!(told.owner, UserManaged::owner_id(vm(7)));
    for twin in TWIN {
        assert!(!sends(&machine, twin), "{twin}: the group moves whole");
        let refused = loose.group.enable_bus_mastering(twin).unwrap_err();
        assert_eq!(
            refused,
            AttachError::CutOff {
                group: loose.group.id()
            }
        );
        assert!(!sends(&machine, twin));
    }
    // The others go on, and are told of.
    assert!(sends(&machine, NIC));
    assert_eq!(storm(&machine, NIC, 3).len(), 3);
    // The way back is a detach, and to be attached anew.
    let group = loose.group.detach().unwrap();
    let group = group.attach_for_guest(&loose.domain, &isolated()).unwrap();
    group.enable_bus_mastering(TWIN[1]).unwrap();
    assert_eq!(storm(&machine, TWIN[1], 3).len(), 3);
    drop(well);
}

/// A move is no way back: nothing of what led there is known to be over.
#[test]
fn bc19_a_group_that_was_cut_off_moves_to_no_other_domain() {
    let most = u64::from(FaultBudget::default().faults);
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let other = Domain::paging_domain_alloc(&driver.group, PLAIN).unwrap();
    storm(&machine, NIC, most + 1);
    let cut_off = AttachError::CutOff {
        group: driver.group.id(),
    };
    let stays = |failed| match failed {
        Err(ReplaceFailed::Refused { group, error }) => {
            assert_eq!(error, cut_off);
            group
        }
        other => panic!("{other:?}"),
    };
    let gapless = driver.group.gapless().unwrap();
    let group = stays(driver.group.replace(&other, &gapless));
    let group = stays(group.replace_with_gap(&other));
    let blocked = Domain::blocked(&group);
    let Err(ReplaceFailed::Refused { group, error }) = group.replace_with_gap(&blocked) else {
        panic!("blocked and back is a move too");
    };
    assert_eq!(error, cut_off);
    // The domain that it is in is no move.
    let group = group.replace_with_gap(&driver.domain).unwrap();
    assert_eq!(group.enable_bus_mastering(NIC), Err(cut_off));
    assert!(!sends(&machine, NIC));
    let group = group.detach().unwrap().attach(&other).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
}

#[test]
fn bc19_a_group_takes_what_it_used_of_its_budget_along() {
    let most = u64::from(FaultBudget::default().faults);
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let other = Domain::paging_domain_alloc(&driver.group, PLAIN).unwrap();
    storm(&machine, NIC, most);
    let group = driver.group.replace_with_gap(&other).unwrap();
    assert!(sends(&machine, NIC));
    storm(&machine, NIC, 1);
    assert!(!sends(&machine, NIC));
    drop(group);
}

#[test]
fn bc19_a_group_has_one_budget_under_all_its_requesters() {
    let most = u64::from(FaultBudget::default().faults);
    let mut machine = Machine::new();
    let driver = machine.driver(TWIN[0]);
    driver.group.enable_bus_mastering(TWIN[1]).unwrap();
    storm(&machine, TWIN[0], most / 2);
    storm(&machine, TWIN[1], most - most / 2);
    assert!(sends(&machine, TWIN[0]));
    storm(&machine, TWIN[1], 1);
    assert!(TWIN.iter().all(|twin| !sends(&machine, *twin)));
}

/// Shows: bc19.
#[test]
fn bc19_faults_that_come_slowly_cut_nobody_off() {
    let budget = FaultBudget::default();
    // The clock moves on by more than the budget's time at each look.
    let time = Time::PerLook(budget.within + Duration::from_nanos(1));
    let mut machine = Machine::build([full_unit(), full_unit()], time, |_| ());
    let driver = machine.driver(NIC);
    let found = storm(&machine, NIC, u64::from(budget.faults) * 3);
    assert!(
        found
            .iter()
            .all(|notice| matches!(notice, FaultNotice::Fault(_)))
    );
    driver.group.enable_bus_mastering(NIC).unwrap();
}

/// A group is cut off in the middle of its attach. What was bound after that is made quiet at its first fault, and its unit
/// reads that once a look, however many records of it the look finds.
#[test]
fn bc19_what_is_bound_while_its_group_is_cut_off_is_made_quiet_as_well() {
    let most = u64::from(FaultBudget::default().faults);
    let mut machine = Machine::new();
    let claimed = machine.take(OLD[0]).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&claimed, PLAIN).unwrap();
    let (fake, iommu) = (machine.fake.clone(), machine.iommu.clone());
    let (say, told) = std::sync::mpsc::channel();
    let storm_of_the_first = move || {
        for page in 0..=most {
            let at = Iova::new(page * 0x1000);
            fake.dma(ALIAS, at, Access::Read).unwrap_err();
            iommu.take_faults(|notice| {
                if let FaultNotice::CutOff(who) = notice {
                    say.send(who.requester).unwrap();
                }
            });
        }
    };
    machine.fake.after_bind(0, ALIAS, storm_of_the_first);
    let group = claimed.attach(&domain).unwrap();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [ALIAS]);
    let bound = machine.fake.take_reread(0);
    assert!(bound.contains(&ALIAS), "{bound:?}");
    // It ignores its bit, and was bound when nothing was bound any more that could be made quiet.
    let late = OLD[1];
    machine.host().leave_bus_mastering_on(late);
    for look in 0..3 {
        for page in 0..4 {
            let at = Iova::new(page * 0x1000);
            machine.fake.dma(late, at, Access::Read).unwrap_err();
        }
        let logged = if look == 0 { 4 } else { 0 };
        assert_eq!(machine.fake.logged_faults(0), logged, "at look {look}");
        assert_eq!(
            notices(&machine),
            [],
            "whose group was cut off is told once"
        );
        let mut reread = machine.fake.take_reread(0);
        reread.sort_unstable();
        let all = [BRIDGE, ALIAS, OLD[0], OLD[1]];
        let expected = if look == 0 { &all[..] } else { &[] };
        assert_eq!(reread, expected, "at look {look}");
    }
    assert_eq!(
        group.enable_bus_mastering(late),
        Err(AttachError::CutOff { group: group.id() })
    );
    assert_eq!(machine.fake.logged_faults(0), 0);
}

/// A unit whose queue is full when a group is cut off goes by the entry that it has cached, which records for ever: it is
/// asked to read that anew until it was.
#[test]
fn bc19_a_unit_that_was_busy_is_asked_again_to_read_what_was_made_quiet() {
    let most = u64::from(FaultBudget::default().faults);
    let mut machine = Machine::new();
    let claimed = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&claimed, PLAIN).unwrap();
    let group = claimed.attach(&domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    machine.fake.take_reread(0);
    // It is asked at the cut-off, at the end of that look, and at the next.
    machine.fake.busy_rereads(0, 3);
    for page in 0..=most {
        let at = Iova::new(page * 0x1000);
        machine.fake.dma(NIC, at, Access::Read).unwrap_err();
        notices(&machine);
    }
    assert_eq!(machine.fake.take_reread(0), [], "it was busy");
    // No fault comes any more, and it is asked at each look.
    notices(&machine);
    assert_eq!(machine.fake.take_reread(0), [], "and still was");
    notices(&machine);
    assert_eq!(machine.fake.take_reread(0), [NIC]);
    notices(&machine);
    assert_eq!(machine.fake.take_reread(0), [], "once is enough");
    drop(group);
}

/// A unit that fails in the middle of a look is wedged for everybody, not for that look alone: its devices are cut off, and
/// it can be reset.
///
/// Shows: bc01.
#[test]
fn bc01_a_unit_that_fails_while_an_entry_is_read_anew_is_wedged_for_all() {
    let most = u64::from(FaultBudget::default().faults);
    let mut machine = Machine::new();
    let loose = machine.driver(TWIN[0]);
    let well = machine.driver(NIC);
    machine.fake.fails_at_reread(0);
    storm(&machine, TWIN[0], most + 1);
    let unit = well.group.unit();
    assert!(machine.iommu.wedged_units().eq([unit]));
    assert!(!sends(&machine, NIC), "what is behind it is cut off");
    machine.iommu.reset_unit(unit).unwrap();
    well.group.enable_bus_mastering(NIC).unwrap();
    // What it was not told is owed still.
    notices(&machine);
    let mut reread = machine.fake.take_reread(0);
    reread.sort_unstable();
    assert_eq!(reread, TWIN);
    drop(loose);
}

/// What a device sends while its entries are down for a replacement is refused by nobody's fault.
#[test]
fn bc19_a_gap_of_the_hypervisors_own_is_charged_to_nobody() {
    let budget = FaultBudget::default().faults;
    for look_in_the_gap in [true, false] {
        let mut machine = Machine::new();
        let driver = machine.driver(NIC);
        let other = Domain::paging_domain_alloc(&driver.group, PLAIN).unwrap();
        // One more is one too many.
        storm(&machine, NIC, budget.into());
        let (fake, iommu) = (machine.fake.clone(), machine.iommu.clone());
        let (say, told) = std::sync::mpsc::channel();
        machine.fake.during_call(0, Call::Bind, move || {
            let sent = fake.dma(NIC, Iova::new(0x1000), Access::Read);
            assert_eq!(sent, Err(DmaFault::NotBound));
            if look_in_the_gap {
                iommu.take_faults(|notice| say.send(notice).unwrap());
            }
        });
        let group = driver.group.replace_with_gap(&other).unwrap();
        let mut found: Vec<_> = told.try_iter().collect();
        found.extend(notices(&machine));
        let [FaultNotice::Fault(report)] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(report.fault.class, FaultClass::NotBound);
        assert!(report.bound_to.is_some(), "it is told whose it was");
        assert!(sends(&machine, NIC));
        // Its own are.
        let after = storm(&machine, NIC, 1);
        let [FaultNotice::Fault(_), FaultNotice::CutOff(_)] = after[..] else {
            panic!("{after:?}");
        };
        drop(group);
    }
}

/// What a device can bring about behind a live entry counts, whoever asked for a gap, and however lately.
#[test]
fn bc19_no_gap_buys_a_device_more_than_its_budget() {
    let budget = FaultBudget::default().faults;
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let other = Domain::paging_domain_alloc(&driver.group, PLAIN).unwrap();
    storm(&machine, NIC, budget.into());
    let group = driver.group.replace_with_gap(&other).unwrap();
    let pasid = Pasid::new(5).unwrap();
    let sent = machine
        .fake
        .dma_with(NIC, pasid, Iova::new(0x1000), Access::Read);
    assert_eq!(sent, Err(DmaFault::NotBound));
    let found = notices(&machine);
    let [FaultNotice::Fault(report), FaultNotice::CutOff(_)] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(report.fault.class, FaultClass::NotBound);
    assert!(!sends(&machine, NIC));
    drop(group);
}

/// A device that ignores its bus master bit and faults without end is made quiet whatever becomes of its group: claimed by
/// nobody, in the middle of a reset, or detached after it was cut off for exactly that.
///
/// Shows: bc19.
#[test]
fn bc19_a_device_that_is_bound_to_nothing_is_made_quiet_too() {
    let most = u64::from(FaultBudget::default().faults);
    let machine = Machine::new();
    machine.host().leave_bus_mastering_on(NIC);
    let told = storm(&machine, NIC, most);
    assert_eq!(told.len() as u64, most, "within the budget all are told");
    assert_eq!(machine.fake.take_reread(0), []);
    let told = storm(&machine, NIC, 100);
    assert_eq!(told.len(), 1, "the one too many is the last");
    assert_eq!(machine.fake.take_reread(0), [NIC]);
    assert_eq!(machine.fake.logged_faults(0), 0);
    assert_eq!(notices(&machine), []);
    assert_eq!(machine.fake.take_reread(0), [], "once is enough");
    // Another has a budget of its own.
    machine.host().leave_bus_mastering_on(TWIN[0]);
    assert_eq!(storm(&machine, TWIN[0], 3).len(), 3);

    // A group that is parked has the budget that it had attached, and is not told of as nobody's.
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let parked = driver.group.park().unwrap();
    machine.host().leave_bus_mastering_on(NIC);
    let told = storm(&machine, NIC, most + 100);
    let cut = |notice: &&FaultNotice| matches!(notice, FaultNotice::CutOff(_));
    assert_eq!(
        (told.len() as u64, told.iter().filter(cut).count()),
        (most + 2, 1)
    );
    assert_eq!(machine.fake.logged_faults(0), 0);
    machine.fake.take_reread(0);
    notices(&machine);
    assert_eq!(machine.fake.take_reread(0), [], "once is enough");
    // It has no budget left, and is told of no more, until it is attached anew.
    let group = parked.unpark().unwrap();
    let refused = group.enable_bus_mastering(NIC);
    assert_eq!(refused, Err(AttachError::CutOff { group: group.id() }));
    let group = group.detach().unwrap().attach(&driver.domain).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    assert_eq!(storm(&machine, NIC, 3).len(), 3);
}
