//! Devices that go astray while they are bound to nothing: whatever they send, they fill no log that others need.

use hv_core::{Access, Iova};
use hv_iommu::{FaultBudget, FaultNotice};
use hv_rig::{Driver, Machine, Outcome};

use super::stand::{Backend, Kernel, Stand, pci};

const LOOSE: hv_core::PciAddress = pci(0, 1, 0);
const WELL: hv_core::PciAddress = pci(0, 2, 0);

/// A machine with a device that ignores its bus master bit, whose unit has a few fault records. It keeps what is absent, or
/// does not.
fn stand(caching: bool) -> Stand {
    let with_seed = |seed| {
        let mut machine = super::suited(Machine::calm_of(Backend::VENDOR));
        for unit in &mut machine.units {
            unit.keep_few_faults();
            unit.vtd().unwrap().cap.cm = caching;
        }
        (machine.seed, machine.temper.rogues) = (seed, true);
        Stand::new(machine)
    };
    let ignores_its_bit = |stand: &Stand| {
        let sent = stand.rig.access(LOOSE, Iova::new(0), Access::Read);
        stand.iommu.take_faults(|_| ());
        !matches!(sent, Outcome::Lost)
    };
    (0..64).map(with_seed).find(ignores_its_bit).unwrap()
}

/// Sends a million requests, and looks at the log after each eight: it holds four. Says how many faults were told.
fn storm(stand: &Stand) -> usize {
    let (mut told, mut cut, mut lost) = (0, 0, 0);
    for round in 0..125_000u64 {
        for index in 0..8 {
            let at = Iova::new((0x100 + (round * 8 + index) % 1000) * 4096);
            let sent = stand.rig.access(LOOSE, at, Access::Read);
            assert!(!matches!(sent, Outcome::Reached { .. }), "{sent:?}");
        }
        stand.iommu.take_faults(|notice| match notice {
            FaultNotice::Fault(report) => {
                assert_eq!(report.fault.requester, LOOSE);
                told += 1;
            }
            FaultNotice::Lost(_) => lost = round,
            FaultNotice::CutOff(who) => {
                assert_eq!(who.requester, LOOSE);
                cut += 1;
            }
            other => panic!("{other:?}"),
        });
    }
    let most = FaultBudget::default().faults as usize + 1;
    assert!(told <= most && cut <= 1, "{told} told, cut off {cut} times");
    // As many rounds as it takes to use up the budget, and one that the unit has to hear of.
    assert!(lost <= most as u64, "losses in round {lost}");
    told
}

/// A fault of the neighbour is neither lost nor late.
fn neighbour_is_heard(stand: &Stand, well: &Kernel) {
    stand.rig.access(WELL, Iova::new(0x77_7000), Access::Write);
    let mut found = Vec::new();
    stand.iommu.take_faults(|notice| found.push(notice));
    let [FaultNotice::Fault(report)] = found[..] else {
        panic!("{found:?}");
    };
    assert_eq!(report.fault.requester, WELL);
    assert!(well.group.is_some());
}

/// Nobody ever had it.
///
/// Shows: bc19.
#[test]
fn bc19_a_storm_of_a_device_that_nobody_attached_costs_the_budget() {
    for caching in [false, true] {
        let mut stand = stand(caching);
        let group = stand.take(WELL);
        let well = stand.kernel(group);
        assert!(storm(&stand) > 0);
        neighbour_is_heard(&stand, &well);
        // Whoever has it next hears of it.
        let group = stand.take(LOOSE);
        let loose = stand.kernel(group);
        stand.rig.access(LOOSE, Iova::new(0x77_7000), Access::Read);
        let mut told = 0;
        stand.iommu.take_faults(|_| told += 1);
        assert_eq!(told, 1);
        drop(loose.end());
        drop(well.end());
    }
}

/// It was cut off, and goes on when it is detached for that.
///
/// Shows: bc19.
#[test]
fn bc19_a_storm_goes_on_after_the_detach_and_costs_nothing_more() {
    for caching in [false, true] {
        let mut stand = stand(caching);
        let group = stand.take(LOOSE);
        let loose = stand.kernel(group);
        let group = stand.take(WELL);
        let well = stand.kernel(group);
        assert!(storm(&stand) > 0);
        neighbour_is_heard(&stand, &well);
        drop(loose.end());
        stand.iommu.take_faults(|_| ());
        assert_eq!(storm(&stand), 0);
        neighbour_is_heard(&stand, &well);
        drop(well.end());
    }
}

/// It goes astray while its group is parked, for a reset that does not help.
///
/// Shows: bc19.
#[test]
fn bc19_a_storm_of_a_parked_device_costs_the_budget() {
    for caching in [false, true] {
        let mut stand = stand(caching);
        let group = stand.take(LOOSE);
        let mut loose = stand.kernel(group);
        let group = stand.take(WELL);
        let well = stand.kernel(group);
        let group = loose.group.take().unwrap();
        stand.rig.detaching(&[LOOSE], loose.tenant);
        let parked = group.park().unwrap();
        stand.rig.detached(&[LOOSE]);
        assert!(storm(&stand) > 0);
        neighbour_is_heard(&stand, &well);
        stand.rig.attaching(&[LOOSE], loose.tenant);
        loose.group = Some(parked.unpark().unwrap());
        stand.rig.attached(&[LOOSE], loose.tenant);
        drop(loose.end());
        drop(well.end());
    }
}
