//! Waits that only SMMUs have, for devices and guests: whoever waits holds nobody back there either.

use std::time::Duration;

use hv_core::{Access, Iova};
use hv_iommu::{Config, Domain, FaultBudget, FaultNotice, TrustedDevice};
use hv_rig::nest::Nest;
use hv_rig::{Driver, GuestStage, Machine, Rig};

use super::Backend;
use super::away::{Looks, Watch, narrow};
use super::device_tlbs::{DEVICE, with_ats};
use super::pasids::{open, pasid, with_pasids};
use super::stand::{
    BAD, Kernel, Stand, WAIT, drawn, fault_of_the_environment, iovas, on_machines, pci, small,
};

const VOUCHED: &str = "the rig's own";

#[test]
fn bc16_who_waits_for_a_device_that_keeps_translations_holds_no_grace_period_back() {
    fault_of_the_environment();
    let looks = Looks::default();
    let asking = |machine: &mut Machine| {
        narrow(machine);
        with_ats(machine);
    };
    on_machines(16, asking, |stand| {
        let watch = Watch::of(stand, &looks);
        let claimed = stand.take(DEVICE).claim_for_hypervisor().trust(VOUCHED);
        let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
        let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
        let tenant = stand.tenant();
        let mut group = stand.attach(claimed, &domain, tenant);
        watch
            .away("enable_ats", || group.enable_ats(DEVICE, &trusted))
            .unwrap();
        let mut one = Kernel {
            rig: stand.rig.clone(),
            domain,
            tenant,
            group: Some(group),
        };
        let mapped = one.map(iovas(0x10_0000, 3));
        stand.rig.ask(DEVICE, Iova::new(0x10_1000), Access::Write);
        watch.away("flush of a device's TLB", || one.unmap_and_free(mapped));
        let group = one.group.as_mut().unwrap();
        watch
            .away("disable_ats", || group.disable_ats(DEVICE))
            .unwrap();
        drop(one.end());
    });
    looks.are_of(&["enable_ats", "flush of a device's TLB", "disable_ats"]);
}

/// Two answers that nobody waits for are all that the queue takes.
#[test]
fn bc16_who_waits_for_room_with_a_flush_holds_no_grace_period_back() {
    fault_of_the_environment();
    let looks = Looks::default();
    let full = |machine: &mut Machine| {
        narrow(machine);
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.ats, identity.pri, identity.commands) = (true, true, 1);
        }
    };
    on_machines(16, full, |stand| {
        let watch = Watch::of(stand, &looks);
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit().index();
        let mapped = one.map(iovas(0x10_0000, 1));
        assert!(one.writes(0x10_0000));
        stand.rig.hang(unit, Duration::from_millis(3));
        stand.rig.ask_for_page(DEVICE, Iova::new(0x1000), 7, true);
        stand.iommu.take_faults(|_| ());
        let (span, pending) = (mapped.span(), one.unmap(mapped));
        let flushed = watch.away("a flush", || pending.flush().unwrap());
        one.returned(span, &flushed.1);
        stand.give_back(flushed.1);
        flushed.0.release().unwrap();
        drop(one.end());
    });
    looks.are_of(&["a flush"]);
}

#[test]
fn bc16_who_binds_a_pasid_holds_no_grace_period_back() {
    fault_of_the_environment();
    let looks = Looks::default();
    let with = |machine: &mut Machine| {
        narrow(machine);
        with_pasids(machine);
    };
    on_machines(16, with, |stand| {
        let watch = Watch::of(stand, &looks);
        let mut opened = open(stand);
        let to = &opened.more[0];
        let (device, tenant) = ([DEVICE], to.tenant);
        stand.rig.attaching_pasid(&device, pasid(1), tenant);
        let group = &opened.group;
        let held = watch.away("attach_pasid", || {
            group.attach_pasid(DEVICE, pasid(1), &to.domain).unwrap()
        });
        stand.rig.attached_pasid(&device, pasid(1), tenant);
        stand.rig.detaching_pasid(&device, pasid(1), tenant);
        stand.rig.detaching(&opened.members, opened.own.tenant);
        let parked = watch.away("park", || opened.group.park().unwrap());
        let group = watch.away("unpark", || parked.unpark().unwrap());
        stand.rig.attached(&opened.members, opened.own.tenant);
        watch
            .away("detach_pasid", || group.detach_pasid(held))
            .unwrap();
        stand.rig.detached_pasid(&device, pasid(1));
        opened.group = group;
        opened.end(stand);
    });
    looks.are_of(&["attach_pasid", "park", "unpark", "detach_pasid"]);
}

#[test]
fn bc16_who_waits_for_a_guests_first_stage_holds_no_grace_period_back() {
    fault_of_the_environment();
    let looks = Looks::default();
    let nesting = |machine: &mut Machine| {
        narrow(machine);
        machine.set_nesting();
    };
    on_machines(16, nesting, |stand| {
        let watch = Watch::of(stand, &looks);
        let group = stand.take(DEVICE);
        let mut nest = Nest::new(&stand.rig, group, 0).unwrap();
        watch.away("detach", || nest.step_out().unwrap());
        watch.away("attach", || nest.step_in().unwrap());
        let all: Vec<_> = (0..9)
            .map(|page| GuestStage::forget_page(1, Iova::new(page << 12)))
            .collect();
        watch.away("invalidate", || nest.command(&all).unwrap());
        watch.away("replace", || {
            nest.to_parent().unwrap();
            nest.to_nested().unwrap();
        });
        drop(nest.end().unwrap());
    });
    looks.are_of(&["detach", "attach", "invalidate", "replace"]);
}

/// A stand whose groups may cause hardly a fault.
fn without_budget(seed: u64, change: impl Fn(&mut Machine)) -> Stand {
    let mut machine = drawn(seed);
    machine.temper = BAD;
    change(&mut machine);
    let rig = Rig::new(machine).unwrap();
    let backend = Backend::start(&rig);
    let config = Config {
        wait: WAIT,
        faults: FaultBudget {
            faults: 2,
            within: Duration::from_secs(3600),
        },
        ..Config::default()
    };
    Stand::with_config(rig, backend, config)
}

/// What stands still is answered, and what was cut off is read anew, through a queue that is full; and who asks for pages though it
/// is let nothing has that queue turned off.
#[test]
fn bc16_who_looks_at_faults_holds_no_grace_period_back() {
    fault_of_the_environment();
    let looks = Looks::default();
    let waiting = |machine: &mut Machine| {
        narrow(machine);
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.stall_model, identity.events, identity.commands) = (2, 4, 1);
            (identity.ats, identity.pri) = (true, true);
        }
    };
    for seed in 0..16 {
        let mut stand = without_budget(seed, waiting);
        let watch = Watch::of(&stand, &looks);
        let devices = [DEVICE, pci(0, 1, 0), pci(1, 0, 0)];
        let kernels = devices.map(|device| {
            let group = stand.take(device);
            stand.kernel(group)
        });
        let take = |call| {
            let mut cut = false;
            watch.away(call, || {
                stand
                    .iommu
                    .take_faults(|notice| cut |= matches!(notice, FaultNotice::CutOff(_)))
            });
            (0..stand.rig.machine().units.len()).for_each(|unit| stand.rig.wake(unit));
            stand.rig.idle(2000);
            cut
        };
        let mut rounds = 0;
        while {
            for device in devices {
                stand
                    .rig
                    .access(device, Iova::new(0x20_0000), Access::Write);
            }
            !take("a look at faults")
        } {
            rounds += 1;
            assert!(rounds < 10);
        }
        for group in 0..4 {
            let at = Iova::new(0x1000);
            stand.rig.ask_for_page(DEVICE, at, group, true);
        }
        take("a look at requests for pages");
        kernels.into_iter().for_each(|one| drop(one.end()));
        stand.check();
    }
    looks.are_of(&["a look at faults", "a look at requests for pages"]);
}
