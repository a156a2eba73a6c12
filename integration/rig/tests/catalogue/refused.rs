//! Class 1: what a unit refuses is not done. Units that call a command of their driver illegal, and go on all the same.

use hv_core::PciAddress;
use hv_core::platform::FrameSource;
use hv_iommu::{FlushError, RedeemRefusal, UnitError, UnitIndex, UnitTroubles};
use hv_rig::Refusing;

use super::stand::{Stand, iovas, on_machines, pci};

const FIRST: PciAddress = pci(0, 1, 0);
const OTHER: PciAddress = pci(0, 2, 0);

/// All units of the machine.
fn refuse(stand: &Stand, refusing: Refusing) {
    for unit in 0..stand.rig.machine().units.len() {
        stand.rig.refuse(unit, refusing);
    }
}

/// What has gone wrong with all units together: commands that were read again, and those that were refused.
fn troubles(stand: &Stand) -> (u64, u64) {
    let units = (0..stand.rig.machine().units.len()).filter_map(UnitIndex::new);
    let all = units.map(|unit| stand.iommu.unit_troubles(unit).unwrap());
    all.fold((0, 0), |(again, refused), found: UnitTroubles| {
        (
            again + found.commands_read_again,
            refused + found.commands_refused,
        )
    })
}

fn wedged(stand: &Stand) -> usize {
    stand.iommu.wedged_units().count()
}

/// A unit that does not take invalidations by address is asked for the whole domain.
#[test]
fn bc01_what_a_unit_refuses_of_a_flush_is_asked_for_in_another_way() {
    on_machines(
        40,
        |_| (),
        |stand| {
            let group = stand.take(FIRST);
            let one = stand.kernel(group);
            let other = stand.take(OTHER);
            let other = stand.kernel(other);
            let (mapped, others) = (one.map(iovas(0x10_0000, 3)), other.map(iovas(0x10_0000, 3)));
            assert!(one.writes(0x10_0000) && other.writes(0x10_2000));
            refuse(stand, Refusing::Pages);
            one.unmap_and_free(mapped);
            let (again, refused) = troubles(stand);
            // Some units do not take addresses anyway.
            assert!(again >= refused && (refused <= 3), "{again} {refused}");
            assert!(!one.writes(0x10_0000) && other.writes(0x10_1000));
            other.unmap_and_free(others);
            assert!(!other.writes(0x10_1000));
            refuse(stand, Refusing::Nothing);
            assert_eq!(wedged(stand), 0);
            let mapped = one.map(iovas(0x10_0000, 3));
            assert!(one.writes(0x10_1000));
            one.unmap_and_free(mapped);
            drop((one.end(), other.end()));
        },
    );
}

/// One that takes nothing that would have it forget is wedged; what is pending stays pending, for a reset to open.
#[test]
fn bc01_a_unit_that_refuses_to_forget_gives_no_receipt() {
    on_machines(
        30,
        |_| (),
        |stand| {
            let group = stand.take(FIRST);
            let one = stand.kernel(group);
            let mapped = one.map(iovas(0x10_0000, 2));
            assert!(one.writes(0x10_0000));
            refuse(stand, Refusing::Translations);
            let failed = one.unmap(mapped).flush().unwrap_err();
            match failed.reason {
                RedeemRefusal::Flush(FlushError::Unit(UnitError::Refused { code, .. })) => {
                    assert_ne!(code.0, 0);
                }
                other => panic!("{other}"),
            }
            let [unit] = stand.iommu.wedged_units().collect::<Vec<_>>()[..] else {
                panic!("one is wedged");
            };
            stand.rig.wedged(unit.index(), true);
            assert!(!stand.rig.may_send(FIRST));
            // By pages, which may be one by one, and for the whole domain; each was read twice.
            let (again, refused) = troubles(stand);
            assert!(again == refused && (2..=3).contains(&refused), "{refused}");
            refuse(stand, Refusing::Nothing);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
            let span = failed.pending.span();
            let (free, frames) = failed.pending.flush().unwrap();
            one.returned(span, &frames);
            stand.rig.free_frames(frames);
            free.release().unwrap();
            drop(one.end());
        },
    );
}

/// What is misread once is read again: no flush fails, none is asked for twice, and nobody is told.
#[test]
fn bc01_a_command_that_was_misread_is_read_again_and_done() {
    on_machines(
        40,
        |_| (),
        |stand| {
            let group = stand.take(FIRST);
            let one = stand.kernel(group);
            let before = troubles(stand).0;
            for round in 0..8 {
                let mapped = one.map(iovas(0x10_0000, 1 + round));
                assert!(one.writes(0x10_0000));
                refuse(stand, Refusing::OneMisread);
                one.unmap_and_free(mapped);
                assert!(!one.writes(0x10_0000));
            }
            refuse(stand, Refusing::Nothing);
            let (again, refused) = troubles(stand);
            assert_eq!((refused, wedged(stand)), (0, 0));
            assert!(again >= before + 8, "{again}");
            drop(one.end());
        },
    );
}

/// An entry that the unit does not forget stays nobody's: the unit is wedged at the detach, as for any other reason.
#[test]
fn bc05_a_unit_that_refuses_to_forget_an_entry_keeps_its_group() {
    on_machines(
        30,
        |_| (),
        |stand| {
            let group = stand.take(FIRST);
            let mut one = stand.kernel(group);
            let mapped = one.map(iovas(0x10_0000, 1));
            assert!(one.writes(0x10_0000));
            drop(mapped);
            refuse(stand, Refusing::Configuration);
            let group = one.group.take().unwrap();
            stand.rig.detaching(&[FIRST], one.tenant);
            let Err(stuck) = group.detach() else {
                panic!("it was not forgotten");
            };
            refuse(stand, Refusing::Nothing);
            let [unit] = stand.iommu.wedged_units().collect::<Vec<_>>()[..] else {
                panic!("one is wedged");
            };
            stand.rig.wedged(unit.index(), true);
            stand.iommu.reset_unit(unit).unwrap();
            stand.rig.wedged(unit.index(), false);
            let Ok(rest) = stuck.recover() else {
                panic!("its unit was reset");
            };
            stand.rig.detached(&[FIRST]);
            drop(rest);
            let teardown = one.domain.destroy().unwrap();
            stand.rig.ended(one.tenant);
            teardown.for_each(|frames| stand.rig.free_frames(frames));
        },
    );
}
