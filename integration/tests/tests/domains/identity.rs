//! Identity domains: only by somebody's word for this very group, only where the unit can.

use hv_core::{Access, Iova, KernelPaging, Perms};
use hv_iommu::{
    AttachError, AttachFailed, Attached, DestroyRefusal, Domain, DomainError, Group, Identity,
    TrustedDevice,
};
use hv_tests::fake::{Answer, Call, Completion, DmaFault, Fake, Features};

use super::machine::{DISK, FAR, Machine, NIC, end_domain, iovas, vm};

type Untranslated = Group<Fake, Attached<KernelPaging, Fake, Identity>>;

#[test]
fn a_trusted_device_reaches_memory_by_its_own_addresses_until_it_is_detached() {
    let mut machine = Machine::new();
    let frames = machine.host().frames(1);
    let at = Iova::new(frames.range().start().as_u64());
    let group = machine.take(NIC).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&group, "a test");
    let domain = Domain::identity_domain_alloc(&group, &trusted).unwrap();
    let group: Untranslated = group.attach_untranslated(&domain, trusted).unwrap();
    assert_eq!(group.domain(), domain.uid());
    let silent = machine.fake.dma(NIC, at, Access::Write);
    assert_eq!(silent, Err(DmaFault::NotBusMaster));
    group.enable_bus_mastering(NIC).unwrap();
    assert_eq!(
        machine.fake.dma(NIC, at, Access::Write),
        Ok(frames.range().start())
    );
    // The domain is in use until then, and its id taken.
    let refused = domain.destroy().unwrap_err();
    assert_eq!(refused.reason, DestroyRefusal::Attached { attachments: 1 });
    assert_eq!(machine.iommu.domains_in_use(), 1);
    let _group = group.detach().unwrap();
    machine.host().leave_bus_mastering_on(NIC);
    let gone = machine.fake.dma(NIC, at, Access::Write);
    assert_eq!(gone, Err(DmaFault::NotBound));
    refused.domain.destroy().unwrap();
    assert_eq!(machine.iommu.domains_in_use(), 0);
}

#[test]
fn the_word_for_one_group_is_not_for_another() {
    let mut machine = Machine::new();
    let trusted_group = machine.take(NIC).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&trusted_group, "a test");
    let domain = Domain::identity_domain_alloc(&trusted_group, &trusted).unwrap();
    let other = machine.take(DISK).claim_for_hypervisor();
    let Err(AttachFailed::Refused { group, error }) = other.attach_untranslated(&domain, trusted)
    else {
        panic!("attached");
    };
    let expected = AttachError::NotVouchedFor {
        group: group.id(),
        trusted: trusted_group.id(),
    };
    assert_eq!(error, expected);
    assert_eq!(machine.fake.bound(DISK), None);
    // Nor for the group of the same number elsewhere.
    let mut elsewhere = Machine::new();
    let group = elsewhere.take(NIC).claim_for_hypervisor();
    assert_eq!(group.id(), trusted_group.id());
    let own = TrustedDevice::vouch_for(&group, "a test");
    let domain = Domain::identity_domain_alloc(&group, &own).unwrap();
    let foreign = TrustedDevice::vouch_for(&trusted_group, "a test");
    let refused = group.attach_untranslated(&domain, foreign);
    assert!(matches!(refused, Err(AttachFailed::Refused { .. })));
    assert_eq!(elsewhere.fake.bound(NIC), None);
}

#[test]
fn a_unit_that_always_translates_says_so() {
    let mut machine = Machine::new();
    let never = Features {
        pass_through: false,
        ..Features::ALL
    };
    machine.fake.features(1, never);
    let near = machine.take(NIC).claim_for_hypervisor();
    let far = machine.take(FAR).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&far, "a test");
    let Err(DomainError::Unmet { unit, unmet }) = Domain::identity_domain_alloc(&far, &trusted)
    else {
        panic!("made");
    };
    assert_eq!(unit, far.unit());
    assert_eq!((unmet.needed, unmet.found), (1, 0));
    // Neither is it attached to one that was made for another unit's device.
    let word = TrustedDevice::vouch_for(&near, "a test");
    let domain = Domain::identity_domain_alloc(&near, &word).unwrap();
    let Err(AttachFailed::Refused { error, .. }) = far.attach_untranslated(&domain, trusted) else {
        panic!("attached");
    };
    assert_eq!(error, AttachError::Incompatible { unit, unmet });
    let said = "unit 1 cannot serve the domain: the unit has no support for passing requests through untranslated";
    assert_eq!(error.to_string(), said);
    assert_eq!(machine.fake.bound(FAR), None);
}

#[test]
fn bc05_xsa_302_an_identity_entry_that_is_not_forgotten_wedges_its_group() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&group, "a test");
    let domain = Domain::identity_domain_alloc(&group, &trusted).unwrap();
    let group = group.attach_untranslated(&domain, trusted).unwrap();
    let answer = Answer::Completes(Completion::Never);
    machine.fake.plan(0, Call::Unbind, 0, answer);
    let group = group.detach().unwrap_err();
    let refused = domain.destroy().unwrap_err();
    assert_eq!(machine.iommu.domains_in_use(), 1, "the id is not reused");
    machine.iommu.reset_unit(group.unit()).unwrap();
    let _group = group.recover().unwrap();
    refused.domain.destroy().unwrap();
}

#[test]
fn a_device_is_moved_out_of_identity_and_translates_from_then_on() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&group, "a test");
    let identity = Domain::identity_domain_alloc(&group, &trusted).unwrap();
    let paging = Domain::paging_domain_alloc(&group, super::machine::PLAIN).unwrap();
    let frames = machine.host().frames(1);
    let raw = Iova::new(frames.range().start().as_u64());
    let range = paging.reserve(iovas(0x4000, 1)).unwrap();
    let _range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    let group = group.attach_untranslated(&identity, trusted).unwrap();
    group.enable_bus_mastering(NIC).unwrap();
    assert!(machine.fake.dma(NIC, raw, Access::Read).is_ok());
    let group = group.replace_with_gap(&paging).unwrap();
    assert!(machine.fake.dma(NIC, raw, Access::Read).is_err());
    let mapped = machine.fake.dma(NIC, Iova::new(0x4000), Access::Read);
    assert!(mapped.is_ok());
    identity.destroy().unwrap();
    let _group = group.detach().unwrap();
    assert_eq!(end_domain(paging, machine.host()), 1);
}

#[test]
fn bc05_the_word_for_a_device_does_not_outlive_the_claim() {
    let mut machine = Machine::new();
    let group = machine.take(NIC).claim_for_hypervisor();
    let trusted = TrustedDevice::vouch_for(&group, "a test");
    let domain = Domain::identity_domain_alloc(&group, &trusted).unwrap();
    // A guest has the device in between, and may have written its firmware.
    let group = group.release().without_reset("a test").claimable().unwrap();
    let group = group.claim_for_guest(vm(7));
    let group = group.release().without_reset("a test").claimable().unwrap();
    let group = group.claim_for_hypervisor();
    let Err(AttachFailed::Refused { group, error }) = group.attach_untranslated(&domain, trusted)
    else {
        panic!("attached on a word from before the guest");
    };
    assert!(
        matches!(error, AttachError::NotVouchedFor { .. }),
        "{error}"
    );
    assert_eq!(machine.fake.bound(NIC), None);
    let again = TrustedDevice::vouch_for(&group, "a test");
    let group = group.attach_untranslated(&domain, again).unwrap();
    let _group = group.detach().unwrap();
    domain.destroy().unwrap();
}
