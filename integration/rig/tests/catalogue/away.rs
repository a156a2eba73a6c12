//! Who waits for a unit holds nobody back who waits for a grace period, though it stays in the hypervisor meanwhile: at each look of
//! each wait, of each call.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hv_core::platform::{Cpus, FrameSource};
use hv_iommu::{Domain, Iommu};
use hv_rig::{Driver, Machine, Rig, Vendor};

use super::stand::{
    Backend, Kernel, REMEMBERS, Stand, fault_of_the_environment, iovas, on_machines, pci, small,
};
use super::telling::{FAULTS, message, quiet, route};

/// How long units do nothing at a call.
const HANG: Duration = Duration::from_millis(3);

/// How often each call looked at a unit that it waited for.
#[derive(Default)]
pub(super) struct Looks(RefCell<BTreeMap<&'static str, u64>>);

impl Looks {
    /// Each of these calls has waited, or the test shows nothing of it.
    pub(super) fn are_of(&self, calls: &[&str]) {
        let looks = self.0.borrow();
        for call in calls {
            assert!(
                looks.get(call).is_some_and(|looks| *looks > 0),
                "{call} never waited: {looks:?}"
            );
        }
    }
}

/// A machine whose waits are looked at.
pub(super) struct Watch<'l> {
    rig: Rig,
    iommu: Iommu<Backend>,
    looks: &'l Looks,
    /// After how many steps of a call its units hang.
    later: u32,
}

impl<'l> Watch<'l> {
    pub(super) fn of(stand: &Stand, looks: &'l Looks) -> Self {
        let seed = stand.rig.machine().seed as u32;
        Self {
            rig: stand.rig.clone(),
            iommu: stand.iommu.clone(),
            looks,
            later: seed * 5,
        }
    }

    /// Has a CPU that stays in the hypervisor do `act`, with units that take their time.
    pub(super) fn away<T>(&self, call: &'static str, act: impl FnOnce() -> T) -> T {
        let (looks, held) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (iommu, all, bad) = (self.iommu.clone(), looks.clone(), held.clone());
        self.rig.watch_waits(Some(Arc::new(move |_| {
            // ORDERING: Relaxed, both, counts of this thread.
            all.fetch_add(1, Ordering::Relaxed);
            let here = iommu.platform().current_cpu();
            let is_inside = iommu.cpus_inside().any(|cpu| cpu == here);
            bad.fetch_add(is_inside.into(), Ordering::Relaxed);
        })));
        for unit in 0..self.rig.machine().units.len() {
            match self.later % 3 {
                0 => self.rig.hang(unit, HANG),
                _ => self.rig.hang_after(unit, self.later, HANG),
            }
        }
        let stay = self.iommu.enter();
        let done = act();
        drop(stay);
        self.rig.watch_waits(None);
        // ORDERING: Relaxed, as above.
        let (looks, held) = (looks.load(Ordering::Relaxed), held.load(Ordering::Relaxed));
        assert_eq!(
            held, 0,
            "{call} holds others back at so many of {looks} looks"
        );
        *self.looks.0.borrow_mut().entry(call).or_default() += looks;
        done
    }
}

/// Devices send only when they are told to, and some SMMUs take one command at a time.
pub(super) fn narrow(machine: &mut Machine) {
    quiet(machine, true);
    let few = machine.seed & 1 != 0;
    for unit in &mut machine.units {
        if let Some(identity) = unit.smmu()
            && few
        {
            identity.commands = 1;
        }
    }
}

/// The unit of a domain's group fails, which its next flush finds.
fn fail(stand: &Stand, one: &Kernel, at: u64) {
    let unit = one.group.as_ref().unwrap().unit();
    let mapped = one.map(iovas(at, 1));
    stand.rig.fail_queue(unit.index());
    // Pending until the domain ends.
    drop(one.unmap(mapped).flush().unwrap_err().pending);
    stand.rig.wedged(unit.index(), true);
}

/// One life of a device with everything that waits for a unit.
fn a_life(stand: &mut Stand, watch: &Watch<'_>) {
    let group = stand.take(pci(0, 2, 0));
    let mut one = watch.away("attach", || stand.kernel(group));
    let unit = one.group.as_ref().unwrap().unit();
    watch.away("route", || route(stand, unit, FAULTS, message(1)));
    let mapped = one.map(iovas(0x10_0000, 3));
    assert!(one.writes(0x10_0000));
    watch.away("flush", || one.unmap_and_free(mapped));
    // To another domain and back.
    let group = one.group.take().unwrap();
    let members = group.members().to_vec();
    let other = Domain::paging_domain_alloc(&group, small()).unwrap();
    stand.rig.detaching(&members, one.tenant);
    let group = watch
        .away("move", || group.replace_with_gap(&other))
        .unwrap();
    let group = group.replace_with_gap(&one.domain).unwrap();
    stand.rig.attached(&members, one.tenant);
    one.group = Some(group);
    other.destroy().unwrap().for_each(drop);
    fail(stand, &one, 0x40_0000);
    watch
        .away("reset", || stand.iommu.reset_unit(unit))
        .unwrap();
    stand.rig.wedged(unit.index(), false);
    // Its entries are taken down while the unit takes no requests.
    fail(stand, &one, 0x50_0000);
    stand.rig.detaching(&members, one.tenant);
    let stuck = one.group.take().unwrap().detach().unwrap_err();
    stand.iommu.reset_unit(unit).unwrap();
    stand.rig.wedged(unit.index(), false);
    let rest = watch.away("recover", || stuck.recover().unwrap());
    stand.rig.detached(&members);
    let group = match rest {
        hv_iommu::AtRest::AfterDriver(used) => used.without_reset(REMEMBERS),
        other => panic!("{other:?}"),
    };
    let claimed = group.claimable().unwrap().claim_for_hypervisor();
    one.group = Some(stand.attach(claimed, &one.domain, one.tenant));
    stand.rig.detaching(&members, one.tenant);
    let group = one.group.take().unwrap();
    drop(watch.away("detach", || group.detach()).unwrap());
    stand.rig.detached(&members);
    let teardown = one.domain.destroy().unwrap();
    stand.rig.ended(one.tenant);
    teardown.for_each(|frames| stand.rig.free_frames(frames));
    watch.away("shut down", || stand.iommu.shut_down()).unwrap();
    for unit in 0..stand.rig.machine().units.len() {
        stand.rig.wedged(unit, true);
    }
}

#[test]
fn bc16_who_waits_for_a_unit_holds_no_grace_period_back() {
    fault_of_the_environment();
    let looks = Looks::default();
    on_machines(30, narrow, |stand| {
        let watch = Watch::of(stand, &looks);
        a_life(stand, &watch);
    });
    looks.are_of(&["attach", "flush", "move", "reset", "detach", "shut down"]);
    if Backend::VENDOR == Vendor::Smmu {
        looks.are_of(&["route", "recover"]);
    }
}
