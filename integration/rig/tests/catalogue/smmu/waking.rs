//! Completion told by events: asked of units that send them, and never more than a hint to look.

use std::time::Duration;

use hv_iommu::{FlushError, RedeemRefusal, UnitError};
use hv_rig::{Identity, Machine};

use super::stand::{Stand, WAIT, iovas, on_machines, pci};

/// Longer than any wait.
const LONG: Duration = Duration::from_secs(30);
/// IIDR of MMU-600, r0p2 and r0p3: the last one that loses events, and the first that does not.
const MMU_600: [u32; 2] = [0x4830_243b, 0x4830_343b];

fn all(machine: &mut Machine, change: impl Fn(&mut Identity)) {
    for unit in &mut machine.units {
        change(unit.smmu().unwrap());
    }
}

/// How many events came of unmapping with a flush, a few times.
fn flushed(stand: &mut Stand) -> u64 {
    let group = stand.take(pci(0, 2, 0));
    let one = stand.kernel(group);
    let before = stand.rig.counts().events;
    for _ in 0..8 {
        let mapped = one.map(iovas(0x10_0000, 2));
        assert!(one.writes(0x10_1000));
        one.unmap_and_free(mapped);
        assert!(!one.writes(0x10_1000));
    }
    let events = stand.rig.counts().events - before;
    drop(one.end());
    events
}

#[test]
fn a_flush_asks_for_an_event_where_one_comes_and_does_without_where_none_does() {
    for (sev, part, comes) in [
        (true, 0, true),
        (false, 0, false),
        (true, MMU_600[0], false),
        (true, MMU_600[1], true),
    ] {
        let change = |machine: &mut Machine| {
            all(machine, |identity| {
                (identity.sev, identity.part) = (sev, part)
            });
        };
        on_machines(20, change, |stand| {
            let events = flushed(stand);
            assert_eq!(events >= 8, comes, "{events} events");
        });
    }
}

/// Shows: bc01.
#[test]
fn bc01_an_event_that_no_unit_sent_is_no_completion() {
    let change = |machine: &mut Machine| {
        machine.temper.background = false;
        all(machine, |identity| identity.sev = true);
    };
    on_machines(40, change, |stand| {
        let group = stand.take(pci(0, 2, 0));
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit().index();
        let mapped = one.map(iovas(0x10_0000, 4));
        stand.rig.hang(unit, LONG);
        let before = stand.rig.nanos();
        stand.rig.wake_cpus();
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
        // No event came after that one: the deadline holds without.
        assert!(took >= WAIT && took < WAIT * 4, "{took:?}");
        stand.rig.wedged(unit, true);
        stand.rig.wake(unit);
        stand
            .iommu
            .reset_unit(one.group.as_ref().unwrap().unit())
            .unwrap();
        stand.rig.wedged(unit, false);
        let (free, frames) = pending.pending.flush().unwrap();
        one.returned(iovas(0x10_0000, 4), &frames);
        stand.give_back(frames);
        free.release().unwrap();
    });
}
