//! Live entries that become other ones: between a guest's second stage and first stages on top of it no request is refused, and
//! nothing of the entry that was is used behind the switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hv_core::{Access, Gpa, Iova, PciAddress};
use hv_iommu::{AttachError, Domain, FaultBudget, FaultNotice, ReplaceFailed, UnitError};
use hv_rig::nest::Nest;
use hv_rig::{Driver, Machine, Outcome, Refusing, Rig};

use super::Backend;
use super::stand::{BAD, Stand, drawn, iovas, on_machines, pci, small};

const DEVICE: PciAddress = pci(0, 2, 0);
/// A page that is where the guest has it, whichever way the device goes.
const SAME: u64 = 20;

/// Devices send only when they are told to: at any other address, what they reach depends on the way.
fn nesting(machine: &mut Machine) {
    machine.set_nesting();
    machine.temper.background = false;
    for unit in &mut machine.units {
        unit.smmu().unwrap().substream_bits = 8;
    }
}

fn nest(stand: &mut Stand) -> Nest {
    super::stand::fault_of_the_environment();
    let group = stand.take(DEVICE);
    let nest = Nest::new(&stand.rig, group, 0).unwrap();
    nest.map(None, 0, SAME, SAME);
    // The other first stage, a context further on: another page for the same address, under the same ASID.
    nest.stage.set_context(1, 1, 1);
    nest.stage.map(1, page(SAME), Gpa::new(SAME << 12));
    nest
}

/// The entry of the other first stage.
fn other(nest: &Nest) -> [u64; 8] {
    let mut entry = nest.stage.entry(0);
    entry[0] += 64;
    entry
}

const fn page(number: u64) -> Iova {
    Iova::new(number << 12)
}

fn send(rig: &Rig, at: u64) -> Outcome {
    let read = rig.access(DEVICE, page(at), Access::Read);
    let written = rig.access(DEVICE, page(at), Access::Write);
    match read {
        Outcome::Reached { .. } => written,
        refused => refused,
    }
}

fn reaches(rig: &Rig, at: u64) -> bool {
    matches!(send(rig, at), Outcome::Reached { .. })
}

/// Numbers of steps that come ever further apart.
fn steps() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(0), |step| Some(step + 1 + step / 24))
}

/// At each step of `act`, a request is sent in the middle of it. Says how many there were.
fn while_sending(rig: &Rig, at: u64, act: impl FnOnce()) -> bool {
    let (inner, refused) = (rig.clone(), Arc::new(AtomicUsize::new(0)));
    let count = refused.clone();
    let sends = move || {
        let sent = usize::from(!reaches(&inner, SAME));
        count.fetch_add(sent, Ordering::Relaxed);
    };
    let came = rig.between(at, sends, act);
    let refused = refused.load(Ordering::Relaxed);
    assert_eq!(refused, 0, "refused after {at} steps");
    came
}

#[test]
fn bc05_no_request_is_refused_while_a_guest_turns_its_first_stage_on_and_off() {
    on_machines(6, nesting, |stand| {
        let mut nest = nest(stand);
        let rig = stand.rig.clone();
        let mut last = 0;
        for step in steps() {
            assert!(reaches(&rig, SAME));
            let off = while_sending(&rig, step, || nest.to_parent().unwrap());
            assert!(reaches(&rig, SAME));
            let on = while_sending(&rig, step, || nest.to_nested().unwrap());
            let entry = match step % 2 {
                0 => other(&nest),
                _ => nest.stage.entry(0),
            };
            let over = while_sending(&rig, step, || nest.to_other(&entry).unwrap());
            if !off && !on && !over {
                last = step;
                break;
            }
        }
        assert!(last > 20, "{last} steps");
        drop(nest.end().unwrap());
    });
}

/// The guest changes its tables while nothing goes by them, and says nothing: behind the switch they are read anew. And what
/// one first stage gave is not used for the other, under the same ASID.
#[test]
fn bc03_nothing_that_an_entry_gave_is_used_when_it_has_become_another_one() {
    on_machines(40, nesting, |stand| {
        let mut nest = nest(stand);
        let rig = stand.rig.clone();
        nest.map(None, 0, 10, 22);
        for round in 0..4 {
            let to = |number: u64| 16 + (round * 5 + number) % 12;
            assert!((0..3).all(|_| reaches(&rig, 10)));
            nest.to_parent().unwrap();
            // There it is the page of this number.
            assert!((0..3).all(|_| reaches(&rig, 10)));
            nest.going(None, 10);
            nest.stage.unmap(0, page(10));
            nest.gone(None, 10);
            nest.map(None, 0, 10, to(0));
            nest.to_nested().unwrap();
            assert!((0..3).all(|_| reaches(&rig, 10)));
            // The other one has another page there.
            nest.stage.map(1, page(10), Gpa::new(to(1) << 12));
            let entry = other(&nest);
            nest.to_other(&entry).unwrap();
            nest.going(None, 10);
            nest.gone(None, 10);
            nest.coming(None, 10, to(1));
            nest.came(None, 10);
            assert!((0..3).all(|_| reaches(&rig, 10)));
            let entry = nest.stage.entry(0);
            nest.to_other(&entry).unwrap();
            nest.going(None, 10);
            nest.gone(None, 10);
            nest.coming(None, 10, to(0));
            nest.came(None, 10);
            assert!((0..3).all(|_| reaches(&rig, 10)));
        }
        drop(nest.end().unwrap());
    });
}

/// Pairs of entries that differ in more than one store changes: refused by name, with nothing changed.
#[test]
fn what_one_store_does_not_change_is_refused_and_goes_on_as_it_was() {
    on_machines(10, nesting, |stand| {
        let group = stand.take(pci(0, 1, 0));
        let mut one = stand.kernel(group);
        let mapped = one.map(iovas(0x10_0000, 1));
        let group = one.group.take().unwrap();
        let two = Domain::paging_domain_alloc(&group, small()).unwrap();
        let gapless = group.gapless().unwrap();
        let requester = group.members()[0];
        let Err(ReplaceFailed::Refused { group, error }) = group.replace(&two, &gapless) else {
            panic!("replaced");
        };
        assert_eq!(error, AttachError::Unit(UnitError::NeedsGap { requester }));
        assert!(error.to_string().contains("replace_with_gap"), "{error}");
        one.group = Some(group);
        assert!(one.writes(0x10_0000));
        one.unmap_and_free(mapped);
        two.destroy().unwrap().for_each(drop);
        drop(one.end());
        // Another word for requests without a substream, beside more contexts.
        let mut nest = nest(stand);
        let more = nest.stage.entry(4);
        let refused = nest.to_other(&more).unwrap_err();
        assert!(refused.contains("replace_with_gap"), "{refused}");
        assert!(reaches(&stand.rig, SAME));
        drop(nest.end().unwrap());
    });
    let alone = |machine: &mut Machine| {
        nesting(machine);
        for unit in &mut machine.units {
            unit.smmu().unwrap().first_stage = false;
            unit.smmu().unwrap().substream_bits = 0;
        }
    };
    on_machines(4, alone, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        assert!(one.group.as_ref().unwrap().gapless().is_none());
        drop(one.end());
    });
}

/// The unit stops at any moment of a switch: what is left is a group on one of the two, or a wedged one, of which nothing
/// passes and which recovers.
#[test]
fn bc05_xsa_400_a_switch_that_stops_in_the_middle_leaves_one_of_two_or_nothing() {
    on_machines(4, nesting, |stand| {
        let (mut wedged, mut whole) = (0, 0);
        for step in steps().take(100) {
            let mut nest = nest(stand);
            let rig = stand.rig.clone();
            let unit = nest.group.as_ref().unwrap().unit();
            rig.hang_after(unit.index(), step as u32, Duration::from_secs(60));
            match nest.to_parent() {
                Ok(()) => {
                    whole += 1;
                    rig.wake(unit.index());
                    assert!(reaches(&rig, SAME));
                    stand.groups.push(nest.end().unwrap().claimable().unwrap());
                }
                Err(why) => {
                    wedged += 1;
                    assert!(why.contains("wedged"), "{why}");
                    rig.wedged(unit.index(), true);
                    assert!(!rig.may_send(DEVICE));
                    rig.wake(unit.index());
                    stand.iommu.reset_unit(unit).unwrap();
                    rig.wedged(unit.index(), false);
                    let back = nest.recover().unwrap();
                    stand.groups.push(back.claimable().unwrap());
                }
            }
        }
        assert!(wedged > 2 && whole > 2, "{wedged} and {whole}");
    });
}

/// From some moment of a switch on the unit refuses to read entries anew. A switch that is said to have been made was made, and
/// one that was not leaves a group that recovers.
#[test]
fn bc01_a_switch_that_the_unit_refuses_to_read_is_not_said_to_have_been_made() {
    on_machines(4, nesting, |stand| {
        let (mut stopped, mut whole) = (0, 0);
        for step in steps().take(80) {
            let mut nest = nest(stand);
            let rig = stand.rig.clone();
            let unit = nest.group.as_ref().unwrap().unit();
            nest.to_parent().unwrap();
            let (inner, index) = (rig.clone(), unit.index());
            let refuses = move || inner.refuse(index, Refusing::Configuration);
            let mut switched = Ok(());
            rig.between(step, refuses, || switched = nest.to_nested());
            rig.refuse(index, Refusing::Nothing);
            match switched {
                Ok(()) => {
                    whole += 1;
                    assert!(reaches(&rig, SAME));
                    assert!(!reaches(&rig, SAME + 2), "by the parent alone, {step}");
                    stand.groups.push(nest.end().unwrap().claimable().unwrap());
                }
                Err(why) => {
                    stopped += 1;
                    assert!(why.contains("wedged"), "{why}");
                    rig.wedged(index, true);
                    assert!(!rig.may_send(DEVICE));
                    stand.iommu.reset_unit(unit).unwrap();
                    rig.wedged(index, false);
                    let back = nest.recover().unwrap();
                    stand.groups.push(back.claimable().unwrap());
                }
            }
        }
        assert!(stopped > 2 && whole > 2, "{stopped} and {whole}");
    });
}

/// A machine whose device sends whatever its bus master bit says, and may cause no fault.
fn unruly() -> Stand {
    let with_seed = |seed| {
        let mut machine = drawn(seed);
        nesting(&mut machine);
        (machine.temper, machine.temper.background) = (BAD, false);
        machine.temper.rogues = true;
        let rig = Rig::new(machine).unwrap();
        let backend = Backend::start(&rig);
        let none = FaultBudget {
            faults: 0,
            within: Duration::from_secs(3600),
        };
        Stand::with_budget(rig, backend, none)
    };
    let ignores_its_bit = |stand: &Stand| {
        let sent = stand.rig.access(DEVICE, page(0), Access::Read);
        stand.iommu.take_faults(|_| ());
        !matches!(sent, Outcome::Lost)
    };
    (0..64).map(with_seed).find(ignores_its_bit).unwrap()
}

/// Its entry aborts from then on, and goes on doing so, whatever the switch is about to store.
#[test]
fn bc19_a_device_that_is_cut_off_while_its_entry_is_switched_reaches_nothing() {
    let mut cut = 0;
    for step in steps() {
        let mut stand = unruly();
        let mut nest = nest(&mut stand);
        let (rig, iommu) = (stand.rig.clone(), stand.iommu.clone());
        let is_cut = Arc::new(AtomicUsize::new(0));
        let told = is_cut.clone();
        let faults = move || {
            // Nobody has anything there.
            rig.access(DEVICE, page(40), Access::Read);
            for _ in 0..100 {
                iommu.take_faults(|notice| {
                    let cut = usize::from(matches!(notice, FaultNotice::CutOff(_)));
                    told.fetch_add(cut, Ordering::Relaxed);
                });
            }
        };
        let came = stand.rig.between(step, faults, || match nest.to_parent() {
            Ok(()) => {}
            Err(why) => assert!(why.contains("cut off"), "{why}"),
        });
        if is_cut.load(Ordering::Relaxed) != 0 {
            cut += 1;
            stand.rig.detaching(&[DEVICE], Nest::DEVICES);
            stand.rig.idle(4000);
            for at in [SAME, SAME + 1] {
                let sent = stand.rig.access(DEVICE, page(at), Access::Write);
                assert!(
                    !matches!(sent, Outcome::Reached { .. }),
                    "after {step}: {sent:?}"
                );
            }
        }
        drop(nest.end().unwrap());
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        stand.check();
        if !came {
            break;
        }
    }
    assert!(cut > 20, "{cut} times");
}
