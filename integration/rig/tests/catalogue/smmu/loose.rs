//! Devices that keep translations (ATS) and cause too many faults: cut off at any moment, they send by nothing that they keep.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, KernelPaging, PciAddress};
use hv_iommu::{
    AttachError, Attached, Domain, FaultBudget, FaultClass, FaultDetail, FaultNotice, FaultStage,
    Group, Iommu, RawFault, TrustedDevice, UnitIndex,
};
use hv_rig::{Driver, Machine, Outcome, Rig, Vendor};

use super::Backend;
use super::device_tlbs::{DEVICE, with_ats};
use super::stand::{Kernel, REMEMBERS, Stand, fault_of_the_environment, iovas, small};

const VOUCHED: &str = "the rig's own";
/// Nothing is mapped there.
const ASTRAY: u64 = 0x70_0000;

/// A machine with a device that sends whatever its bus master bit says, whose groups may cause no fault. `more` is what
/// else it is.
pub(super) fn stand_with(more: impl Fn(&mut Machine), loose: PciAddress) -> Stand {
    fault_of_the_environment();
    let with_seed = |seed| {
        let mut machine = super::suited(Machine::calm_of(Vendor::Smmu));
        with_ats(&mut machine);
        more(&mut machine);
        (machine.seed, machine.temper.rogues) = (seed, true);
        let rig = Rig::new(machine).unwrap();
        let backend = Backend::start(&rig);
        let none = FaultBudget {
            faults: 0,
            within: Duration::from_secs(3600),
        };
        Stand::with_budget(rig, backend, none)
    };
    let ignores_its_bit = |stand: &Stand| {
        let sent = stand.rig.access(loose, Iova::new(0), Access::Read);
        stand.iommu.take_faults(|_| ());
        !matches!(sent, Outcome::Lost)
    };
    (0..64).map(with_seed).find(ignores_its_bit).unwrap()
}

fn stand() -> Stand {
    stand_with(|_| (), DEVICE)
}

type Mine = Group<Backend, Attached<KernelPaging, Backend>>;

/// The device in a domain of its own, and whose word there is for it.
fn attached(stand: &mut Stand) -> (Kernel, TrustedDevice<Backend>) {
    let claimed = stand.take(DEVICE).claim_for_hypervisor().trust(VOUCHED);
    let trusted = TrustedDevice::vouch_for(&claimed, VOUCHED);
    let domain = Domain::paging_domain_alloc(&claimed, small()).unwrap();
    let tenant = stand.tenant();
    let group: Mine = stand.attach(claimed, &domain, tenant);
    let one = Kernel {
        rig: stand.rig.clone(),
        domain,
        tenant,
        group: Some(group),
    };
    (one, trusted)
}

/// One fault more than the budget allows.
fn fault(rig: &Rig, iommu: &Iommu<Backend>) {
    rig.access(DEVICE, Iova::new(ASTRAY), Access::Read);
    // It may take the unit a while to record it.
    let mut told = false;
    for _ in 0..100 {
        iommu.take_faults(|notice| told |= matches!(notice, FaultNotice::CutOff(_)));
    }
    assert!(told);
}

/// No fault of the device is recorded any more, and nothing of it passes that is not translated by its unit.
fn is_quiet(stand: &Stand, one: &Kernel, at: u64) {
    // The unit reads entries anew when it is told to.
    stand.rig.idle(1000);
    for page in 1..4 {
        let address = Iova::new(ASTRAY + page * 0x1000);
        let Outcome::Faulted { reason } = stand.rig.access(DEVICE, address, Access::Write) else {
            continue;
        };
        let unit = one.group.as_ref().unwrap().unit().index();
        for stage in [None, Some(FaultStage::First), Some(FaultStage::Second)] {
            let fault = RawFault {
                requester: DEVICE,
                pasid: None,
                address,
                access: Access::Write,
                class: FaultClass::NotPermitted,
                stage,
                detail: FaultDetail::default(),
                code: reason.into(),
            };
            assert!(
                !stand.rig.recorded_fault(unit, &fault),
                "{address} is recorded"
            );
        }
    }
    for access in [Access::Read, Access::Write] {
        for address in [at, at + 0x1000].map(Iova::new) {
            let asked = stand.rig.ask(DEVICE, address, access);
            assert!(!matches!(asked, Outcome::Reached { .. }), "it may ask");
            let sent = stand.rig.access_kept(DEVICE, address, access);
            assert!(
                !matches!(sent, Outcome::Reached { .. }),
                "it uses what it has"
            );
        }
    }
}

/// Ends it all.
fn end(stand: &mut Stand, mut one: Kernel) {
    let group = one.group.take().unwrap();
    stand.rig.detaching(&[DEVICE], one.tenant);
    let claimed = group.detach().unwrap();
    stand.rig.detached(&[DEVICE]);
    drop(claimed.release().without_reset(REMEMBERS));
    assert_eq!(stand.iommu.wedged_units().count(), 0);
    one.domain.destroy().unwrap().for_each(drop);
    stand.rig.retire();
}

#[test]
fn bc19_a_device_that_is_cut_off_for_its_faults_reaches_nothing_by_what_it_keeps() {
    let mut stand = stand();
    let (mut one, trusted) = attached(&mut stand);
    let group = one.group.as_mut().unwrap();
    group.enable_ats(DEVICE, &trusted).unwrap();
    let mapped = one.map(iovas(0x10_0000, 2));
    let at = Iova::new(0x10_0000);
    let asked = stand.rig.ask(DEVICE, at, Access::Write);
    assert!(matches!(asked, Outcome::Reached { .. }));
    fault(&stand.rig, &stand.iommu);
    assert!(!stand.rig.asks(DEVICE));
    is_quiet(&stand, &one, 0x10_0000);
    one.unmap_and_free(mapped);
    end(&mut stand, one);
}

/// The cut-off comes at each step of the opening, and of the closing, of a device's TLB.
#[test]
fn bc19_a_device_that_is_cut_off_while_its_entry_changes_stays_quiet() {
    for closes in [false, true] {
        for steps in 0.. {
            let mut stand = stand();
            let (mut one, trusted) = attached(&mut stand);
            let mut group = one.group.take().unwrap();
            let mapped = one.map(iovas(0x10_0000, 2));
            if closes {
                group.enable_ats(DEVICE, &trusted).unwrap();
            }
            let (rig, iommu) = (stand.rig.clone(), stand.iommu.clone());
            let came = stand.rig.between(
                steps,
                move || fault(&rig, &iommu),
                || {
                    let changed = match closes {
                        true => group.disable_ats(DEVICE),
                        false => group.enable_ats(DEVICE, &trusted),
                    };
                    let _: Result<(), AttachError> = changed;
                },
            );
            one.group = Some(group);
            if came {
                is_quiet(&stand, &one, 0x10_0000);
            }
            one.unmap_and_free(mapped);
            end(&mut stand, one);
            if !came {
                assert!(steps > 40, "{steps} steps");
                break;
            }
        }
    }
}

/// What other CPUs have at hand.
#[derive(Clone)]
struct Others {
    rig: Rig,
    iommu: Iommu<Backend>,
    one: Arc<Kernel>,
    unit: UnitIndex,
    /// How often the device was given a translation before its opener was told anything.
    asked: Arc<AtomicUsize>,
}

impl Others {
    fn is_wedged(&self) -> bool {
        self.iommu.wedged_units().any(|unit| unit == self.unit)
    }

    /// A page comes and goes. Where the unit does not take the flush, it stays pending.
    fn flush(&self, at: u64, between: impl FnOnce()) -> bool {
        let mapped = self.one.map(iovas(at, 1));
        between();
        match self.one.unmap(mapped).flush() {
            Ok((free, frames)) => {
                self.one.returned(free.span(), &frames);
                self.rig.free_frames(frames);
                free.release().unwrap();
                true
            }
            Err(_) => false,
        }
    }

    /// The unit fails, and comes back.
    fn reset(&self) {
        self.rig.fail_queue(self.unit.index());
        self.flush(0x20_0000, || ());
        self.come_back();
    }

    fn come_back(&self) {
        if self.is_wedged() {
            self.rig.wedged(self.unit.index(), true);
            if self.iommu.reset_unit(self.unit).is_ok() {
                self.rig.wedged(self.unit.index(), false);
            }
        }
    }

    /// The device does not answer, for a while.
    fn mute(&self) {
        self.rig.mute(DEVICE, true);
        self.flush(0x20_0000, || ());
        self.rig.mute(DEVICE, false);
    }

    /// The device asks for a page, whether it may or not, which goes back then.
    fn ask(&self) {
        let at = Iova::new(0x30_0000);
        let forgotten = self.flush(at.as_u64(), || {
            if let Outcome::Reached { .. } = self.rig.ask(DEVICE, at, Access::Write) {
                // ORDERING: Relaxed, a count that is read afterwards.
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let kept = self.rig.access_kept(DEVICE, at, Access::Write);
        let is_kept = matches!(kept, Outcome::Reached { .. });
        assert!(!(forgotten && is_kept), "it uses what was given back");
    }
}

/// One CPU opens the device's TLB. In the middle of that another one does `first`, and so many steps later the device
/// asks.
fn opened_around(first: fn(&Others)) {
    let asked = Arc::new(AtomicUsize::new(0));
    for steps in 0.. {
        let mut ended = false;
        for later in (2..32).step_by(5) {
            let mut stand = stand();
            let (mut one, trusted) = attached(&mut stand);
            let mut group = one.group.take().unwrap();
            let others = Others {
                rig: stand.rig.clone(),
                iommu: stand.iommu.clone(),
                one: Arc::new(one),
                unit: group.unit(),
                asked: asked.clone(),
            };
            let theirs = others.clone();
            // ORDERING: Relaxed, a count.
            let before = asked.load(Ordering::Relaxed);
            stand.rig.between(
                steps,
                move || {
                    first(&theirs);
                    let rig = theirs.rig.clone();
                    rig.later(later, move || theirs.ask());
                },
                || {
                    if group.enable_ats(DEVICE, &trusted).is_ok() {
                        // Nothing was in its way.
                        asked.store(before, Ordering::Relaxed);
                        ended = true;
                    }
                },
            );
            others.come_back();
            let mut one = Arc::into_inner(others.one).unwrap();
            one.group = Some(group);
            end(&mut stand, one);
        }
        if ended && steps > 40 {
            break;
        }
    }
    // ORDERING: Relaxed, as above.
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked > 0, "it never asked in between");
}

/// A reset closes what is open. What is stored behind its back, for a moment, is told of every flush all the same.
#[test]
fn bc15_an_opening_that_a_reset_overtakes_leaves_nothing_with_the_device() {
    opened_around(Others::reset);
}

/// A device that is refused because it did not answer is told of every flush for as long as its opener may let it ask.
#[test]
fn bc15_an_opening_that_was_refused_leaves_nothing_with_the_device() {
    opened_around(Others::mute);
}
