//! What is fixed when a domain is made: asked for, refused by its name, witnessed.

use hv_iommu::{AttachError, AttachFailed, Domain, DomainError, Needs, UnitCaps, Unmet};

use super::machine::{FAR, Machine, NIC, PLAIN, full_unit, iovas, pages};
use hv_core::platform::FrameSource;
use hv_core::{Iova, PageSize, Perms};

const DIRTY: Needs = Needs {
    dirty_tracking: true,
    coherent_walks: false,
    coherent_dma: false,
    pasids: false,
};
const COHERENT: Needs = Needs {
    dirty_tracking: false,
    coherent_walks: true,
    coherent_dma: false,
    pasids: false,
};

const SNOOPS: Needs = Needs {
    dirty_tracking: false,
    coherent_walks: false,
    coherent_dma: true,
    pasids: false,
};

#[test]
fn what_was_not_asked_for_has_no_witness() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    assert!(domain.dirty().is_none(), "possible, but not asked for");
    let tracked = Domain::paging_domain_alloc(&group, PLAIN.with(DIRTY)).unwrap();
    assert!(tracked.dirty().is_some());
    assert_eq!(tracked.walks_snoop().unwrap().domain(), tracked.uid());
    assert!(tracked.snoops().is_none(), "walks do, devices need not");
    let coherent = Domain::paging_domain_alloc(&group, PLAIN.with(SNOOPS)).unwrap();
    assert_eq!(coherent.snoops().unwrap().domain(), coherent.uid());
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
    let no_control = UnitCaps {
        snoop_control: false,
        ..full
    };
    let rows = [
        (no_control, SNOOPS, "coherent DMA"),
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
    assert!(domain.walks_snoop().is_none());
    // A unit that snoops serves it, and it does not become coherent by that.
    let far = machine.take(FAR).claim_for_hypervisor();
    assert!(far.attach(&domain).is_ok());
    assert!(domain.walks_snoop().is_none());
}

/// Shows: T18.
#[test]
fn a_domain_of_devices_that_snoop_refuses_one_whose_unit_cannot_force_it() {
    let weak = UnitCaps {
        snoop_control: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(full_unit(), weak);
    let group = machine.take(NIC).claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&group, PLAIN.with(SNOOPS)).unwrap();
    let far = machine.take(FAR).claim_for_hypervisor();
    let Err(AttachFailed::Refused { group: far, error }) = far.attach(&domain) else {
        panic!("attached");
    };
    let expected = AttachError::Incompatible {
        unit: far.unit(),
        unmet: Unmet::absent("coherent DMA"),
    };
    assert_eq!(error, expected);
    // One that did not ask is as before.
    let plain = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    assert!(far.attach(&plain).is_ok() && plain.snoops().is_none());
}

/// Shows: T18.
#[test]
fn requests_snoop_where_a_domain_asked_for_it_and_nowhere_else() {
    let mut machine = Machine::new();
    let mut group = machine.take(NIC).claim_for_hypervisor();
    for (needs, snoops) in [(Needs::default(), false), (SNOOPS, true)] {
        let domain = Domain::paging_domain_alloc(&group, PLAIN.with(needs)).unwrap();
        let attached = group.attach(&domain).unwrap();
        attached.enable_bus_mastering(NIC).unwrap();
        // By small pages, large ones, and after every change of either.
        let range = domain.reserve(iovas(0x4000_0000, 513)).unwrap();
        let frames = machine.host().frames_aligned(513, PageSize::Size2M);
        let range = range.map(frames, Perms::ReadWrite).unwrap();
        let check = |when| {
            for page in [0, 5, 511, 512] {
                let at = Iova::new(0x4000_0000 + (page << 12));
                let found = machine.fake.is_snooped(NIC, at);
                assert_eq!(found, Ok(snoops), "page {page} {when}");
            }
        };
        check("mapped");
        let (low, high) = range.split_large_at(pages(5)).unwrap();
        check("split");
        let mut whole = low.join(high).unwrap();
        whole.settle().unwrap();
        whole.protect(Perms::Read).unwrap();
        whole.settle().unwrap();
        check("protected");
        assert_eq!(whole.merge(), (1, Ok(())));
        whole.settle().unwrap();
        check("merged");
        let (range, frames) = whole.unmap().flush().unwrap();
        range.release().unwrap();
        machine.host().free_frames(frames);
        group = attached.detach().unwrap().release().claim_for_hypervisor();
    }
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
