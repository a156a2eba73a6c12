//! Devices that keep translations (ATS) and answer when each is asked alone, but not otherwise.

use std::sync::Arc;

use hv_iommu::{CutOff, CutOffReason, TrustedDevice, UnitIndex};
use hv_rig::Answering;

use super::device_tlbs::{DEVICE, all, asking, asking_with, with_ats};
use super::silent::{OTHER, ask, kept};
use super::stand::{Kernel, Stand, iovas, on_machines};

/// How often that is borne with.
const BORNE: u64 = 4;
const VOUCHED: &str = "the rig's own";

/// Devices do nothing by themselves: one that asks at random for what is not mapped is cut off for that in the end.
fn calm(machine: &mut hv_rig::Machine) {
    with_ats(machine);
    machine.temper.background = false;
}

/// How often the units stood, and everybody answered when asked alone.
fn alone(stand: &Stand) -> u64 {
    let units = (0..stand.rig.machine().units.len()).filter_map(UnitIndex::new);
    let of = |unit| stand.iommu.unit_troubles(unit).unwrap().answered_alone;
    units.map(of).sum()
}

/// Who was cut off since the last look because it does not answer. Others may be for what they do by themselves.
fn cut_off(stand: &Stand) -> Vec<CutOff> {
    let mut found = super::silent::cut_off(stand);
    found.retain(|who| who.reason == CutOffReason::NoAnswer);
    found
}

/// A page that the device was given comes back.
fn round(stand: &Stand, one: &Kernel) {
    let mapped = one.map(iovas(0x10_0000, 2));
    ask(stand, DEVICE, 0x10_1000);
    one.unmap_and_free(mapped);
    assert!(!kept(stand, DEVICE, 0x10_1000));
}

#[test]
fn bc01_a_device_that_answers_only_alone_is_borne_with_for_a_while_and_counted() {
    on_machines(30, calm, |stand| {
        let other = asking_with(stand, OTHER);
        let one = asking(stand);
        stand.rig.answer(DEVICE, Answering::NotForPages);
        for times in 1..BORNE {
            round(stand, &one);
            assert_eq!((alone(stand), cut_off(stand)), (times, vec![]));
            assert!(stand.rig.asks(DEVICE));
        }
        // One time too many: like one that never answers.
        round(stand, &one);
        let told = cut_off(stand);
        let [who] = told[..] else { panic!("{told:?}") };
        assert_eq!(
            (who.requester, who.reason),
            (DEVICE, CutOffReason::NoAnswer)
        );
        assert!(!stand.rig.asks(DEVICE) && stand.rig.asks(OTHER));
        // From here on nobody waits for it.
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(!ask(stand, DEVICE, 0x10_0000));
        one.unmap_and_free(mapped);
        assert_eq!(alone(stand), BORNE);
        let others = other.map(iovas(0x20_0000, 2));
        assert!(ask(stand, OTHER, 0x20_0000) && kept(stand, OTHER, 0x20_0000));
        other.unmap_and_free(others);
        assert!(!kept(stand, OTHER, 0x20_0000));
        assert_eq!(
            (cut_off(stand), stand.iommu.wedged_units().count()),
            (vec![], 0)
        );
        drop((one.end(), other.end()));
    });
}

/// Closed and opened again it starts anew.
#[test]
fn a_device_that_answers_only_alone_is_counted_from_its_opening_on() {
    on_machines(12, with_ats, |stand| {
        let claimed = stand.take(DEVICE).claim_for_hypervisor().trust(VOUCHED);
        let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
        let domain =
            hv_iommu::Domain::paging_domain_alloc(&claimed, super::stand::small()).unwrap();
        let tenant = stand.tenant();
        let mut group = stand.attach(claimed, &domain, tenant);
        group.enable_ats(DEVICE, &trusted).unwrap();
        let rig = stand.rig.clone();
        let mut one = Kernel {
            rig,
            domain,
            tenant,
            group: Some(group),
        };
        stand.rig.answer(DEVICE, Answering::NotForPages);
        for _ in 0..3 {
            for _ in 1..BORNE {
                round(stand, &one);
            }
            let mut group = one.group.take().unwrap();
            group.disable_ats(DEVICE).unwrap();
            group.enable_ats(DEVICE, &trusted).unwrap();
            one.group = Some(group);
        }
        assert_eq!((alone(stand), cut_off(stand)), (3 * (BORNE - 1), vec![]));
        drop(one.end());
    });
}

/// Of two devices of one domain, asked together, one answers only when it is asked alone: the other is not taken for it.
#[test]
fn bc01_who_was_asked_beside_it_is_not_cut_off_for_it() {
    on_machines(30, calm, |stand| {
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
        stand.rig.answer(DEVICE, Answering::NotForPages);
        // The first time it is not known which of the two it was; from then on each is asked with a sync of its own.
        for times in 1..=BORNE {
            round(stand, &one);
            assert_eq!((alone(stand), cut_off(stand)), (times, vec![]));
        }
        round(stand, &one);
        let told = cut_off(stand);
        let [who] = told[..] else { panic!("{told:?}") };
        assert_eq!(who.requester, DEVICE);
        assert!(stand.rig.asks(OTHER) && !stand.rig.asks(DEVICE));
        let mapped = one.map(iovas(0x20_0000, 2));
        assert!(ask(stand, OTHER, 0x20_0000));
        one.unmap_and_free(mapped);
        assert!(!kept(stand, OTHER, 0x20_0000));
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        stand.rig.detaching(&[OTHER], tenant);
        drop(other.detach().unwrap());
        stand.rig.detached(&[OTHER]);
        drop(one.end());
    });
}

/// Several flushes that wait at once are one time, not several.
#[test]
fn many_that_wait_for_it_are_one_time() {
    on_machines(12, with_ats, |stand| {
        let one = Arc::new(asking(stand));
        stand.rig.answer(DEVICE, Answering::NotForPages);
        let (first, second) = (one.map(iovas(0x10_0000, 1)), one.map(iovas(0x20_0000, 1)));
        assert!(ask(stand, DEVICE, 0x10_0000) && ask(stand, DEVICE, 0x20_0000));
        let its = one.clone();
        stand.rig.between(
            200,
            move || its.unmap_and_free(first),
            || one.unmap_and_free(second),
        );
        assert!((1..=2).contains(&alone(stand)), "{}", alone(stand));
        assert_eq!(cut_off(stand), []);
        drop(Arc::into_inner(one).unwrap().end());
    });
}

/// A queue of a few commands does not remember who was asked.
#[test]
fn a_device_that_answers_only_alone_harms_nobody_over_a_queue_of_a_few_commands() {
    for log2 in [1, 2, 3] {
        let narrow = |machine: &mut hv_rig::Machine| {
            with_ats(machine);
            all(machine, |identity| {
                (identity.commands, identity.ril) = (log2, false)
            });
        };
        on_machines(8, narrow, |stand| {
            let one = asking(stand);
            stand.rig.answer(DEVICE, Answering::NotForPages);
            for _ in 0..=BORNE {
                round(stand, &one);
            }
            assert!(alone(stand) >= 1);
            assert_eq!(stand.iommu.wedged_units().count(), 0);
            drop(one.end());
        });
    }
}
