//! A unit that does not complete what it was asked: no receipt, no memory, no device behind it.

use hv_core::{Access, Iova, Perms};
use hv_iommu::{
    AttachError, AttachFailed, DestroyRefusal, Domain, FlushError, FlushSpan, MapError,
    RedeemRefusal, UnitError, UnitIndex,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault};

use super::machine::{DISK, FAR, Machine, NIC, PLAIN, full_unit, iovas};

const UNIT: UnitIndex = match UnitIndex::new(0) {
    Some(unit) => unit,
    None => unreachable!(),
};

const WEDGED: RedeemRefusal =
    RedeemRefusal::Flush(FlushError::Unit(UnitError::Wedged { unit: UNIT }));

#[test]
fn bc01_xsa_373_a_timeout_is_not_success() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let disk = machine.take(DISK).claim_for_hypervisor();
    let disk = disk.attach(&driver.domain).unwrap();
    disk.enable_bus_mastering(DISK).unwrap();
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let frames = machine.host().frames(1);
    let frame = frames.range().start();
    let pending = range.map(frames, Perms::ReadWrite).unwrap().unmap();

    machine.fake.completes(0, Completion::Never);
    let refused = pending.flush().unwrap_err();
    let RedeemRefusal::Flush(FlushError::Unit(UnitError::Timeout { unit, waited, .. })) =
        refused.reason
    else {
        panic!("{refused:?}");
    };
    assert_eq!(unit, UNIT);
    assert!(waited >= std::time::Duration::from_millis(1), "{waited:?}");
    // Every device behind the unit was cut off, not only that of the domain.
    for device in [NIC, DISK] {
        assert_eq!(machine.host().bus_master(device), Some(false), "{device}");
    }
    assert!(machine.host().is_out(frame), "the frame stays where it is");

    // The unit recovering changes nothing: it was declared wedged.
    machine.fake.completes(0, Completion::AfterPolls(0));
    let refused = refused.pending.flush().unwrap_err();
    assert_eq!(refused.reason, WEDGED);
    let wedged = UnitError::Wedged { unit: UNIT };
    let flushed = driver.domain.flush(FlushSpan::Domain);
    assert_eq!(flushed, Err(FlushError::Unit(wedged)));

    let group = driver
        .group
        .detach()
        .expect_err("the unit takes no requests");
    assert_eq!(group.error(), wedged);
    let refused = driver.domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 2 });
    assert_eq!(refused.group, Some(group.id()));
    assert!(machine.host().is_out(frame), "the memory stays quarantined");
}

#[test]
fn bc01_acrn_4680_a_flush_that_fails_or_is_refused_makes_no_receipt() {
    for answer in [Answer::Refuses, Answer::Completes(Completion::Fails)] {
        let mut machine = Machine::new();
        let driver = machine.driver(NIC);
        let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
        let pending = range
            .map(machine.host().frames(1), Perms::Read)
            .unwrap()
            .unmap();
        machine.fake.plan(0, Call::Submit, 0, answer);
        let refused = pending.flush().unwrap_err();
        let failed = FlushError::Unit(UnitError::Hardware {
            unit: UNIT,
            what: "a deliberate failure",
            expected: 0,
            found: 1,
        });
        assert_eq!(refused.reason, RedeemRefusal::Flush(failed));
        assert_eq!(machine.host().bus_master(NIC), Some(false), "{answer:?}");
        assert_eq!(refused.pending.flush().unwrap_err().reason, WEDGED);
    }
}

#[test]
fn one_wedged_unit_of_two_makes_no_receipt() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let far = machine.take(FAR).claim_for_hypervisor();
    let far = far.attach(&driver.domain).unwrap();
    far.enable_bus_mastering(FAR).unwrap();
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    for device in [NIC, FAR] {
        machine
            .fake
            .dma(device, Iova::new(0x4000), Access::Read)
            .unwrap();
    }
    machine.fake.completes(0, Completion::Never);
    let refused = range.unmap().flush().unwrap_err();
    // The healthy unit was waited for, and its device goes on.
    let gone = machine.fake.dma(FAR, Iova::new(0x4000), Access::Read);
    assert_eq!(gone, Err(DmaFault::NotMapped));
    assert_eq!(machine.host().bus_master(FAR), Some(true));
    assert_eq!(machine.host().bus_master(NIC), Some(false));
    assert_eq!(refused.pending.flush().unwrap_err().reason, WEDGED);
    // Without the wedged unit's device the domain would serve again, but that one stays.
    assert!(far.detach().is_ok());
    assert!(driver.group.detach().is_err());
}

#[test]
fn domains_of_other_units_do_not_notice() {
    let mut machine = Machine::new();
    let (near, far) = (machine.driver(NIC), machine.driver(FAR));
    machine.fake.completes(0, Completion::Never);
    assert!(near.domain.flush(FlushSpan::Domain).is_err());
    let range = far.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    machine
        .fake
        .dma(FAR, Iova::new(0x4000), Access::Read)
        .unwrap();
    assert!(range.unmap().flush().is_ok());
    assert_eq!(machine.host().bus_master(FAR), Some(true));
    assert!(far.group.detach().is_ok());
}

#[test]
fn a_device_behind_a_wedged_unit_cannot_be_let_out_again() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range
        .map(machine.host().frames(1), Perms::ReadWrite)
        .unwrap();
    machine.fake.dma_write(NIC, Iova::new(0x4000), 1).unwrap();
    machine.fake.completes(0, Completion::Never);
    let _pending = range.unmap().flush().unwrap_err();
    let wedged = AttachError::Unit(UnitError::Wedged { unit: UNIT });
    assert_eq!(driver.group.enable_bus_mastering(NIC), Err(wedged));
    assert_eq!(machine.host().bus_master(NIC), Some(false));
    let silent = machine.fake.dma_write(NIC, Iova::new(0x4000), 2);
    assert_eq!(silent, Err(DmaFault::NotBusMaster));
}

#[test]
fn nothing_is_attached_behind_a_wedged_unit() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    machine.fake.completes(0, Completion::Never);
    assert!(driver.domain.flush(FlushSpan::Domain).is_err());
    machine.fake.completes(0, Completion::AfterPolls(0));
    let disk = machine.take(DISK).claim_for_hypervisor();
    let own = Domain::paging_domain_alloc(&disk, PLAIN).unwrap();
    let Err(AttachFailed::Refused { group, error }) = disk.attach(&own) else {
        panic!("attached, or wedged without need");
    };
    assert_eq!(error, AttachError::Unit(UnitError::Wedged { unit: UNIT }));
    assert_eq!(machine.fake.bound(DISK), None);
    // The domain was never reached by anything: its memory is free.
    drop(group);
    assert_eq!(own.destroy().unwrap().count(), 0);
}

#[test]
fn a_mapping_that_a_wedged_unit_was_not_told_of_says_so() {
    let caching = hv_iommu::UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(caching, full_unit());
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    machine.fake.completes(0, Completion::Never);
    let error = range
        .map(machine.host().frames(1), Perms::Read)
        .unwrap_err();
    let MapError::NotVisible { range, reason } = error else {
        panic!("{error}");
    };
    assert!(matches!(
        reason,
        FlushError::Unit(UnitError::Timeout { .. })
    ));
    assert!(driver.domain.translate(Iova::new(0x4000)).is_some());
    assert_eq!(machine.host().bus_master(NIC), Some(false));
    assert_eq!(range.unmap().flush().unwrap_err().reason, WEDGED);
}

#[test]
fn a_busy_queue_makes_no_receipt_and_wedges_nothing() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let pending = range
        .map(machine.host().frames(1), Perms::Read)
        .unwrap()
        .unmap();
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let refused = pending.flush().unwrap_err();
    let busy = |reason| {
        matches!(
            reason,
            RedeemRefusal::Flush(FlushError::Unit(UnitError::Busy { .. }))
        )
    };
    assert!(busy(refused.reason), "{refused:?}");
    assert_eq!(machine.host().bus_master(NIC), Some(true));
    assert!(refused.pending.flush().is_ok());
}
