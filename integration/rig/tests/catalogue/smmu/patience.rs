//! Several devices that do not answer, several flushes that wait for one, and resets in the middle: what it costs the others.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use hv_core::PciAddress;
use hv_iommu::{Config, TrustedDevice};
use hv_rig::{Answering, Driver, Rig};

use super::Backend;
use super::device_tlbs::{DEVICE, asking, asking_with, with_ats};
use super::silent::{OTHER, ask, cut_off, kept};
use super::stand::{BAD, Stand, WAIT, drawn, iovas, pci};

/// A third device.
const THIRD: PciAddress = pci(1, 0, 0);
const VOUCHED: &str = "the rig's own";

/// What the bus gives a device, in the tests below: two of that are less than a wait may take, three are more.
const GIVEN: Duration = Duration::from_secs(80);
const PATIENT: Duration = Duration::from_secs(200);

/// Machines with such a bus, whose hypervisor waits for devices as long as it should.
fn on_patient_machines(seeds: u64, test: impl Fn(&mut Stand)) {
    for seed in 0..seeds {
        let mut machine = drawn(seed);
        machine.temper = BAD;
        with_ats(&mut machine);
        let rig = Rig::new(machine).unwrap();
        let backend = Backend::start(&rig);
        let config = Config {
            wait: WAIT,
            device_wait: PATIENT,
            ..Config::default()
        };
        let mut stand = Stand::with_config(rig, backend, config);
        test(&mut stand);
        stand.check();
    }
}

type Flush = Box<dyn FnOnce() + Send>;

/// Each flush begins in the middle of the one before, on another CPU.
fn one_in_another(rig: &Rig, mut flushes: Vec<Flush>) {
    let Some(flush) = flushes.pop() else { return };
    let others = rig.clone();
    // Each has told the unit by then, and waits.
    rig.between(200, move || one_in_another(&others, flushes), flush);
}

/// Who was told to be cut off, sorted, and that no unit was wedged.
fn told(stand: &Stand) -> Vec<PciAddress> {
    let mut told: Vec<_> = cut_off(stand).iter().map(|who| who.requester).collect();
    told.sort();
    assert_eq!(stand.iommu.wedged_units().count(), 0);
    told
}

#[test]
fn bc01_one_dead_device_costs_the_same_however_many_flushes_ask_it() {
    on_patient_machines(12, |stand| {
        let other = asking_with(stand, OTHER);
        let one = Arc::new(asking(stand));
        let others = other.map(iovas(0x20_0000, 2));
        assert!(ask(stand, OTHER, 0x20_0000));
        let mut flushes: Vec<Flush> = Vec::new();
        for index in 0..6 {
            let at = 0x10_0000 + index * 0x10_0000;
            let mapped = one.map(iovas(at, 1));
            assert!(ask(stand, DEVICE, at));
            let one = one.clone();
            flushes.push(Box::new(move || one.unmap_and_free(mapped)));
        }
        // One of the other's among them: it is not closed, and what it keeps is forgotten by then.
        let other = Arc::new(other);
        let its = other.clone();
        flushes.insert(2, Box::new(move || its.unmap_and_free(others)));
        stand.rig.answer(DEVICE, Answering::NotWithin(GIVEN));
        let before = stand.rig.nanos();
        one_in_another(&stand.rig, flushes);
        let took = Duration::from_nanos(stand.rig.nanos() - before);
        assert!(took >= 2 * GIVEN, "{took:?}");
        assert!(took < 2 * GIVEN + GIVEN / 2, "{took:?}");
        assert_eq!(told(stand), [DEVICE]);
        assert!(!stand.rig.asks(DEVICE) && stand.rig.asks(OTHER));
        assert!(!kept(stand, DEVICE, 0x10_0000) && !kept(stand, OTHER, 0x20_0000));
        let one = Arc::into_inner(one).unwrap();
        let other = Arc::into_inner(other).unwrap();
        let mapped = other.map(iovas(0x20_0000, 2));
        assert!(ask(stand, OTHER, 0x20_0000) && kept(stand, OTHER, 0x20_0000));
        other.unmap_and_free(mapped);
        drop((one.end(), other.end()));
    });
}

/// Whoever finds the three out takes longer than any wait; the others wait on.
#[test]
fn bc01_who_waits_while_several_dead_functions_are_found_waits_on() {
    let most = Cell::new(0);
    on_patient_machines(4, |stand| {
        let one = asking(stand);
        let tenant = one.tenant;
        let mut dead = vec![DEVICE];
        let mut groups = Vec::new();
        for device in [OTHER, THIRD] {
            let claimed = stand.take(device).claim_for_hypervisor().trust(VOUCHED);
            if claimed.unit() != one.group.as_ref().unwrap().unit() {
                continue;
            }
            let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
            let mut group = stand.attach(claimed, &one.domain, tenant);
            group.enable_ats(device, &trusted).unwrap();
            groups.push(group);
            dead.push(device);
        }
        dead.sort();
        most.set(most.get().max(dead.len()));
        let ranges: Vec<_> = (1..5).map(|index| one.map(iovas(index << 20, 1))).collect();
        for device in &dead {
            assert!(ask(stand, *device, 1 << 20));
            stand.rig.answer(*device, Answering::NotWithin(GIVEN));
        }
        let before = stand.rig.nanos();
        let domain = &one.domain;
        stand.rig.take_turns();
        let pending: Vec<_> = ranges.into_iter().map(|range| one.unmap(range)).collect();
        let flushed: Vec<_> = std::thread::scope(|scope| {
            let cpus = pending.into_iter().map(|pending| {
                scope.spawn(move || {
                    let _stay = domain;
                    pending.flush()
                })
            });
            let cpus: Vec<_> = cpus.collect();
            cpus.into_iter().map(|cpu| cpu.join().unwrap()).collect()
        });
        let took = Duration::from_nanos(stand.rig.nanos() - before);
        assert!(took >= (1 + dead.len() as u32) * GIVEN, "{took:?}");
        for flushed in flushed {
            let (free, frames) = flushed.unwrap();
            one.returned(free.span(), &frames);
            stand.give_back(frames);
            free.release().unwrap();
        }
        assert_eq!(told(stand), dead);
        for device in &dead {
            assert!(!stand.rig.asks(*device) && !kept(stand, *device, 1 << 20));
        }
        for group in groups {
            let members = group.members().to_vec();
            stand.rig.detaching(&members, tenant);
            drop(group.detach().unwrap());
            stand.rig.detached(&members);
        }
        drop(one.end());
    });
    // On no machine with fewer would anybody wait for longer than one wait may take.
    assert_eq!(most.get(), 3);
}

/// What a queue was at when it was turned off goes on, and a reset's own syncs wait for that and stop (IHI 0070, 6.3.9.3).
#[test]
fn bc15_a_reset_goes_on_past_devices_that_were_asked_before_it() {
    on_patient_machines(30, |stand| {
        let one = asking(stand);
        let unit = one.group.as_ref().unwrap().unit();
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(ask(stand, DEVICE, 0x10_1000));
        // The unit takes longer to find it out than anybody waits.
        let longer = Answering::NotWithin(PATIENT + GIVEN);
        stand.rig.answer(DEVICE, longer);
        let pending = one.unmap(mapped).flush().err().unwrap().pending;
        stand.rig.wedged(unit.index(), true);
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(unit.index(), false);
        assert!(!kept(stand, DEVICE, 0x10_1000));
        let (free, frames) = pending.flush().unwrap();
        one.returned(free.span(), &frames);
        stand.give_back(frames);
        free.release().unwrap();
        drop(one.end());
    });
}
