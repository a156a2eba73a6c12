//! What records say that is not as it seems: requests that stand still where none can, addresses too wide for any stage,
//! and what was to be done with them.

use hv_core::{Access, Iova, PciAddress};
use hv_iommu::{FaultClass, FaultNotice, FaultStage, RawFault, UnitIndex};
use hv_rig::{Machine, Outcome, Trouble};

use super::device_tlbs::with_ats;
use super::stand::{Stand, iovas, on_machines, pci};

const DEVICE: PciAddress = pci(0, 2, 0);

fn by_hand(machine: &mut Machine) {
    machine.temper.background = false;
}

/// Every unit has this stall model and room for some events.
fn of_model(machine: &mut Machine, model: u8) {
    by_hand(machine);
    for unit in &mut machine.units {
        let identity = unit.smmu().unwrap();
        (identity.stall_model, identity.events) = (model, 4);
    }
}

fn told(stand: &Stand) -> Vec<RawFault> {
    let mut faults = Vec::new();
    stand.iommu.take_faults(|notice| match notice {
        FaultNotice::Fault(report) => faults.push(report.fault),
        other => panic!("{other:?}"),
    });
    faults
}

fn false_stalls(stand: &Stand, unit: UnitIndex) -> u64 {
    stand.iommu.unit_troubles(unit).unwrap().false_stalls
}

/// An answer would be illegal there, and stop the queue of commands. The fault is its device's all the same.
///
/// Shows: bc19.
#[test]
fn bc19_a_record_that_says_stalled_is_not_answered_where_nothing_stalls() {
    on_machines(
        20,
        |machine| of_model(machine, 1),
        |stand| {
            let group = stand.take(DEVICE);
            let one = stand.kernel(group);
            let unit = one.group.as_ref().unwrap().unit();
            let mapped = one.map(iovas(0x10_0000, 1));
            for round in 1..=5 {
                stand.rig.suffer(unit.index(), Trouble::SaysStalled);
                stand
                    .rig
                    .access(DEVICE, Iova::new(0x20_0000), Access::Write);
                let faults = told(stand);
                let [fault] = faults[..] else {
                    panic!("{faults:?}");
                };
                assert_eq!(fault.address, Iova::new(0x20_0000));
                assert_eq!(fault.class, FaultClass::NotPermitted);
                assert_eq!(false_stalls(stand, unit), round);
                assert!(one.writes(0x10_0000));
            }
            one.unmap_and_free(mapped);
            drop(one.end());
            let troubles = stand.iommu.unit_troubles(unit).unwrap();
            assert_eq!(troubles.commands_read_again, 0, "no command was illegal");
        },
    );
}

/// A stream without a first stage has faults that are told as the first stage's (IHI 0070, 3.4): its device sent an address
/// that no second stage has. Nobody's tables are wrong, and nothing waits for an answer.
///
/// Shows: bc19.
#[test]
fn bc19_an_address_wider_than_the_unit_is_the_devices_mistake_and_of_no_stage() {
    for model in [1, 2] {
        on_machines(
            20,
            |machine| of_model(machine, model),
            |stand| {
                let group = stand.take(DEVICE);
                let one = stand.kernel(group);
                let unit = one.group.as_ref().unwrap().unit();
                for access in [Access::Read, Access::Write] {
                    let wide = Iova::new(1 << 60);
                    let outcome = stand.rig.access(DEVICE, wide, access);
                    assert!(matches!(outcome, Outcome::Faulted { .. }), "{outcome:?}");
                    let faults = told(stand);
                    let [fault] = faults[..] else {
                        panic!("{faults:?}");
                    };
                    assert_eq!(
                        (fault.class, fault.stage),
                        (FaultClass::AddressTooWide, None)
                    );
                    assert_eq!((fault.address, fault.access), (wide, access));
                    assert!(stand.rig.recorded_fault(unit.index(), &fault));
                }
                assert_eq!(stand.rig.stalled(unit.index()), 0);
                // One that the second stage looks at is its.
                stand.rig.access(DEVICE, Iova::new(0x20_0000), Access::Read);
                let faults = told(stand);
                assert_eq!(faults[0].stage, Some(FaultStage::Second));
                stand.rig.idle(20_000);
                // Whose entry it was is not to be seen any more when it is told.
                stand.rig.access(DEVICE, Iova::new(1 << 60), Access::Read);
                drop(one.end());
                let faults = told(stand);
                let [fault] = faults[..] else {
                    panic!("{faults:?}");
                };
                assert_eq!(
                    (fault.class, fault.stage),
                    (FaultClass::AddressTooWide, None)
                );
            },
        );
    }
}

/// What a device sent that says it is translated, and may not be, is told with what was to be done and where.
///
/// Shows: bc19.
#[test]
fn bc19_a_refused_translated_request_is_told_as_what_it_was() {
    let machine = |machine: &mut Machine| {
        with_ats(machine);
        by_hand(machine);
    };
    on_machines(20, machine, |stand| {
        let group = stand.take(DEVICE);
        let one = stand.kernel(group);
        let unit = one.group.as_ref().unwrap().unit();
        let at = Iova::new(0x10_0000);
        stand.rig.forge(DEVICE, at, 0x1_0100_0000);
        for access in [Access::Write, Access::Read] {
            stand.rig.access_kept(DEVICE, at, access);
            let faults = told(stand);
            let [fault] = faults[..] else {
                panic!("{faults:?}");
            };
            assert_eq!(
                (fault.class, fault.access),
                (FaultClass::RequestBlocked, access)
            );
            assert!(stand.rig.recorded_fault(unit.index(), &fault), "{fault:?}");
        }
        drop(one.end());
    });
}
