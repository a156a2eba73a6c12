//! Whom a domain trusts: no device reaches what it is not trusted with because another one in its domain is.

use std::num::NonZeroUsize;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_iommu::{
    AttachError, AttachFailed, ByteWindow, DeferredConfig, DmaConfig, Domain, ReplaceFailed,
    ToDevice, Trust, TrustRefusal,
};

use super::{filled, reads, trusting};
use crate::machine::{DISK, Machine, NIC, PLAIN, end_domain};

#[test]
fn a_domain_with_an_untrusted_group_trusts_no_device() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    let other = machine.take(DISK).claim_for_hypervisor();
    assert_eq!(other.trusted(), Trust::Untrusted);
    let other = other.attach(&driver.domain).unwrap();
    let refused = TrustRefusal::UntrustedAttached {
        domain: driver.domain.uid(),
        untrusted: 1,
    };
    let asked = driver.domain.trusting_dma_device(DmaConfig::default());
    let error = asked.unwrap_err();
    assert_eq!(error, refused);
    assert!(error.to_string().contains("`Group::trust`"), "{error}");
    // The word is for a claim, and the group may join once somebody gave it.
    let other = other.detach().unwrap().trust("a test");
    let other = other.attach(&driver.domain).unwrap();
    assert_eq!(trusting(&driver).trust(), Trust::Trusted);
    let rest = other.detach().unwrap().release();
    let again = rest.claim_for_hypervisor();
    assert_eq!(again.trusted(), Trust::Untrusted, "the claim has ended");
}

#[test]
fn no_untrusted_group_joins_what_was_lent_to_trusted_devices() {
    let mut machine = Machine::new();
    let driver = machine.trusted_driver(NIC);
    let mappings = NonZeroUsize::new(4).unwrap();
    let deadline = Duration::from_secs(3600);
    let config = DeferredConfig { mappings, deadline };
    driver.domain.allow_deferred_flush(config).unwrap();
    let dma = trusting(&driver);
    // One mapping shares its page, another waits for its flush; the device's value is gone.
    let window = ByteWindow {
        offset: 8,
        bytes: 8,
    };
    let shared = dma
        .map_bytes(filled(&machine, 1, 40), window, ToDevice)
        .unwrap();
    assert_eq!(reads(&machine, shared.span().start(), 0), Ok(40));
    let waits = dma.map(filled(&machine, 1, 0), ToDevice).unwrap();
    machine.host().free_frames(waits.unmap_deferred().unwrap());
    drop(dma);

    let other = machine.take(DISK).claim_for_hypervisor();
    let exposed = |error: AttachError| {
        let expected = AttachError::Exposed {
            group: other_id(&error),
            domain: driver.domain.uid(),
        };
        assert_eq!(error, expected);
    };
    // Neither by attaching nor by moving over, with the group as it was afterwards.
    let Err(AttachFailed::Refused { group, error }) = other.attach(&driver.domain) else {
        panic!("an untrusted group came in");
    };
    exposed(error);
    let own = Domain::paging_domain_alloc(&group, PLAIN).unwrap();
    let group = group.attach(&own).unwrap();
    let Err(ReplaceFailed::Refused { group, error }) = group.replace_with_gap(&driver.domain)
    else {
        panic!("an untrusted group came in");
    };
    exposed(error);
    assert_eq!(group.domain(), own.uid());
    // Nothing was counted for the refused: with one's word it comes in, and both domains end.
    let group = group.detach().unwrap().trust("a test");
    assert_eq!(end_domain(own, machine.host()), 0);
    let group = group.attach(&driver.domain).unwrap();
    drop(group.detach().unwrap());
    machine.host().free_frames(shared.unmap().flush().unwrap());
    drop(driver.group.detach().unwrap());
    assert_eq!(end_domain(driver.domain, machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

/// The group that an error is about.
fn other_id(error: &AttachError) -> hv_iommu::GroupId {
    match error {
        AttachError::Exposed { group, .. } => *group,
        other => panic!("{other}"),
    }
}
