//! Units without second stages: the hypervisor's domains live on first ones, and no guest's domain does.

use hv_core::platform::FrameSource;
use hv_core::{Access, GuestMemory, Iova, Perms};
use hv_iommu::{AttachError, AttachFailed, Domain, DomainError, UnitCaps, Unmet};

use super::machine::{FAR, Machine, NIC, PLAIN, full_unit, gpas, iovas, isolated, vm};

/// A unit with first stages alone: such a thing has no write-only mappings either.
fn first_alone() -> UnitCaps {
    UnitCaps {
        second_stage: false,
        write_only: false,
        nested: false,
        ..full_unit()
    }
}

#[test]
fn a_guests_domain_is_refused_where_nothing_translates_its_addresses() {
    let mut machine = Machine::with_units(first_alone(), full_unit());
    let group = machine.take(NIC).claim_for_guest(vm(1));
    let unit = group.unit();
    let refusals = [
        Domain::user_domain_alloc(&group, PLAIN).map(drop),
        Domain::user_parent_alloc(&group, PLAIN).map(drop),
        // A plain domain is no way out: there is none either.
        Domain::user_domain_alloc_or_plain(&group, PLAIN).map(drop),
    ];
    for refused in refusals {
        let error = refused.unwrap_err();
        assert_eq!(error, DomainError::NoSecondStage { unit });
        assert_eq!(
            error.to_string(),
            "a guest's addresses are translated by a second stage, which unit 0 does not have"
        );
    }
    assert_eq!(machine.iommu.domains_in_use(), 0);
    assert_eq!(machine.host().frames_out(), 0);
    // The group is as it was, and the same guest has its domain where there is a second stage.
    drop(group);
    let far = machine.take(FAR).claim_for_guest(vm(1));
    assert!(Domain::user_domain_alloc(&far, PLAIN).is_ok());
}

#[test]
fn a_drivers_domain_is_as_anywhere() {
    let mut machine = Machine::with_units(first_alone(), full_unit());
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let mapped = range.map(machine.host().frames(1), Perms::Write).unwrap();
    let at = Iova::new(0x4000);
    assert!(machine.fake.dma(NIC, at, Access::Write).is_ok());
    let (range, frames) = mapped.unmap().flush().unwrap();
    assert!(machine.fake.dma(NIC, at, Access::Write).is_err());
    machine.host().free_frames(frames);
    range.release().unwrap();
    assert_eq!(driver.end(machine.host()), 0);
}

/// Tables of one stage are not handed to a unit that would take them for the other's: what a first stage's leaf says
/// about reading is what a second stage's says about writing.
#[test]
fn tables_of_one_stage_are_refused_where_the_other_is_walked() {
    let rows = [
        ("second-stage tables", full_unit(), first_alone()),
        ("first-stage tables", first_alone(), full_unit()),
    ];
    for (what, made_for, other) in rows {
        // Everything else is as it was needed.
        let other = UnitCaps {
            write_only: made_for.write_only,
            ..other
        };
        let mut machine = Machine::with_units(made_for, other);
        let driver = machine.driver_with(NIC, PLAIN);
        let far = machine.take(FAR).claim_for_hypervisor();
        let Err(AttachFailed::Refused { group: far, error }) = far.attach(&driver.domain) else {
            panic!("{what}: attached");
        };
        let unit = far.unit();
        let unmet = Unmet::absent(what);
        assert_eq!(error, AttachError::Incompatible { unit, unmet });
        assert_eq!(driver.end(machine.host()), 0);
    }
}

#[test]
fn a_guests_domain_does_not_get_onto_a_first_stage_by_a_second_device() {
    let mut machine = Machine::with_units(
        full_unit(),
        UnitCaps {
            write_only: true,
            ..first_alone()
        },
    );
    let near = machine.take(NIC).claim_for_guest(vm(1));
    let domain = Domain::user_domain_alloc(&near, PLAIN).unwrap();
    let mut memory = GuestMemory::new(vm(1));
    memory
        .give(gpas(0, 1).start(), machine.host().frames(1))
        .unwrap();
    let range = domain.reserve(iovas(0, 1)).unwrap();
    let _mapped = range
        .map(memory.pin(gpas(0, 1)).unwrap(), Perms::ReadWrite)
        .unwrap();
    let far = machine.take(FAR).claim_for_guest(vm(1));
    let refused = far.attach_for_guest(&domain, &isolated());
    let Err(AttachFailed::Refused { group: far, error }) = refused else {
        panic!("attached");
    };
    let unit = far.unit();
    let unmet = Unmet::absent("second-stage tables");
    assert_eq!(error, AttachError::Incompatible { unit, unmet });
    assert_eq!(domain.destroy().unwrap().count(), 1);
}
