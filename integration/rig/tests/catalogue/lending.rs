//! Classes 2, 3 and 17 where the DMA API lends memory: deferred flushes, lists, buffers that share pages.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{FrameRun, Hypervisor, IovaRange, PageSize, Perms, PhysRange};
use hv_iommu::{
    Bidirectional, ByteWindow, DeferredConfig, DmaConfig, FromDevice, ScatterList, ToDevice,
};

use super::stand::{Kernel, Stand, count, on_machines, pci};

/// Frames that a driver is about to lend to its device.
fn lent(one: &Kernel, pages: u64) -> FrameRun<Hypervisor> {
    one.rig.lending(Some(one.tenant));
    let run = one.rig.alloc_frames(count(pages), PageSize::Size4K);
    one.rig.lending(None);
    run.unwrap()
}

fn note(one: &Kernel, span: IovaRange, to: PhysRange, perms: Perms) {
    one.rig.mapping(one.tenant, span, to, perms);
    one.rig.mapped(one.tenant, span, perms);
}

fn kernel(stand: &mut Stand) -> Kernel {
    let group = stand.take(pci(0, 2, 0));
    stand.kernel(group)
}

#[test]
fn bc02_xsa_480_deferred_addresses_lead_nowhere_else_before_the_flush() {
    let reached = Cell::new(0);
    on_machines(
        60,
        |_| {},
        |stand| {
            let one = kernel(stand);
            let dma = one
                .domain
                .trusting_dma_device(DmaConfig::default())
                .unwrap();
            let mappings = NonZeroUsize::new(8).unwrap();
            let deadline = Duration::from_secs(3600);
            let config = DeferredConfig { mappings, deadline };
            one.domain.allow_deferred_flush(config).unwrap();
            for _ in 0..3 {
                let mut waiting: Vec<(IovaRange, FrameRun<Hypervisor>)> = Vec::new();
                for _ in 0..5 {
                    let run = lent(&one, 1);
                    let frames = run.range();
                    let mapping = dma.map(run, Bidirectional).unwrap();
                    let span = mapping.span();
                    assert!(waiting.iter().all(|(other, _)| !other.overlaps(&span)));
                    note(&one, span, frames, Perms::ReadWrite);
                    assert!(one.writes(span.start().as_u64()));
                    one.rig.unmapping(one.tenant, span);
                    let run = mapping.unmap_deferred().unwrap();
                    assert_eq!(run.range(), frames);
                    // The CPU has it, and the device as well, mostly: that is what the mode is named for.
                    let reaches = one.writes(span.start().as_u64());
                    reached.set(reached.get() + u32::from(reaches));
                    waiting.push((span, run));
                    one.rig.idle(30);
                }
                assert_eq!(one.domain.flush_deferred(), Ok(5));
                for (span, run) in waiting {
                    one.returned(span, &run);
                    assert!(!one.writes(span.start().as_u64()));
                    one.rig.free_frames(run);
                }
                one.rig.idle(30);
            }
            drop(dma);
            drop(one.end());
        },
    );
    let reached = reached.get();
    assert!(reached > 60 * 15 / 4, "{reached} of {} writes", 60 * 15);
}

#[test]
fn bc02_a_stream_comes_back_after_the_flush_only() {
    on_machines(
        60,
        |_| {},
        |stand| {
            let one = kernel(stand);
            let dma = one.domain.dma_device(DmaConfig::default());
            for round in 0..8 {
                let run = lent(&one, 1 + round % 3);
                let frames = run.range();
                let mapping = dma.map(run, ToDevice).unwrap();
                let span = mapping.span();
                note(&one, span, frames, Perms::Read);
                let mut seen = [0; 8];
                assert!(
                    one.rig
                        .device_read(one.device(), mapping.iova(), &mut seen)
                        .is_ok()
                );
                one.rig.idle(30);
                one.rig.unmapping(one.tenant, span);
                let run = mapping.unmap().flush().unwrap();
                one.returned(span, &run);
                one.rig.free_frames(run);
                assert!(
                    one.rig
                        .device_read(one.device(), span.start(), &mut seen)
                        .is_err()
                );
            }
            drop(dma);
            drop(one.end());
        },
    );
}

#[test]
fn bc03_one_flush_covers_all_runs_of_a_list() {
    on_machines(
        60,
        |_| {},
        |stand| {
            let one = kernel(stand);
            let dma = one.domain.dma_device(DmaConfig::default());
            let mut list = ScatterList::with_capacity(6).unwrap();
            for lengths in [&[1, 1, 1][..], &[3, 1, 7, 2, 5, 1], &[600, 1, 30]] {
                let mut frames = Vec::new();
                for length in lengths {
                    let run = lent(&one, *length);
                    frames.push(run.range());
                    list.push(run).unwrap();
                }
                let mapping = dma.map_scatter(list, FromDevice).unwrap();
                let whole = mapping.contiguous().unwrap();
                let mut at = whole.start();
                let mut spans = Vec::new();
                for run in &frames {
                    let span = IovaRange::new(at, run.pages()).unwrap();
                    let leaf = one.domain.translate(at).unwrap();
                    note(&one, span, *run, leaf.perms);
                    at = at.checked_add(run.pages().bytes()).unwrap();
                    spans.push(span);
                }
                let edges =
                    |span: &IovaRange| [span.start().as_u64(), span.last().as_u64() & !0xfff];
                for place in spans.iter().flat_map(edges) {
                    assert!(one.writes(place), "{place:#x}");
                }
                spans
                    .iter()
                    .for_each(|span| one.rig.unmapping(one.tenant, *span));
                list = mapping.unmap().flush().unwrap();
                for place in spans.iter().flat_map(edges) {
                    assert!(!one.writes(place), "{place:#x}");
                }
                for (span, run) in spans.iter().zip(&frames) {
                    one.rig.expect_frames(one.tenant, *span, *run);
                    one.rig.returned(one.tenant, *span);
                }
                while let Some(run) = list.pop() {
                    one.rig.free_frames(run);
                }
            }
            drop(dma);
            drop(one.end());
        },
    );
}

#[test]
fn bc17_thunderclap_no_neighbour_of_a_buffer_is_read_or_written() {
    on_machines(
        60,
        |_| {},
        |stand| {
            let one = kernel(stand);
            let dma = one.domain.dma_device(DmaConfig::default());
            one.rig.lending(Some(one.tenant));
            one.domain.fill_bounce_pool(count(1)).unwrap();
            one.rig.lending(None);
            for (seed, offset, bytes) in [
                (1, 0x10, 0x20),
                (2, 0xf01, 0xff),
                (3, 0, 1),
                (4, 0x7ff, 0x222),
            ] {
                // Nobody lends the buffer's own page: a device that reaches it breaks a rule.
                let run = stand.rig.alloc_frames(count(1), PageSize::Size4K).unwrap();
                run.write(&stand.rig, 0, &[seed; 4096]).unwrap();
                let window = ByteWindow { offset, bytes };
                let mapping = dma.map_bytes(run, window, Bidirectional).unwrap();
                let span = mapping.span();
                let to = one.domain.translate(span.start()).unwrap().to;
                let bounce = PhysRange::new(to, count(1)).unwrap();
                note(&one, span, bounce, Perms::ReadWrite);
                let inside = offset as usize..(offset + bytes) as usize;
                let mut seen = [0xff; 4096];
                let device = one.device();
                one.rig
                    .device_read(device, span.start(), &mut seen)
                    .unwrap();
                for (at, byte) in seen.iter().enumerate() {
                    let expected = if inside.contains(&at) { seed } else { 0 };
                    assert_eq!(*byte, expected, "{window}: {at:#x}");
                }
                one.rig
                    .device_write(device, span.start(), &[0xee; 4096])
                    .unwrap();
                one.rig.unmapping(one.tenant, span);
                let run = mapping.unmap().flush().unwrap();
                one.rig.returned(one.tenant, span);
                one.rig.kept(one.tenant, bounce);
                run.read(&stand.rig, 0, &mut seen).unwrap();
                for (at, byte) in seen.iter().enumerate() {
                    let expected = if inside.contains(&at) { 0xee } else { seed };
                    assert_eq!(*byte, expected, "{window}: {at:#x}");
                }
                stand.rig.free_frames(run);
            }
            drop(dma);
            drop(one.end());
        },
    );
}
