//! Scatter lists: all runs or none, one range where there is one, one flush.

use std::ops::ControlFlow;

use hv_core::Iova;
use hv_core::platform::FrameSource;
use hv_iommu::table::TableError;
use hv_iommu::{
    Bidirectional, DmaMapError, DmaRefusal, DomainConfig, FromDevice, MapRefusal, ScatterList,
    ToDevice, UnitCaps,
};
use hv_tests::fake::{Answer, Call, DmaFault};

use super::{filled, flushes, reads, word, writes};
use crate::heap::taken_by;
use crate::machine::{Machine, NIC, PLAIN, end_domain, full_unit, iovas, pages};

/// A list of runs of these lengths, each filled from a number of its own on.
fn list(machine: &Machine, lengths: &[u64]) -> ScatterList {
    let mut list = ScatterList::with_capacity(lengths.len()).unwrap();
    let mut gaps = Vec::new();
    for (number, length) in (1..).zip(lengths) {
        list.push(filled(machine, *length, number * 0x10_0000))
            .unwrap();
        // So that the next run is not right behind.
        gaps.push(machine.host().frames(1));
    }
    gaps.into_iter()
        .for_each(|gap| machine.host().free_frames(gap));
    list
}

fn free(machine: &Machine, mut list: ScatterList) -> u64 {
    let mut count = 0;
    while let Some(run) = list.pop() {
        count += run.pages().get();
        machine.host().free_frames(run);
    }
    count
}

#[test]
fn many_runs_are_one_range_for_the_device_and_one_flush() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let lengths = [1, 3, 2, 5];
    let mapping = dma
        .map_scatter(list(&machine, &lengths), Bidirectional)
        .unwrap();
    let range = mapping.contiguous().unwrap();
    assert_eq!(range.pages(), pages(11));
    assert_eq!(mapping.segments().count(), 1);
    let at = range.start();
    let mut page = 0;
    for (number, length) in (1..).zip(lengths) {
        for index in 0..length {
            let expected = number * 0x10_0000 + index * 512;
            assert_eq!(reads(&machine, at, (page + index) << 12), Ok(expected));
        }
        page += length;
    }
    writes(&machine, at, 10 << 12, 5).unwrap();
    flushes(&machine);
    let mut back = mapping.unmap().flush().unwrap();
    assert_eq!(flushes(&machine), 1);
    for page in 0..11 {
        assert_eq!(reads(&machine, at, page << 12), Err(DmaFault::NotMapped));
    }
    assert_eq!((back.len(), back.pages()), (4, Some(pages(11))));
    let last = back.pop().unwrap();
    assert_eq!(word(machine.host(), &last, 4 << 12), 5);
    machine.host().free_frames(last);
    assert_eq!(free(&machine, back), 6);
    drop(dma);
    assert_eq!(driver.end(machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}

#[test]
fn units_that_must_be_told_of_new_mappings_are_told_once() {
    let unit = UnitCaps {
        sync_on_map: true,
        ..full_unit()
    };
    let mut machine = Machine::with_units(unit, unit);
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    // That nothing is there is cached.
    for page in 1..32 {
        let at = Iova::new(page << 12);
        assert_eq!(machine.fake.dma_read(NIC, at), Err(DmaFault::NotMapped));
    }
    flushes(&machine);
    let mapping = dma
        .map_scatter(list(&machine, &[1, 1, 2, 1]), ToDevice)
        .unwrap();
    assert_eq!(flushes(&machine), 1);
    let at = mapping.contiguous().unwrap().start();
    for page in 0..5 {
        assert!(reads(&machine, at, page << 12).is_ok());
    }
}

#[test]
fn where_no_range_is_long_enough_each_run_has_one() {
    let unit = UnitCaps {
        iova_bits: 17,
        ..full_unit()
    };
    let config = DomainConfig {
        address_bits: 17,
        ..PLAIN
    };
    let mut machine = Machine::with_units(unit, unit);
    let driver = machine.driver_with(NIC, config);
    let dma = driver.domain.dma_device(Default::default());
    // 31 pages that can be had, cut into pieces of 3 and less.
    let kept: Vec<_> = (1..8)
        .map(|piece| driver.domain.reserve(iovas(piece << 14, 1)).unwrap())
        .collect();
    let before = driver.domain.free_pages();
    let mapping = dma
        .map_scatter(list(&machine, &[2, 3, 1]), FromDevice)
        .unwrap();
    assert_eq!(mapping.contiguous(), None);
    let spans: Vec<_> = mapping.segments().collect();
    let lengths: Vec<_> = spans.iter().map(|span| span.pages().get()).collect();
    assert_eq!(lengths, [2, 3, 1]);
    for span in &spans {
        writes(&machine, span.start(), 8, span.start().as_u64()).unwrap();
    }
    flushes(&machine);
    let mut back = mapping.unmap().flush().unwrap();
    assert_eq!(flushes(&machine), 1, "one for all ranges");
    assert_eq!(driver.domain.free_pages(), before);
    for span in spans.iter().rev() {
        assert_eq!(
            writes(&machine, span.start(), 8, 0),
            Err(DmaFault::NotMapped)
        );
        let run = back.pop().unwrap();
        assert_eq!(word(machine.host(), &run, 8), span.start().as_u64());
        machine.host().free_frames(run);
    }
    // One run too many for the pieces: nothing is taken.
    let many = list(&machine, &[3; 9]);
    let error = dma.map_scatter(many, FromDevice).unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert!(matches!(reason, DmaRefusal::Space(_)), "{reason}");
    assert_eq!(driver.domain.free_pages(), before);
    assert_eq!(free(&machine, value), 27);
    drop(kept);
}

/// A domain in which a list of four runs needs tables at several of its parts.
fn across() -> [u64; 4] {
    [400, 600, 300, 900]
}

#[test]
fn bc18_xsa_207_a_list_is_mapped_whole_or_not_at_all_whichever_allocation_fails() {
    let mut failing = 0;
    let mut rolled_back = 0;
    loop {
        let mut machine = Machine::new();
        let driver = machine.driver(NIC);
        let host = machine.fake.host();
        let dma = driver.domain.dma_device(Default::default());
        let runs = list(&machine, &across());
        let (out, before) = (host.frames_out(), driver.domain.free_pages());
        flushes(&machine);
        host.fail_allocation_after(Some(failing));
        let mapped = dma.map_scatter(runs, Bidirectional);
        host.fail_allocation_after(None);
        let list = match mapped {
            Ok(mapping) => {
                free(&machine, mapping.unmap().flush().unwrap());
                drop(dma);
                assert_eq!(driver.end(host), 0);
                assert_eq!(host.frames_out(), 0);
                break;
            }
            Err(DmaMapError::Refused { value, reason }) => {
                let DmaRefusal::Map(MapRefusal::Table(TableError::OutOfFrames { .. })) = reason
                else {
                    panic!("{reason}");
                };
                value
            }
            Err(other) => panic!("{other}"),
        };
        rolled_back += flushes(&machine);
        assert_eq!(driver.domain.free_pages(), before, "{failing}");
        // Tables that were linked stay with the domain, the runs do not.
        let tables = driver.domain.table_pages() - 1;
        assert_eq!(host.frames_out(), out + tables, "{failing}");
        let all = iovas(0, 1 << 27);
        let left = driver.domain.mappings(all, |_| ControlFlow::Break(()));
        assert!(left.is_continue(), "{failing}");
        // A second try succeeds.
        let mapping = dma.map_scatter(list, Bidirectional).unwrap();
        assert_eq!(free(&machine, mapping.unmap().flush().unwrap()), 2200);
        drop(dma);
        assert_eq!(driver.end(host), 0);
        assert_eq!(host.frames_out(), 0, "after {failing} allocations");
        failing += 1;
    }
    assert!(failing >= 4, "{failing} allocations");
    assert!(
        rolled_back >= 2,
        "{rolled_back} times a part had been mapped"
    );
}

#[test]
fn bc02_a_list_that_cannot_be_undone_stays_pending_until_a_receipt() {
    let mut stuck = 0;
    for failing in 0..6 {
        let mut machine = Machine::new();
        let driver = machine.driver(NIC);
        let host = machine.fake.host();
        let dma = driver.domain.dma_device(Default::default());
        let runs = list(&machine, &across());
        let before = driver.domain.free_pages();
        // A table is missing somewhere, and the undoing is not answered.
        host.fail_allocation_after(Some(failing));
        machine.fake.plan(0, Call::Submit, 0, Answer::Busy);
        let mapped = dma.map_scatter(runs, ToDevice);
        host.fail_allocation_after(None);
        let list = match mapped {
            Err(DmaMapError::Stuck {
                pending, reason, ..
            }) => {
                assert!(matches!(reason, DmaRefusal::Map(MapRefusal::Table(_))));
                assert!(driver.domain.free_pages() < before);
                stuck += 1;
                pending.flush().unwrap()
            }
            // Before the first part, or nowhere.
            Err(DmaMapError::Refused { value, .. }) => value,
            Err(other) => panic!("{other}"),
            Ok(mapping) => {
                let pending = mapping.unmap().flush().unwrap_err().pending;
                pending.flush().unwrap()
            }
        };
        assert_eq!(driver.domain.free_pages(), before);
        assert_eq!((list.len(), free(&machine, list)), (4, 2200));
        drop(dma);
        assert_eq!(driver.end(host), 0);
        assert_eq!(host.frames_out(), 0);
    }
    assert!(stuck > 0, "every failure came before the first part");
}

#[test]
fn lists_are_bounded_and_serve_again_without_the_heap() {
    let mut machine = Machine::new();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(Default::default());
    let empty = ScatterList::with_capacity(3).unwrap();
    let error = dma.map_scatter(empty, ToDevice).unwrap_err();
    let DmaMapError::Refused { value, reason } = error else {
        panic!("{error}");
    };
    assert_eq!(reason, DmaRefusal::Empty);
    let mut list = value;
    for round in 0..4 {
        for length in [1, 2, 1] {
            list.push(machine.host().frames(length)).unwrap();
        }
        let one_more = list.push(machine.host().frames(1)).unwrap_err();
        assert_eq!(one_more.limit, 3);
        machine.host().free_frames(one_more.run);
        let (mapping, map) = taken_by(|| dma.map_scatter(list, ToDevice).unwrap());
        let (pending, unmap) = taken_by(|| mapping.unmap());
        let receipt = driver.domain.flush(hv_iommu::FlushSpan::Domain).unwrap();
        let (back, redeem) = taken_by(|| pending.redeem(&receipt).unwrap());
        if round > 0 {
            assert_eq!((map, unmap, redeem), (0, 0, 0));
        }
        list = back;
        while let Some(run) = list.pop() {
            machine.host().free_frames(run);
        }
    }
    // A mapping that is dropped is the end of the domain's to give back.
    list.push(machine.host().frames(3)).unwrap();
    drop(dma.map_scatter(list, ToDevice).unwrap());
    drop((dma, driver.group.detach().unwrap()));
    assert_eq!(end_domain(driver.domain, machine.host()), 3);
    assert_eq!(machine.host().frames_out(), 0);
}
