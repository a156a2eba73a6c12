//! Class 1: time-outs are not success. Class 15: devices that are gone do not stall. Wedged units.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova};
use hv_iommu::{AtRest, FlushError, FlushSpan, RedeemRefusal, UnitError, UnitIndex};
use hv_rig::Outcome;

use super::stand::{REMEMBERS, Stand, WAIT, iovas, on_machines, pci, small, two_units};

/// Longer than any wait.
const LONG: Duration = Duration::from_secs(30);

#[test]
fn bc01_xsa_373_timeout_is_not_success() {
    for seed in 0..40 {
        let mut stand = Stand::new(two_units(seed));
        let (one, two) = (stand.take(pci(0, 1, 0)), stand.take(pci(0, 2, 0)));
        let (one, two) = (stand.kernel(one), stand.kernel(two));
        let mapped = one.map(iovas(0x10_0000, 4));
        let other = two.map(iovas(0x10_0000, 4));
        assert!(
            one.writes(0x10_0000) && two.writes(0x10_0000),
            "seed {seed}"
        );

        stand.rig.hang(0, LONG);
        let before = stand.rig.nanos();
        let pending = one.unmap(mapped).flush().unwrap_err();
        let took = Duration::from_nanos(stand.rig.nanos() - before);
        assert!(
            matches!(
                pending.reason,
                RedeemRefusal::Flush(FlushError::Unit(UnitError::Timeout { .. }))
            ),
            "{}",
            pending.reason
        );
        assert!(took >= WAIT && took < WAIT * 4, "seed {seed}: {took:?}");
        stand.rig.wedged(0, true);
        let wedged: Vec<_> = stand.iommu.wedged_units().collect();
        assert_eq!(wedged, [UnitIndex::new(0).unwrap()]);
        // The devices were cut off, and nothing of the domain is reused or receipted.
        assert!(!stand.rig.may_send(one.device()), "seed {seed}");
        assert!(
            one.group
                .as_ref()
                .unwrap()
                .enable_bus_mastering(one.device())
                .is_err()
        );
        let refused = one.domain.flush(FlushSpan::Domain).unwrap_err();
        assert!(
            matches!(refused, FlushError::Unit(UnitError::Wedged { .. })),
            "{refused}"
        );

        // A completion that comes late makes nothing good.
        stand.rig.wake(0);
        stand.rig.idle(500);
        let pending = pending.pending.flush().unwrap_err();
        assert!(matches!(
            pending.reason,
            RedeemRefusal::Flush(FlushError::Unit(UnitError::Wedged { .. }))
        ));

        // The other unit is none the worse.
        two.unmap_and_free(other);
        assert!(!two.writes(0x10_0000));

        // An explicit reset, and then a flush of its own, opens what was pending.
        stand.iommu.reset_unit(UnitIndex::new(0).unwrap()).unwrap();
        stand.rig.wedged(0, false);
        assert_eq!(stand.iommu.wedged_units().count(), 0);
        let span = pending.pending.span();
        let (free, frames) = pending.pending.flush().unwrap();
        one.returned(span, &frames);
        stand.rig.free_frames(frames);
        free.release().unwrap();
        stand.check();
    }
}

#[test]
fn bc01_acrn_4680_late_completions_satisfy_no_later_wait() {
    // The unit takes so long for some flushes that their completions come when nobody waits any more.
    for seed in 0..30 {
        let mut stand = Stand::new(two_units(seed));
        let group = stand.take(pci(0, 1, 0));
        let one = stand.kernel(group);
        let unit = UnitIndex::new(0).unwrap();
        for round in 0..4 {
            let mapped = one.map(iovas(0x20_0000, 2));
            assert!(one.writes(0x20_0000), "seed {seed} round {round}");
            stand.rig.hang(0, WAIT * 3);
            let pending = one.unmap(mapped).flush().unwrap_err().pending;
            stand.rig.wedged(0, true);
            // Some of the old completions are still on their way when the reset begins.
            stand.rig.wake(0);
            stand.rig.idle(round * 7);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(0, false);
            one.group
                .as_ref()
                .unwrap()
                .enable_bus_mastering(one.device())
                .unwrap();
            let span = pending.span();
            let (free, frames) = pending.flush().unwrap();
            one.returned(span, &frames);
            stand.rig.free_frames(frames);
            free.release().unwrap();
            assert!(!one.writes(0x20_0000), "seed {seed} round {round}");
        }
        stand.check();
    }
}

#[test]
fn wedged_a_reset_of_a_unit_that_still_hangs_fails_and_a_group_recovers_after_one_that_works() {
    for seed in 0..30 {
        let mut stand = Stand::new(two_units(seed));
        let unit = UnitIndex::new(0).unwrap();
        let group = stand.take(pci(0, 1, 0));
        let mut one = stand.kernel(group);
        drop(one.map(iovas(0x10_0000, 4)));
        stand.rig.hang(0, LONG);
        let group = one.group.take().unwrap();
        let members = group.members().to_vec();
        stand.rig.detaching(&members, one.tenant);
        let wedged = group.detach().unwrap_err();
        stand.rig.wedged(0, true);
        let wedged = wedged.recover().unwrap_err();
        assert!(stand.iommu.reset_unit(unit).is_err());
        let refused = one.domain.destroy().unwrap_err();
        // Nothing of the domain came back, whatever the device does.
        stand.rig.idle(300);
        stand.check();

        stand.rig.wake(0);
        stand.iommu.reset_unit(unit).unwrap();
        stand.rig.wedged(0, false);
        let AtRest::AfterDriver(used) = wedged.recover().unwrap() else {
            panic!("claimable as its driver left it");
        };
        let blocked = used.without_reset(REMEMBERS).claimable().unwrap();
        stand.rig.detached(&members);
        let teardown = refused.domain.destroy().unwrap();
        stand.rig.ended(one.tenant);
        let frames: Vec<_> = teardown.collect();
        assert_eq!(frames.iter().map(|run| run.pages().get()).sum::<u64>(), 4);
        for run in frames {
            stand.rig.free_frames(run);
        }
        // The next owner starts from nothing.
        let again = stand.kernel(blocked);
        assert!(!again.writes(0x10_0000), "seed {seed}");
        drop(again.end());
        stand.check();
    }
}

#[test]
fn wedged_units_are_all_told_of_when_one_flush_wedges_several() {
    for seed in 0..10 {
        let mut stand = Stand::new(two_units(seed));
        let group = stand.take(pci(0, 1, 0));
        let one = stand.kernel(group);
        let claimed = stand.take(pci(0, 2, 0)).claim_for_hypervisor();
        let other = stand.attach(claimed, &one.domain, one.tenant);
        let mapped = one.map(iovas(0x10_0000, 2));
        stand.rig.hang(0, LONG);
        stand.rig.hang(1, LONG);
        let pending = one.unmap(mapped).flush().unwrap_err().pending;
        let wedged: Vec<usize> = stand
            .iommu
            .wedged_units()
            .map(|unit| unit.index())
            .collect();
        assert_eq!(wedged, [0, 1], "seed {seed}");
        for unit in wedged {
            stand.rig.wedged(unit, true);
        }
        assert!(!stand.rig.may_send(one.device()) && !stand.rig.may_send(other.members()[0]));
        for unit in [0, 1] {
            stand.rig.wake(unit);
            // One unit that is back is not enough for a receipt of a domain that reaches two.
            assert!(one.domain.flush(FlushSpan::Domain).is_err());
            stand
                .iommu
                .reset_unit(UnitIndex::new(unit).unwrap())
                .unwrap();
            stand.rig.wedged(unit, false);
        }
        let span = pending.span();
        let (free, frames) = pending.flush().unwrap();
        one.returned(span, &frames);
        stand.rig.free_frames(frames);
        free.release().unwrap();
        stand.check();
    }
}

#[test]
fn wedged_threads_that_reset_the_same_unit_get_no_receipt_early() {
    for seed in 0..3 {
        let mut machine = two_units(seed);
        // One unit for all; nothing is to be told of new mappings, which would fail with it.
        machine.units.remove(0);
        if let Some(known) = machine.units[0].vtd() {
            (known.cap.cm, known.cap.rwbf) = (false, false);
        }
        machine.temper.slow = false;
        machine.temper.steady_clock = true;
        let mut stand = Stand::new(machine);
        let unit = UnitIndex::new(0).unwrap();
        let groups =
            [pci(0, 1, 0), pci(0, 2, 0), pci(1, 0, 0)].map(|function| stand.take(function));
        let domains = groups.map(|group| stand.kernel(group));
        let (rig, iommu) = (&stand.rig, &stand.iommu);
        // The unit hangs in the middle of the first flushes, for longer than anybody waits.
        rig.hang_after(0, 400 + 150 * seed as u32, WAIT * 3 / 2);
        let resets = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for one in &domains {
                let resets = &resets;
                scope.spawn(move || {
                    for round in 0..8 {
                        let mapped = one.map(iovas(0x10_0000 + round * 0x3000, 3));
                        one.writes(0x10_1000 + round * 0x3000);
                        let span = mapped.span();
                        let mut pending = one.unmap(mapped);
                        let (free, frames) = loop {
                            match pending.flush() {
                                Ok(back) => break back,
                                Err(error) => pending = error.pending,
                            }
                            // Others may be faster, or still be at it.
                            if iommu.reset_unit(unit).is_ok() {
                                // ORDERING: SeqCst, a test.
                                resets.fetch_add(1, Ordering::SeqCst);
                            }
                        };
                        one.returned(span, &frames);
                        one.rig.free_frames(frames);
                        free.release().unwrap();
                        // A reset cut the device off, unless another wedged the unit again meanwhile.
                        let group = one.group.as_ref().unwrap();
                        let _ = group.enable_bus_mastering(one.device());
                    }
                });
            }
        });
        // ORDERING: SeqCst, as above.
        assert!(
            resets.load(Ordering::SeqCst) > 0,
            "seed {seed}: nothing was reset"
        );
        for one in domains {
            drop(one.end());
        }
        stand.check();
    }
}

#[test]
fn bc15_cve_2026_43130_a_removed_device_stalls_nobody() {
    on_machines(
        30,
        |_| {},
        |stand| {
            let group = stand.take(pci(0, 1, 0));
            let one = stand.kernel(group);
            let mapped = one.map(iovas(0x10_0000, 8));
            assert!(one.writes(0x10_1000));
            let device = one.device();
            stand.rig.plug(device, false);
            let lost = stand.rig.access(device, Iova::new(0x10_0000), Access::Read);
            assert_eq!(lost, Outcome::Lost);
            let before = stand.rig.nanos();
            one.unmap_and_free(mapped);
            let blocked = one.end();
            assert!(Duration::from_nanos(stand.rig.nanos() - before) < WAIT);
            // Plugged in again it is a stranger: it reaches nothing until it is attached anew.
            stand.rig.plug(device, true);
            let again = blocked.claim_for_hypervisor();
            assert!(hv_iommu::Domain::paging_domain_alloc(&again, small()).is_ok());
            assert!(!stand.rig.may_send(device));
        },
    );
}
