//! What is fixed when a domain is made: asked for, refused by its name, witnessed.

use hv_iommu::{AttachError, AttachFailed, Domain, DomainError, Needs, UnitCaps, Unmet};

use super::machine::{FAR, Machine, NIC, PLAIN, full_unit};

const DIRTY: Needs = Needs {
    dirty_tracking: true,
    coherent_walks: false,
};
const COHERENT: Needs = Needs {
    dirty_tracking: false,
    coherent_walks: true,
};

#[test]
fn what_was_not_asked_for_has_no_witness() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    assert!(domain.dirty().is_none(), "possible, but not asked for");
    let tracked = Domain::paging_domain_alloc(&group, PLAIN.with(DIRTY)).unwrap();
    assert!(tracked.dirty().is_some());
    assert_eq!(tracked.snoops().unwrap().domain(), tracked.uid());
}

#[test]
fn what_a_unit_lacks_is_named_and_nothing_is_taken() {
    let full = full_unit();
    let no_dirty = UnitCaps {
        dirty: false,
        ..full
    };
    let no_snoop = UnitCaps {
        coherent: false,
        ..full
    };
    let rows = [
        (no_dirty, DIRTY, "dirty tracking"),
        (no_snoop, COHERENT, "coherent walks"),
        // The walker writes dirty bits past caches that it does not snoop.
        (no_snoop, DIRTY, "coherent walks"),
    ];
    for (unit, needs, what) in rows {
        let mut machine = Machine::with_units(unit, full);
        let group = machine.take(NIC).claim_for_hypervisor();
        let refused = Domain::paging_domain_alloc(&group, PLAIN.with(needs)).unwrap_err();
        let unmet = Unmet {
            what,
            needed: 1,
            found: 0,
        };
        let unit = group.unit();
        assert_eq!(refused, DomainError::Unmet { unit, unmet });
        assert_eq!(machine.iommu.domains_in_use(), 0);
        assert_eq!(machine.host().frames_out(), 0);
    }
}

#[test]
fn a_domain_without_coherent_walks_has_no_witness_of_them() {
    let no_snoop = UnitCaps {
        coherent: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(no_snoop, full_unit());
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    assert!(domain.snoops().is_none());
    // A unit that snoops serves it, and it does not become coherent by that.
    let far = machine.take(FAR).claim_for_hypervisor();
    assert!(far.attach(&domain).is_ok());
    assert!(domain.snoops().is_none());
}

#[test]
fn a_tracked_domain_refuses_a_device_whose_unit_does_not_track() {
    let untracked = UnitCaps {
        dirty: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(full_unit(), untracked);
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN.with(DIRTY)).unwrap();
    let far = machine.take(FAR).claim_for_hypervisor();
    let Err(AttachFailed::Refused { group: far, error }) = far.attach(&domain) else {
        panic!("attached");
    };
    let expected = AttachError::Incompatible {
        unit: far.unit(),
        unmet: Unmet::absent("dirty tracking"),
    };
    assert_eq!(error, expected);
    let plain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    assert!(far.attach(&plain).is_ok());
}
