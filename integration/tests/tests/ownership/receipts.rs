//! What a receipt opens and what it does not.

use hv_core::platform::FrameSource;
use hv_core::{Access, Iova, Perms};
use hv_iommu::{FlushDepth, FlushRequest, FlushSpan, RedeemRefusal};
use hv_tests::fake::{DmaFault, Logged};

use super::machine::{FAR, Machine, NIC, iovas, pages};

#[test]
fn bc02_xsa_480_a_receipt_from_before_the_unmap_opens_nothing() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(host.frames(1), Perms::Read).unwrap();
    let at = Iova::new(0x4000);
    let old = driver.domain.flush(FlushSpan::Domain).unwrap();
    machine.fake.dma(NIC, at, Access::Read).unwrap();

    let pending = range.unmap();
    let refused = pending.redeem(&old).unwrap_err();
    let too_old = RedeemRefusal::TooOld {
        needed: 1,
        found: 0,
    };
    assert_eq!(refused.reason, too_old);
    // The device still reaches the frame; it is good that nobody else has it.
    assert!(machine.fake.dma(NIC, at, Access::Read).is_ok());
    let new = driver.domain.flush(FlushSpan::Domain).unwrap();
    let (range, frames) = refused.pending.redeem(&new).unwrap();
    assert_eq!(
        machine.fake.dma(NIC, at, Access::Read),
        Err(DmaFault::NotMapped)
    );

    // And the same receipt does not open the next unmap of the same range.
    let pending = range.map(frames, Perms::Read).unwrap().unmap();
    let refused = pending.redeem(&new).unwrap_err();
    assert!(matches!(refused.reason, RedeemRefusal::TooOld { .. }));
    let (_, frames) = refused.pending.flush().unwrap();
    host.free_frames(frames);
    driver.end(host);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn a_receipt_of_another_domain_opens_nothing() {
    let mut machine = Machine::new();
    let (one, other) = (machine.driver(NIC), machine.driver(FAR));
    let host = machine.fake.host();
    let range = one.domain.reserve(iovas(0x4000, 1)).unwrap();
    let pending = range.map(host.frames(1), Perms::Read).unwrap().unmap();
    let foreign = other.domain.flush(FlushSpan::Domain).unwrap();
    let refused = pending.redeem(&foreign).unwrap_err();
    let expected = RedeemRefusal::OtherDomain {
        expected: one.domain.uid(),
        found: other.domain.uid(),
    };
    assert_eq!(refused.reason, expected);
    let own = one.domain.flush(FlushSpan::Domain).unwrap();
    assert!(refused.pending.redeem(&own).is_ok());
}

#[test]
fn a_receipt_of_another_subsystem_opens_nothing() {
    let (mut here, mut there) = (Machine::new(), Machine::new());
    let (one, other) = (here.driver(NIC), there.driver(NIC));
    let range = one.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(here.host().frames(1), Perms::Read).unwrap();
    here.fake.dma(NIC, Iova::new(0x4000), Access::Read).unwrap();
    let pending = range.unmap();
    // The units there forgot something; these here did not.
    let foreign = other.domain.flush(FlushSpan::Domain).unwrap();
    let refused = pending
        .redeem(&foreign)
        .expect_err("the device still reaches the frames");
    let expected = RedeemRefusal::OtherDomain {
        expected: one.domain.uid(),
        found: other.domain.uid(),
    };
    assert_eq!(refused.reason, expected);
    assert_ne!(one.domain.uid(), other.domain.uid());
}

#[test]
fn bc03_cve_2026_31735_a_receipt_for_part_of_a_range_opens_nothing() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 4)).unwrap();
    let range = range.map(machine.host().frames(4), Perms::Read).unwrap();
    let mut pending = range.unmap();
    for part in [
        iovas(0x4000, 3),
        iovas(0x5000, 3),
        iovas(0x1000, 2),
        iovas(0x9000, 8),
    ] {
        let receipt = driver.domain.flush(FlushSpan::Pages(part)).unwrap();
        let refused = pending.redeem(&receipt).unwrap_err();
        let expected = RedeemRefusal::NotCovered {
            range: iovas(0x4000, 4),
        };
        assert_eq!(refused.reason, expected);
        pending = refused.pending;
    }
    let receipt = driver
        .domain
        .flush(FlushSpan::Pages(iovas(0x3000, 6)))
        .unwrap();
    let (range, frames) = pending.redeem(&receipt).unwrap();
    assert_eq!((range.span(), frames.pages()), (iovas(0x4000, 4), pages(4)));
}

#[test]
fn one_receipt_opens_all_that_came_before_it() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let host = machine.fake.host();
    let pending: Vec<_> = (0..8)
        .map(|index| {
            let range = driver
                .domain
                .reserve(iovas(0x10_0000 * (index + 1), 2))
                .unwrap();
            let range = range.map(host.frames(2), Perms::ReadWrite).unwrap();
            machine
                .fake
                .dma_write(NIC, range.span().start(), index)
                .unwrap();
            range.unmap()
        })
        .collect();
    machine.fake.take_log(0);
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    assert_eq!(machine.fake.take_log(0).len(), 1);
    for pending in pending {
        let (range, frames) = pending.redeem(&receipt).unwrap();
        host.free_frames(frames);
        let gone = machine.fake.dma_read(NIC, range.span().start());
        assert_eq!(gone, Err(DmaFault::NotMapped));
        range.release().unwrap();
    }
    driver.end(host);
    assert_eq!(host.frames_out(), 0);
}

#[test]
fn the_flush_of_a_pending_range_asks_for_just_that_range_and_its_leaves() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let neighbour = driver.domain.reserve(iovas(0x6000, 1)).unwrap();
    let _neighbour = neighbour
        .map(machine.host().frames(1), Perms::Read)
        .unwrap();
    let range = driver.domain.reserve(iovas(0x4000, 2)).unwrap();
    let range = range.map(machine.host().frames(2), Perms::Read).unwrap();
    for at in [0x4000, 0x5000, 0x6000] {
        machine.fake.dma(NIC, Iova::new(at), Access::Read).unwrap();
    }
    machine.fake.take_log(0);
    let _redeemed = range.unmap().flush().unwrap();
    let request = FlushRequest {
        domain: driver.domain.hw_id(),
        span: FlushSpan::Pages(iovas(0x4000, 2)),
        depth: FlushDepth::Leaves,
    };
    assert_eq!(machine.fake.take_log(0), [Logged::Flush(request)]);
    assert_eq!(machine.fake.cached(0, driver.domain.hw_id()), 1);
}

#[test]
fn a_slow_completion_is_waited_for() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let range = driver.domain.reserve(iovas(0x4000, 1)).unwrap();
    let range = range.map(machine.host().frames(1), Perms::Read).unwrap();
    machine
        .fake
        .dma(NIC, Iova::new(0x4000), Access::Read)
        .unwrap();
    machine
        .fake
        .completes(0, hv_tests::fake::Completion::AfterPolls(200));
    let (_, _frames) = range.unmap().flush().unwrap();
    let gone = machine.fake.dma(NIC, Iova::new(0x4000), Access::Read);
    assert_eq!(gone, Err(DmaFault::NotMapped));
}
