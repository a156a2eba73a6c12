//! Devices that go astray and cannot be stopped: whatever they send, they fill no queue that others need.

use hv_core::{Access, Iova, Pasid, PciAddress};

use hv_iommu::{Domain, FaultNotice, FunctionKind, TrustedDevice};
use hv_rig::{FunctionModel, Machine, Outcome, Refusing};

use super::stand::{Kernel, Stand, pci};

/// The one that goes astray, whatever its bus master bit says.
const LOOSE: PciAddress = pci(0, 1, 0);
const WELL: PciAddress = pci(0, 2, 0);

/// A machine with such a device, whose groups may cause no fault.
fn stand(more: fn(&mut Machine)) -> Stand {
    stand_with(more, LOOSE)
}

fn stand_with(more: fn(&mut Machine), loose: PciAddress) -> Stand {
    let tight = |machine: &mut Machine| {
        machine.pasid_bits = 20;
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.substream_bits, identity.events) = (8, 2);
        }
        more(machine);
    };
    super::loose::stand_with(tight, loose)
}

/// All that a device can send that its unit may record.
fn sends(stand: &Stand, loose: PciAddress, round: u64) {
    let at = Iova::new((0x1000 + round % 100) << 12);
    let pasid = Some(Pasid::new(1 + round as u32 % 3).unwrap());
    for access in [Access::Read, Access::Write] {
        for outcome in [
            stand.rig.access(loose, at, access),
            stand.rig.access_as(loose, pasid, at, access),
            stand.rig.ask(loose, at, access),
        ] {
            assert!(!matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
        }
        stand.rig.forge(loose, at, 0x7_0000_0000);
        let outcome = stand.rig.access_kept(loose, at, access);
        assert!(!matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
    }
}

/// Whatever it sends, nobody hears of it, and a fault of its neighbour is neither lost nor late.
fn nobody_hears_of_it(stand: &Stand, loose: PciAddress, well: &Kernel) {
    // What the unit was told, and what it did before that.
    stand.rig.idle(1000);
    stand.iommu.take_faults(|_| ());
    for round in 0..300 {
        sends(stand, loose, round);
        stand
            .iommu
            .take_faults(|notice| panic!("round {round}: {notice:?}"));
    }
    (0..8).for_each(|round| sends(stand, loose, round));
    stand.rig.access(WELL, Iova::new(0x77_7000), Access::Write);
    let mut found = Vec::new();
    stand.iommu.take_faults(|notice| found.push(notice));
    let Some(FaultNotice::Fault(report)) = found.first() else {
        panic!("{found:?}");
    };
    assert_eq!(report.fault.requester, WELL);
    assert_eq!(well.group.as_ref().unwrap().members(), [WELL]);
}

/// Lets it go on until it is cut off.
fn cut_off(stand: &Stand, send: impl Fn(u64)) {
    let mut cut = false;
    for round in 0..100 {
        send(round);
        stand
            .iommu
            .take_faults(|notice| cut |= matches!(notice, FaultNotice::CutOff(_)));
        if cut {
            return;
        }
    }
    panic!("it is not cut off");
}

/// Shows: bc19.
#[test]
fn bc19_a_device_that_is_cut_off_fills_no_queue_whatever_it_sends() {
    let alone = |machine: &mut Machine| {
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.first_stage, identity.second_stage) = (true, false);
        }
    };
    for more in [|_: &mut Machine| (), alone] {
        let mut stand = stand(more);
        let group = stand.take(LOOSE);
        let loose = stand.kernel(group);
        let group = stand.take(WELL);
        let well = stand.kernel(group);
        cut_off(&stand, |round| {
            let at = Iova::new((0x1000 + round) << 12);
            stand.rig.access(LOOSE, at, Access::Read);
        });
        nobody_hears_of_it(&stand, LOOSE, &well);
        drop(loose.end());
        drop(well.end());
    }
}

/// The unit refuses to read the entry anew: the device is recorded as before. So that is asked for again when it was, until the unit
/// does.
///
/// Shows: bc19.
#[test]
fn bc19_a_device_that_is_cut_off_by_a_unit_that_refuses_to_read_that_is_cut_off_later() {
    let mut stand = stand(|_| ());
    let group = stand.take(LOOSE);
    let loose = stand.kernel(group);
    let group = stand.take(WELL);
    let well = stand.kernel(group);
    let sends = |round| {
        let at = Iova::new((0x1000 + round) << 12);
        stand.rig.access(LOOSE, at, Access::Read);
    };
    let unit = loose.group.as_ref().unwrap().unit();
    stand.rig.refuse(unit.index(), Refusing::Configuration);
    cut_off(&stand, sends);
    // It is read once more, refused, and taken out, by whoever looks.
    for round in 0..20 {
        stand.rig.idle(1000);
        stand.iommu.take_faults(|_| ());
        if round > 10 {
            // By what the unit has of the entry.
            sends(round);
        }
    }
    let refused = stand.iommu.unit_troubles(unit).unwrap().commands_refused;
    assert!(refused > 0);
    stand.rig.refuse(unit.index(), Refusing::Nothing);
    for round in 0..4 {
        sends(round);
        stand.iommu.take_faults(|_| ());
        stand.rig.idle(1000);
    }
    nobody_hears_of_it(&stand, LOOSE, &well);
    assert_eq!(stand.iommu.wedged_units().count(), 0);
    drop(loose.end());
    drop(well.end());
}

/// An untranslated device faults only by what no entry lets through, and is cut off for that like any other.
///
/// Shows: bc19.
#[test]
fn bc19_an_untranslated_device_that_is_cut_off_reaches_nothing() {
    let mut stand = stand(|_| ());
    let claimed = stand.take(LOOSE).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&claimed, "a test");
    let domain = Domain::identity_domain_alloc(&claimed, &trusted).unwrap();
    let group = claimed.attach_untranslated(&domain, trusted).unwrap();
    let well = stand.take(WELL);
    let well = stand.kernel(well);
    cut_off(&stand, |round| {
        let pasid = Some(Pasid::new(1).unwrap());
        let at = Iova::new((0x1000 + round) << 12);
        stand.rig.access_as(LOOSE, pasid, at, Access::Read);
    });
    nobody_hears_of_it(&stand, LOOSE, &well);
    drop(group.detach().unwrap());
    domain.destroy().unwrap();
    drop(well.end());
}

/// A device that nobody attached: its stream has an entry that aborts, or none at all, since a table in two levels has
/// arrays only where somebody was bound.
///
/// Shows: bc19.
#[test]
fn bc19_a_device_that_nobody_attached_fills_no_queue() {
    const FAR: PciAddress = pci(9, 0, 0);
    let two_levels: fn(&mut Machine) = |machine| {
        machine
            .functions
            .push(FunctionModel::new(FAR, FunctionKind::Endpoint));
        for unit in &mut machine.units {
            let identity = unit.smmu().unwrap();
            (identity.two_level, identity.stream_bits) = (true, 20);
        }
    };
    for (more, loose) in [((|_| ()) as fn(&mut Machine), LOOSE), (two_levels, FAR)] {
        let mut stand = stand_with(more, loose);
        let group = stand.take(WELL);
        let well = stand.kernel(group);
        nobody_hears_of_it(&stand, loose, &well);
        drop(well.end());
    }
}
