//! Turns at a buffer that stays mapped, with devices that go past the CPU's caches and with bounce pages.

use hv_core::OutOfBounds;
use hv_core::platform::FrameSource;
use hv_iommu::{
    Bidirectional, ByteWindow, DestroyRefusal, DmaConfig, FlushSpan, FromDevice, Snooping,
    ToDevice, Trust,
};

use super::{bouncing, filled, reads, word, writes};
use crate::machine::{Machine, NIC, pages};

/// A device that goes past the CPU's caches.
const PAST: DmaConfig = DmaConfig {
    mask: hv_iommu::DmaMask::ALL,
    snooping: Snooping::DoesNotSnoop,
};

/// What a buffer is used by: bounced or not, past the caches or not.
const DEVICES: [(Trust, Snooping); 4] = [
    (Trust::Trusted, Snooping::Snoops),
    (Trust::Trusted, Snooping::DoesNotSnoop),
    (Trust::Untrusted, Snooping::Snoops),
    (Trust::Untrusted, Snooping::DoesNotSnoop),
];

#[test]
fn cpu_and_device_take_turns_at_a_buffer_that_stays_mapped() {
    for (trust, snooping) in DEVICES {
        let mut machine = Machine::new();
        if snooping == Snooping::DoesNotSnoop {
            machine.host().play_caches();
        }
        let driver = machine.trusted_driver(NIC);
        driver.domain.fill_bounce_pool(pages(2)).unwrap();
        let config = DmaConfig {
            snooping,
            ..DmaConfig::default()
        };
        let dma = match trust {
            Trust::Untrusted => driver.domain.dma_device(config),
            Trust::Trusted => driver.domain.trusting_dma_device(config).unwrap(),
        };
        assert_eq!(dma.trust(), trust);
        let window = ByteWindow {
            offset: 0x800,
            bytes: 0x2000,
        };
        let run = filled(&machine, 3, 0);
        let mut mapping = dma.map_bytes(run, window, Bidirectional).unwrap();
        let at = mapping.iova();
        for round in 1..5 {
            for offset in [0, 0x7f8, 0x800, 0x1ff8] {
                writes(&machine, at, offset, round * 100 + offset).unwrap();
            }
            let mut turn = mapping.sync_for_cpu();
            assert_eq!((turn.iova(), turn.bytes()), (at, 0x2000));
            for offset in [0, 0x7f8, 0x800, 0x1ff8] {
                let mut seen = [0; 8];
                turn.read(offset, &mut seen).unwrap();
                assert_eq!(u64::from_le_bytes(seen), round * 100 + offset, "{dma:?}");
                let answer = (round * 1000 + offset).to_le_bytes();
                turn.write(offset, &answer).unwrap();
            }
            mapping = turn.sync_for_device();
            for offset in [0, 0x7f8, 0x800, 0x1ff8] {
                let seen = reads(&machine, at, offset);
                assert_eq!(seen, Ok(round * 1000 + offset), "{dma:?}");
            }
        }
        writes(&machine, at, 0, 7).unwrap();
        let run = mapping.unmap().flush().unwrap();
        assert_eq!(word(machine.host(), &run, 0x800), 7, "{dma:?}");
        assert_eq!(word(machine.host(), &run, 0x1000), 4000 + 0x800, "{dma:?}");
        assert_eq!(word(machine.host(), &run, 0x7f8), 0x7f8 / 8, "{dma:?}");
        assert_eq!(word(machine.host(), &run, 0x2800), 0x2800 / 8, "{dma:?}");
        machine.host().free_frames(run);
    }
}

#[test]
fn a_device_past_the_caches_shares_no_cache_line_with_others() {
    let mut machine = Machine::new();
    machine.host().play_caches();
    let driver = bouncing(&mut machine, 1);
    let dma = driver.domain.dma_device(PAST);
    let window = ByteWindow {
        offset: 0x18,
        bytes: 8,
    };
    let mapping = dma
        .map_bytes(filled(&machine, 1, 0), window, FromDevice)
        .unwrap();
    assert!(mapping.is_bounced(), "trusted, but a line would be shared");
    writes(&machine, mapping.iova(), 0, 9).unwrap();
    let run = mapping.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &run, 0x18), 9);
    assert_eq!(word(machine.host(), &run, 0x10), 2);
    machine.host().free_frames(run);
}

#[test]
fn what_a_device_past_the_caches_wrote_is_seen_when_it_is_back() {
    let mut machine = Machine::new();
    machine.host().play_caches();
    let driver = machine.driver(NIC);
    let dma = driver.domain.dma_device(PAST);
    // The CPU wrote all of it, so that every line is in its caches, and dirty.
    let mapping = dma.map(filled(&machine, 2, 5), FromDevice).unwrap();
    writes(&machine, mapping.iova(), 0x1008, 88).unwrap();
    let run = mapping.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &run, 0x1008), 88);
    assert_eq!(word(machine.host(), &run, 0x1000), 5 + 512);
    let mapping = dma.map(run, ToDevice).unwrap();
    let mut turn = mapping.sync_for_cpu();
    turn.write(0x1008, &6_u64.to_le_bytes()).unwrap();
    let mapping = turn.sync_for_device();
    assert_eq!(reads(&machine, mapping.iova(), 0x1008), Ok(6));
    // Lists too.
    let mut list = hv_iommu::ScatterList::with_capacity(1).unwrap();
    list.push(filled(&machine, 1, 3)).unwrap();
    let mapping = dma.map_scatter(list, Bidirectional).unwrap();
    let at = mapping.contiguous().unwrap().start();
    assert_eq!(reads(&machine, at, 0), Ok(3));
    writes(&machine, at, 0, 4).unwrap();
    let mut list = mapping.unmap().flush().unwrap();
    assert_eq!(word(machine.host(), &list.pop().unwrap(), 0), 4);
}

#[test]
fn the_cpus_turn_ends_at_the_buffers_bytes_and_keeps_the_domain() {
    let mut machine = Machine::new();
    let driver = bouncing(&mut machine, 1);
    let dma = driver.domain.dma_device(DmaConfig::default());
    let window = ByteWindow {
        offset: 0x10,
        bytes: 0x20,
    };
    let mapping = dma
        .map_bytes(filled(&machine, 1, 0), window, Bidirectional)
        .unwrap();
    let mut turn = mapping.sync_for_cpu();
    let past = |offset, bytes| {
        Err(OutOfBounds {
            offset,
            bytes,
            end: 0x20,
        })
    };
    assert_eq!(turn.read(0x1c, &mut [0; 8]), past(0x1c, 8));
    assert_eq!(turn.write(u64::MAX, &[1]), past(u64::MAX, 1));
    let mut seen = [0; 8];
    turn.read(0x18, &mut seen).unwrap();
    assert_eq!(u64::from_le_bytes(seen), 5);
    drop((dma, driver.group.detach().unwrap()));
    let error = driver.domain.destroy().unwrap_err();
    assert_eq!(error.reason, DestroyRefusal::BuffersInUse { buffers: 1 });
    let pending = turn.sync_for_device().unmap();
    let receipt = error.domain.flush(FlushSpan::Domain).unwrap();
    machine
        .host()
        .free_frames(pending.redeem(&receipt).unwrap());
    assert_eq!(crate::machine::end_domain(error.domain, machine.host()), 0);
    assert_eq!(machine.host().frames_out(), 0);
}
