//! Streaming mappings: moved in, lent in one direction, back by receipt.

use hv_core::platform::FrameSource;
use hv_core::{Perms, PhysAddr};
use hv_iommu::table::TableError;
use hv_iommu::{
    Bidirectional, DestroyRefusal, DmaMapError, DmaRefusal, FlushSpan, FromDevice, MapRefusal,
    RedeemRefusal, ToDevice, UnitCaps,
};
use hv_tests::fake::{Answer, Call, DmaFault};

use super::{filled, flushes, reads, word, writes};
use crate::heap::{freed_by, taken_by};
use crate::machine::{FAR, Machine, NIC, end_domain, full_unit};

#[test]
fn a_device_reads_what_the_cpu_wrote_and_no_more_after_the_receipt() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let run = filled(&machine, 3, 100);
    let frames = run.range();
    let mapping = dma.map(run, ToDevice).unwrap();
    let at = mapping.iova();
    assert_eq!((mapping.bytes(), mapping.granted()), (3 << 12, Perms::Read));
    assert_eq!(reads(&machine, at, 0x2ff8), Ok(100 + 0x2ff8 / 8));
    assert_eq!(writes(&machine, at, 0, 1), Err(DmaFault::NotPermitted));
    let pending = mapping.unmap();
    // Hardware still has it, which is why the run is not back yet.
    assert_eq!(reads(&machine, at, 0x2ff8), Ok(100 + 0x2ff8 / 8));
    let run = pending.flush().unwrap();
    assert_eq!(run.range(), frames);
    assert_eq!(reads(&machine, at, 0x2ff8), Err(DmaFault::NotMapped));
    assert_eq!(word(machine.host(), &run, 0), 100);
    machine.host().free_frames(run);
    drop(dma);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn the_cpu_reads_what_the_device_wrote() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let mapping = dma.map(filled(&machine, 1, 0), FromDevice).unwrap();
    let at = mapping.iova();
    assert_eq!(mapping.granted(), Perms::Write);
    writes(&machine, at, 0x800, 77).unwrap();
    assert_eq!(reads(&machine, at, 0x800), Err(DmaFault::NotPermitted));
    let run = mapping.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &run, 0x800), 77);

    let mapping = dma.map(run, Bidirectional).unwrap();
    let at = mapping.iova();
    assert_eq!(reads(&machine, at, 0x800), Ok(77));
    writes(&machine, at, 0x808, 78).unwrap();
    let run = mapping.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &run, 0x808), 78);
    machine.host().free_frames(run);
}

#[test]
fn a_unit_without_write_only_mappings_says_so() {
    let unit = UnitCaps {
        write_only: false,
        ..full_unit()
    };
    let mut machine = Machine::with_units(unit, unit);
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let mapping = dma.map(machine.host().frames(1), FromDevice).unwrap();
    assert_eq!(mapping.granted(), Perms::ReadWrite);
}

#[test]
fn bc02_xsa_480_only_a_receipt_of_after_the_unmap_gives_the_run_back() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let other = machine.driver(FAR);
    let dma = driver.domain.dma_device(Default::default());
    let mapping = dma.map(filled(&machine, 1, 0), ToDevice).unwrap();
    let before = driver.domain.flush(FlushSpan::Domain).unwrap();
    let foreign = other.domain.flush(FlushSpan::Domain).unwrap();
    let error = mapping.unmap().redeem(&before).unwrap_err();
    assert!(matches!(error.reason, RedeemRefusal::TooOld { .. }));
    let error = error.pending.redeem(&foreign).unwrap_err();
    assert!(matches!(error.reason, RedeemRefusal::OtherDomain { .. }));
    let now = driver.domain.flush(FlushSpan::Domain).unwrap();
    machine
        .host()
        .free_frames(error.pending.redeem(&now).unwrap());
}

#[test]
fn bc01_xsa_373_a_flush_that_fails_leaves_it_pending() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let run = filled(&machine, 1, 0);
    let frame = run.range().start();
    let free = driver.domain.free_pages();
    let mapping = dma.map(run, ToDevice).unwrap();
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let error = mapping.unmap().flush().unwrap_err();
    assert!(matches!(error.reason, RedeemRefusal::Flush(_)));
    assert!(machine.host().is_out(frame));
    assert_eq!(driver.domain.free_pages(), free - 1);
    let run = error.pending.flush().unwrap();
    assert_eq!(driver.domain.free_pages(), free);
    machine.host().free_frames(run);
}

#[test]
fn a_mapping_that_a_unit_was_not_told_of_comes_back_as_a_mapping() {
    let unit = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(unit, unit);
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
    let error = dma.map(filled(&machine, 1, 9), ToDevice).unwrap_err();
    let DmaMapError::NotVisible { mapping, .. } = error else {
        panic!("{error}");
    };
    let run = mapping.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &run, 0), 9);
    machine.host().free_frames(run);
}

#[test]
fn bc21_xsa_207_a_domain_does_not_end_while_its_dma_api_is_in_use_and_gives_all_back_then() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let mapped = dma.map(machine.host().frames(2), ToDevice).unwrap();
    let pending = dma.map(machine.host().frames(3), FromDevice).unwrap();
    let pending = pending.unmap();
    drop(dma);
    drop(driver.group.detach().unwrap());
    let error = driver.domain.destroy().unwrap_err();
    assert_eq!(error.reason, DestroyRefusal::BuffersInUse { buffers: 2 });
    // Dropping loses nothing: the table is the record.
    drop((mapped, pending));
    assert_eq!(end_domain(error.domain, machine.host()), 5);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn bc21_a_mapping_keeps_a_domain_that_was_dropped_where_it_is() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let (one, two) = (filled(&machine, 1, 7), filled(&machine, 1, 8));
    let mapped = dma.map(one, ToDevice).unwrap();
    let pending = dma.map(two, ToDevice).unwrap().unmap();
    drop(dma);
    drop(driver.group.detach().unwrap());
    drop(driver.domain);
    assert_eq!(freed_by(|| machine.iommu.sweep()).1, 0, "both hold it");
    let two = pending.flush().unwrap();
    assert_eq!(freed_by(|| machine.iommu.sweep()).1, 0, "one holds it");
    assert_eq!(word(machine.host(), &two, 0), 8);
    let one = mapped.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &one, 0), 7);
    assert_ne!(freed_by(|| machine.iommu.sweep()).1, 0, "nobody holds it");
    machine.host().free_frames(one);
    machine.host().free_frames(two);
}

#[test]
fn bc18_xsa_360_no_failing_allocation_leaks_a_stream() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let host = machine.fake.host();
    let mut failing = 0;
    loop {
        let run = filled(&machine, 2, failing);
        let (frames, out, free) = (run.range(), host.frames_out(), driver.domain.free_pages());
        host.fail_allocation_after(Some(failing));
        let mapped = dma.map(run, ToDevice);
        host.fail_allocation_after(None);
        match mapped {
            Ok(mapping) => {
                host.free_frames(mapping.unmap().flush().unwrap());
                break;
            }
            Err(DmaMapError::Refused { value, reason }) => {
                let missing = 2 - failing;
                let expected = MapRefusal::Table(TableError::OutOfFrames { missing });
                assert_eq!(reason, DmaRefusal::Map(expected));
                assert_eq!((value.range(), host.frames_out()), (frames, out));
                assert_eq!(driver.domain.free_pages(), free);
                host.free_frames(value);
            }
            Err(other) => panic!("{other}"),
        }
        failing += 1;
    }
    assert_eq!(failing, 2, "two levels of tables");
    drop(dma);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn frames_that_the_unit_cannot_address_come_back() {
    let unit = UnitCaps {
        phys_bits: 13,
        ..full_unit()
    };
    let mut machine = Machine::with_units(unit, unit);
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let error = dma.map(machine.host().frames(1), ToDevice).unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert!(matches!(
        reason,
        DmaRefusal::Map(MapRefusal::PhysTooWide { bits: 13, .. })
    ));
    machine.host().free_frames(value);
}

#[test]
fn mapping_and_opening_take_nothing_from_the_heap() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let mut run = machine.host().frames(4);
    for round in 0..4 {
        let (mapping, map) = taken_by(|| dma.map(run, Bidirectional).unwrap());
        let (pending, unmap) = taken_by(|| mapping.unmap());
        let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
        let (back, redeem) = taken_by(|| pending.redeem(&receipt).unwrap());
        // The first round has the tables made, and lists of the domain grown.
        if round > 0 {
            assert_eq!((map, unmap, redeem), (0, 0, 0));
        }
        run = back;
    }
    machine.host().free_frames(run);
}

#[test]
fn each_mapping_has_addresses_of_its_own_and_large_runs_large_pages() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let one = dma.map(machine.host().frames(1), ToDevice).unwrap();
    let two = dma.map(machine.host().frames(1), ToDevice).unwrap();
    assert!(!one.span().overlaps(&two.span()));
    assert_ne!(one.iova().as_u64(), 0);
    let large = machine
        .host()
        .frames_aligned(512, hv_core::PageSize::Size2M);
    let to: PhysAddr = large.range().start();
    let large = dma.map(large, ToDevice).unwrap();
    let leaf = driver.domain.translate(large.iova()).unwrap();
    assert_eq!((leaf.level, leaf.to), (crate::machine::level(2), to));
    flushes(&machine);
    let pending = [one.unmap(), two.unmap(), large.unmap()];
    let receipt = driver.domain.flush(FlushSpan::Domain).unwrap();
    for pending in pending {
        machine
            .host()
            .free_frames(pending.redeem(&receipt).unwrap());
    }
    assert_eq!(flushes(&machine), 1, "one flush opens them all");
}
