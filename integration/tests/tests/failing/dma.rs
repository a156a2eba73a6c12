//! The DMA API, after the tests of `ownership/dma`.

use std::num::NonZeroUsize;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{FrameRun, Hypervisor, PageSize, Perms};
use hv_iommu::{
    Bidirectional, BufferRequest, ByteWindow, DeferredConfig, DmaConfig, DmaMapError, FromDevice,
    ScatterList, ToDevice,
};
use hv_tests::failing::{Outcome, text};
use hv_tests::host::Host;

use super::machine::{PLAIN, pages};
use super::world::{Scenario, Space, World, run};

fn frames(host: &Host, count: u64) -> Result<FrameRun<Hypervisor>, String> {
    host.alloc_frames(pages(count), PageSize::Size4K)
        .map_err(text)
}

/// A refused map gives back what was to be mapped.
fn refused<V, M, P>(error: DmaMapError<V, M, P>, give_back: impl FnOnce(V)) -> String {
    match error {
        DmaMapError::Refused { value, reason } => {
            give_back(value);
            text(reason)
        }
        other => panic!("{other}"),
    }
}

/// A coherent buffer; and streams, of which one is bounced.
fn buffers(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        let host = world.machine.host();
        domain.fill_bounce_pool(pages(2)).map_err(text)?;
        let dma = domain.dma_device(DmaConfig::default());
        let buffer = dma.alloc_coherent(BufferRequest {
            pages: pages(3),
            align: PageSize::Size4K,
            perms: Perms::ReadWrite,
        });
        let buffer = buffer.map_err(text)?;
        let whole = dma.map(frames(host, 600)?, ToDevice);
        let whole = whole.map_err(|error| refused(error, |run| host.free_frames(run)))?;
        let window = ByteWindow {
            offset: 8,
            bytes: 0x2ff0,
        };
        let part = dma.map_bytes(frames(host, 3)?, window, Bidirectional);
        let part = part.map_err(|error| refused(error, |run| host.free_frames(run)))?;
        let part = part.sync_for_cpu().sync_for_device();
        host.free_frames(part.unmap().flush().unwrap());
        host.free_frames(whole.unmap().flush().unwrap());
        buffer.free().map_err(text)
    })
}

/// Gives the runs of a list back.
fn free(host: &Host, mut list: ScatterList) {
    while let Some(run) = list.pop() {
        host.free_frames(run);
    }
}

/// Many runs at once.
fn scatter(world: &mut World) -> Outcome {
    world.in_domain(PLAIN, |world, domain| {
        let host = world.machine.host();
        let dma = domain.dma_device(DmaConfig::default());
        let mut list = ScatterList::with_capacity(3).map_err(text)?;
        for count in [1, 5, 2] {
            match frames(host, count) {
                Ok(run) => list.push(run).unwrap(),
                Err(error) => {
                    free(host, list);
                    return Err(error);
                }
            }
        }
        let mapping = dma.map_scatter(list, FromDevice);
        let mapping = mapping.map_err(|error| refused(error, |list| free(host, list)))?;
        free(host, mapping.unmap().flush().unwrap());
        Ok(())
    })
}

/// Buffers that come back before the flush.
fn deferred(world: &mut World) -> Outcome {
    fn live(domain: &Space, host: &Host) -> Outcome {
        let mappings = NonZeroUsize::new(4).unwrap();
        let deadline = Duration::from_secs(3600);
        let config = DeferredConfig { mappings, deadline };
        domain.allow_deferred_flush(config).map_err(text)?;
        let dma = domain.trusting_dma_device(DmaConfig::default());
        let dma = dma.map_err(text)?;
        for _ in 0..6 {
            let mapping = dma.map(frames(host, 2)?, ToDevice);
            let mapping = mapping.map_err(|error| refused(error, |run| host.free_frames(run)))?;
            host.free_frames(mapping.unmap_deferred().unwrap());
        }
        domain.flush_deferred().map(drop).map_err(text)
    }
    world.in_domain(PLAIN, |world, domain| live(domain, world.machine.host()))
}

#[test]
fn bc18_xsa_460_the_dma_api_unwinds_whichever_allocation_fails() {
    let scenario = |name, live, heap, frames| Scenario {
        name,
        make: World::new,
        live,
        heap,
        frames,
    };
    run(&[
        scenario("buffers", buffers, 4, 8),
        scenario("scatter", scatter, 5, 6),
        scenario("deferred", deferred, 4, 8),
    ]);
}
