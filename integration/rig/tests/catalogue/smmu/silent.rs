//! Devices that keep translations (ATS) and do not say that they forgot: each is cut off, and nobody else.

use std::time::Duration;

use hv_core::{Access, Iova, PciAddress};
use hv_iommu::{AttachError, CutOff, CutOffReason, Domain, FaultNotice, TrustedDevice, UnitError};
use hv_rig::{Answering, Machine, Outcome};

use super::device_tlbs::{DEVICE, all, asking, asking_with, with_ats};
use super::stand::{DEVICE_WAIT, Kernel, Stand, iovas, on_machines, pci, small};

/// Another device, mostly behind the same unit.
pub(super) const OTHER: PciAddress = pci(0, 1, 0);
const VOUCHED: &str = "the rig's own";

fn reached(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Reached { .. })
}

/// A device asks for an address.
pub(super) fn ask(stand: &Stand, device: PciAddress, at: u64) -> bool {
    reached(stand.rig.ask(device, Iova::new(at), Access::Write))
}

/// What a device reaches by a translation of its own.
pub(super) fn kept(stand: &Stand, device: PciAddress, at: u64) -> bool {
    reached(stand.rig.access_kept(device, Iova::new(at), Access::Write))
}

/// Which groups were cut off since the last look. No unit failed.
pub(super) fn cut_off(stand: &Stand) -> Vec<CutOff> {
    let mut found = Vec::new();
    stand.iommu.take_faults(|notice| match notice {
        FaultNotice::CutOff(who) => found.push(who),
        FaultNotice::Failed(unit) => panic!("{unit} failed"),
        FaultNotice::BadLog(unit, bad) => panic!("{unit}: {bad}"),
        FaultNotice::Fault(_) | FaultNotice::Stray(..) | FaultNotice::Lost(_) => {}
    });
    found
}

/// Nothing of the device of `one` passes, its owner is told once, and is refused until a detach.
fn is_cut_off(stand: &Stand, one: &mut Kernel, at: u64) {
    let group = one.group.as_mut().unwrap();
    let [told] = cut_off(stand)[..] else {
        panic!("told once");
    };
    assert_eq!(told.requester, DEVICE);
    assert_eq!(
        (told.group, told.domain, told.reason),
        (group.id(), one.domain.uid(), CutOffReason::NoAnswer)
    );
    assert_eq!(cut_off(stand), []);
    assert!(!stand.rig.asks(DEVICE));
    let refused = group.enable_bus_mastering(DEVICE);
    assert!(matches!(refused, Err(AttachError::CutOff { .. })));
    let mapped = one.map(iovas(at, 1));
    assert!(!ask(stand, DEVICE, at) && !kept(stand, DEVICE, at) && !one.writes(at));
    one.unmap_and_free(mapped);
}

/// The device is attached anew, to the same domain, and asks again.
fn comes_back(stand: &Stand, one: &mut Kernel, at: u64) {
    let claimed = one.detach().claim_for_hypervisor().trust(VOUCHED);
    let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
    let mut group = stand.attach(claimed, &one.domain, one.tenant);
    group.enable_ats(DEVICE, &trusted).unwrap();
    one.group = Some(group);
    let mapped = one.map(iovas(at, 2));
    assert!(ask(stand, DEVICE, at) && kept(stand, DEVICE, at) && one.writes(at));
    one.unmap_and_free(mapped);
    assert!(!kept(stand, DEVICE, at));
}

/// The device of one domain does not answer; the one of another goes on by what it keeps.
pub(super) fn one_is_silent(stand: &mut Stand) {
    let other = asking_with(stand, OTHER);
    let mut one = asking(stand);
    let (mine, others) = (one.map(iovas(0x10_0000, 2)), other.map(iovas(0x20_0000, 2)));
    assert!(ask(stand, DEVICE, 0x10_1000) && ask(stand, OTHER, 0x20_0000));
    stand.rig.mute(DEVICE, true);
    // The flush is done, and what it was about goes back: behind a closed entry nothing can use it.
    one.unmap_and_free(mine);
    assert_eq!(stand.iommu.wedged_units().count(), 0);
    is_cut_off(stand, &mut one, 0x30_0000);
    // The other was told to forget meanwhile, and has asked again, or asks now.
    assert!(kept(stand, OTHER, 0x20_0000) || ask(stand, OTHER, 0x20_0000));
    assert!(kept(stand, OTHER, 0x20_0000) && other.writes(0x20_1000));
    other.unmap_and_free(others);
    assert!(!kept(stand, OTHER, 0x20_0000) && stand.rig.asks(OTHER));
    stand.rig.mute(DEVICE, false);
    comes_back(stand, &mut one, 0x10_0000);
    assert_eq!(
        (cut_off(stand), stand.iommu.wedged_units().count()),
        (vec![], 0)
    );
    drop((one.end(), other.end()));
}

#[test]
fn bc01_xsa_373_a_device_that_does_not_answer_is_cut_off_and_nobody_else() {
    on_machines(40, with_ats, one_is_silent);
}

#[test]
fn bc01_a_device_is_cut_off_over_a_queue_of_a_few_commands() {
    for log2 in [1, 2, 3] {
        let narrow = |machine: &mut Machine| {
            with_ats(machine);
            all(machine, |identity| {
                (identity.commands, identity.ril) = (log2, false)
            });
        };
        on_machines(20, narrow, one_is_silent);
    }
}

/// Two devices of one domain do not answer, a third one does.
#[test]
fn bc01_each_device_of_a_domain_that_does_not_answer_is_found() {
    let machine = |machine: &mut Machine| with_ats(machine);
    on_machines(30, machine, |stand| {
        let one = asking(stand);
        let claimed = stand.take(OTHER).claim_for_hypervisor().trust(VOUCHED);
        let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
        let tenant = one.tenant;
        if claimed.unit() != one.group.as_ref().unwrap().unit() {
            drop(one.end());
            return;
        }
        let mut other = stand.attach(claimed, &one.domain, tenant);
        other.enable_ats(OTHER, &trusted).unwrap();
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, DEVICE, 0x10_1000) && ask(stand, OTHER, 0x10_0000));
        stand.rig.mute(DEVICE, true);
        stand.rig.mute(OTHER, true);
        one.unmap_and_free(mapped);
        let mut told: Vec<_> = cut_off(stand).iter().map(|who| who.requester).collect();
        told.sort();
        assert_eq!(told, [OTHER, DEVICE]);
        assert!(!kept(stand, OTHER, 0x10_0000) && !kept(stand, DEVICE, 0x10_1000));
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        stand.rig.detaching(&[OTHER], tenant);
        drop(other.detach().unwrap());
        stand.rig.detached(&[OTHER]);
        drop(one.end());
    });
}

/// A device that does not answer when it is to be let ask is not let; nothing else changes for it.
#[test]
fn bc15_a_device_that_does_not_forget_what_it_had_is_not_let_ask() {
    on_machines(40, with_ats, |stand| {
        let claimed = stand.take(DEVICE).claim_for_hypervisor().trust(VOUCHED);
        let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
        let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let tenant = stand.tenant();
        stand.rig.forge(DEVICE, Iova::new(0x10_0000), 0x1_0100_0000);
        let mut group = stand.attach(claimed, &domain, tenant);
        stand.rig.mute(DEVICE, true);
        let refused = group.enable_ats(DEVICE, &trusted);
        let no_answer = UnitError::NoAnswer { requester: DEVICE };
        assert_eq!(refused, Err(AttachError::Unit(no_answer)));
        assert!(!stand.rig.asks(DEVICE) && !kept(stand, DEVICE, 0x10_0000));
        assert_eq!(
            (cut_off(stand), stand.iommu.wedged_units().count()),
            (vec![], 0)
        );
        let one = Kernel {
            rig: stand.rig.clone(),
            domain,
            tenant,
            group: Some(group),
        };
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(one.writes(0x10_0000) && !ask(stand, DEVICE, 0x10_0000));
        one.unmap_and_free(mapped);
        drop(one.end());
    });
}

/// At its detach, at the closing of its TLB, at a flush of everything: nobody waits for it in vain.
#[test]
fn bc01_whatever_waits_for_a_device_that_does_not_answer_goes_on() {
    on_machines(30, with_ats, |stand| {
        let one = asking(stand);
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, DEVICE, 0x10_1000));
        stand.rig.mute(DEVICE, true);
        drop(mapped);
        stand.groups.push(one.end());
        assert!(!kept(stand, DEVICE, 0x10_1000));
        stand.rig.mute(DEVICE, false);
        let mut one = asking(stand);
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, DEVICE, 0x10_1000));
        stand.rig.mute(DEVICE, true);
        let mut group = one.group.take().unwrap();
        group.disable_ats(DEVICE).unwrap();
        one.group = Some(group);
        assert!(!kept(stand, DEVICE, 0x10_1000));
        assert_eq!(cut_off(stand).len(), 1);
        one.unmap_and_free(mapped);
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        drop(one.end());
    });
}

/// A device that is pulled out at any moment of a flush.
#[test]
fn bc15_cve_2026_43130_a_device_that_is_pulled_out_during_a_flush_stops_no_unit() {
    let moment = std::cell::Cell::new(0);
    on_machines(60, with_ats, |stand| {
        let other = asking_with(stand, OTHER);
        let one = asking(stand);
        let mapped = one.map(iovas(0x10_0000, 2));
        let others = other.map(iovas(0x20_0000, 1));
        assert!(ask(stand, DEVICE, 0x10_0000) && ask(stand, OTHER, 0x20_0000));
        let rig = stand.rig.clone();
        let mut mapped = Some(mapped);
        stand.rig.between(
            moment.replace(moment.get() + 1),
            move || rig.plug(DEVICE, false),
            || one.unmap_and_free(mapped.take().unwrap()),
        );
        stand.rig.plug(DEVICE, false);
        other.unmap_and_free(others);
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        drop((one.end(), other.end()));
    });
}

/// A device may take longer than a unit may for itself.
#[test]
fn a_device_that_answers_late_costs_time_and_nothing_else() {
    on_machines(20, with_ats, |stand| {
        let one = asking(stand);
        let late = Duration::from_secs(2);
        assert!(late < DEVICE_WAIT && late > 10 * super::stand::WAIT);
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, DEVICE, 0x10_0000));
        stand.rig.answer(DEVICE, Answering::Late(late));
        let before = stand.rig.nanos();
        one.unmap_and_free(mapped);
        assert!(Duration::from_nanos(stand.rig.nanos() - before) >= late);
        assert_eq!(
            (cut_off(stand), stand.iommu.wedged_units().count()),
            (vec![], 0)
        );
        assert!(stand.rig.asks(DEVICE) && !kept(stand, DEVICE, 0x10_0000));
        // So may it when it is closed, which the unit waits for by a deadline of its own.
        let mut group = one.group;
        group.as_mut().unwrap().disable_ats(DEVICE).unwrap();
        let one = Kernel { group, ..one };
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        drop(one.end());
    });
}
