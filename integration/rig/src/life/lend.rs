//! What a random life does with the DMA API: buffers that share a page with others, lists, deferred flushes.

use std::num::NonZeroUsize;
use std::time::Duration;

use hv_core::platform::FrameSource;
use hv_core::{Access, FrameRun, Hypervisor, Iova, IovaRange, KernelPaging, PageCount, PageSize};
use hv_core::{PciAddress, Perms, PhysRange};
use hv_iommu::{
    Bidirectional, ByteWindow, DeferRefusal, DeferredConfig, DmaConfig, DmaMapError, FlushError,
    RedeemRefusal, ScatterList,
};

use super::granule::Lives;
use super::space::{Household, Space};
use super::world::World;
use crate::ledger::Tenant;
use crate::rig::Rig;
use crate::rule::Rule;

/// Bytes of a page.
const PAGE: usize = PageSize::Size4K.bytes() as usize;

/// What an operation came to.
type Lent = Result<(), FlushError>;

impl<B: Lives> World<B> {
    /// A kernel domain lends memory to a device through its DMA API, in one way or another.
    pub(crate) fn lend(&mut self, members: &[PciAddress], tenant: Tenant, choice: [u64; 3]) {
        let rig = self.rig().clone();
        let Some(space) = self.kernel.get_mut(&tenant.0) else {
            return;
        };
        let sender = members.iter().copied().find(|member| rig.may_send(*member));
        let lent = match choice[1] >> 8 & 3 {
            0 => scattered(&rig, space, choice),
            1 => deferred(&rig, space, sender),
            _ => bounced(&rig, space, sender, choice),
        };
        if let Err(FlushError::Unit(error)) = lent {
            self.failed(error);
        }
    }
}

/// Pages of memory that the tenant's devices may come by from now on.
fn lent_page<B: Lives>(rig: &Rig, tenant: Tenant, pages: u64) -> Option<FrameRun<Hypervisor>> {
    rig.lending(Some(tenant));
    let run = rig.alloc_frames(B::pages(pages), B::smallest()).ok();
    rig.lending(None);
    run
}

/// Notes a mapping that is there.
fn note(rig: &Rig, tenant: Tenant, span: IovaRange, to: PhysRange) {
    rig.mapping(tenant, span, to, Perms::ReadWrite);
    rig.mapped(tenant, span, Perms::ReadWrite);
}

/// Why a value stays pending, if not for a unit.
fn unit_failed(rig: &Rig, reason: RedeemRefusal) -> Lent {
    match reason {
        RedeemRefusal::Flush(error) => Err(error),
        other => {
            rig.broken(
                Rule::WrongAnswer,
                format!("what was lent is not back: {other}"),
            );
            Ok(())
        }
    }
}

/// Bytes of a page for an untrusted device, which looks at all that it can reach, and writes there. Bounce pages are of
/// 4 KiB: where no such page can be mapped, this is refused.
fn bounced<B: Lives>(
    rig: &Rig,
    space: &mut Space<KernelPaging, B>,
    sender: Option<PciAddress>,
    choice: [u64; 3],
) -> Lent {
    let tenant = space.tenant;
    let dma = space.domain.dma_device(DmaConfig::default());
    if space.domain.free_bounce_pages() == 0 {
        rig.lending(Some(tenant));
        let filled = space.domain.fill_bounce_pool(PageCount::ONE);
        rig.lending(None);
        if filled.is_err() {
            return Ok(());
        }
    }
    for round in 0..2 {
        let window = ByteWindow {
            offset: (choice[2] >> (round * 16)) % 0x800,
            bytes: 1 + choice[0] % 0x700,
        };
        // Nobody lends this one: no device comes by it.
        let Ok(run) = rig.alloc_frames(PageCount::ONE, PageSize::Size4K) else {
            return Ok(());
        };
        let pattern = [0x51 + round as u8; PAGE];
        let _ = run.write(rig, 0, &pattern);
        let mapping = match dma.map_bytes(run, window, Bidirectional) {
            Ok(mapping) => mapping,
            Err(DmaMapError::Refused { value, .. }) => {
                rig.free_frames(value);
                return Ok(());
            }
            Err(DmaMapError::NotVisible { reason, .. }) => {
                space.forgot = true;
                return Err(reason);
            }
            Err(DmaMapError::Stuck { flush, .. }) => {
                space.forgot = true;
                return unit_failed(rig, flush);
            }
        };
        let span = mapping.span();
        let there = space.domain.translate(span.start());
        let bounce = there.and_then(|there| PhysRange::new(there.to, PageCount::ONE).ok());
        if let Some(bounce) = bounce {
            note(rig, tenant, span, bounce);
        }
        let inside = window.offset as usize..(window.offset + window.bytes) as usize;
        let mut seen = [0; PAGE];
        let reached =
            sender.is_some_and(|device| rig.device_read(device, span.start(), &mut seen).is_ok());
        let shown = (0..PAGE).find(|at| !inside.contains(at) && seen[*at] != 0);
        if let (true, Some(at)) = (reached, shown) {
            let what = format!("a device lent {window} read {:#x} at {at:#x}", seen[at]);
            rig.broken(Rule::ForeignMemory, what);
        }
        let written = sender.is_some_and(|device| {
            rig.device_write(device, span.start(), &[0xee; PAGE])
                .is_ok()
        });
        rig.unmapping(tenant, span);
        let run = match mapping.unmap().flush() {
            Ok(run) => run,
            Err(error) => {
                space.forgot = true;
                return unit_failed(rig, error.reason);
            }
        };
        rig.returned(tenant, span);
        if let Some(bounce) = bounce {
            rig.kept(tenant, bounce);
        }
        let mut left = [0; PAGE];
        let _ = run.read(rig, 0, &mut left);
        let expected = |at: usize| match written && inside.contains(&at) {
            true => 0xee,
            false => pattern[0],
        };
        // Devices of their own accord write nothing that could be told.
        if let Some(at) = (0..PAGE).find(|at| left[*at] != expected(*at)) {
            let what = format!("{window} came back with {:#x} at {at:#x}", left[at]);
            rig.broken(Rule::ForeignMemory, what);
        }
        rig.free_frames(run);
    }
    Ok(())
}

/// A page whose flush is put off: its addresses lead nowhere else until it comes.
fn deferred<B: Lives>(
    rig: &Rig,
    space: &mut Space<KernelPaging, B>,
    sender: Option<PciAddress>,
) -> Lent {
    let tenant = space.tenant;
    let dma = match space.domain.trusting_dma_device(DmaConfig::default()) {
        Ok(dma) => dma,
        Err(error) => {
            // All groups of the hypervisor are trusted here.
            rig.broken(Rule::WrongAnswer, format!("{error}"));
            return Ok(());
        }
    };
    if let Some(mappings) = NonZeroUsize::new(64) {
        // Every time but the first it is allowed already. Nothing is flushed unasked.
        let deadline = Duration::from_secs(3600);
        let _ = space
            .domain
            .allow_deferred_flush(DeferredConfig { mappings, deadline });
    }
    // What waits since a unit failed comes first.
    flush_deferred(rig, space)?;
    let mut failed = None;
    for _ in 0..3 {
        let Some(run) = lent_page::<B>(rig, tenant, 1) else {
            break;
        };
        let frames = run.range();
        let mapping = match dma.map(run, Bidirectional) {
            Ok(mapping) => mapping,
            Err(DmaMapError::Refused { value, .. }) => {
                rig.free_frames(value);
                break;
            }
            Err(DmaMapError::NotVisible { reason, .. }) => {
                space.forgot = true;
                failed = Some(reason);
                break;
            }
            Err(error) => {
                rig.broken(Rule::WrongAnswer, format!("one run: {error}"));
                break;
            }
        };
        let span = mapping.span();
        note(rig, tenant, span, frames);
        if let Some(device) = sender {
            rig.access(device, span.start(), Access::Write);
        }
        rig.unmapping(tenant, span);
        match mapping.unmap_deferred() {
            Ok(run) => {
                space.waiting.push((span, run));
            }
            Err(error) => {
                drop(error.mapping);
                space.forgot = true;
                match error.reason {
                    DeferRefusal::Flush(error) => failed = Some(error),
                    other => rig.broken(Rule::WrongAnswer, format!("not deferred: {other}")),
                }
                break;
            }
        }
        // Devices come by: they still reach the page, or do not.
        rig.idle(20);
    }
    match failed {
        Some(error) => Err(error),
        None => flush_deferred(rig, space),
    }
}

fn flush_deferred<B: Lives>(rig: &Rig, space: &mut Space<KernelPaging, B>) -> Lent {
    let tenant = space.tenant;
    if let Err(error) = space.domain.flush_deferred() {
        space.forgot = true;
        return Err(error);
    }
    for (span, run) in std::mem::take(&mut space.waiting) {
        rig.expect_frames(tenant, span, run.range());
        rig.returned(tenant, span);
        rig.free_frames(run);
    }
    Ok(())
}

fn free_all(rig: &Rig, mut list: ScatterList) {
    while let Some(run) = list.pop() {
        rig.free_frames(run);
    }
}

impl<O: Household, B: Lives> Space<O, B> {
    /// Tries again to have lists back that a unit did not let go of.
    pub(crate) fn unstick(&mut self, rig: &Rig) {
        for pending in std::mem::take(&mut self.stuck) {
            match pending.flush() {
                Ok(list) => free_all(rig, list),
                Err(error) => self.stuck.push(error.pending),
            }
        }
    }
}

/// Some runs at once, all or none.
fn scattered<B: Lives>(rig: &Rig, space: &mut Space<KernelPaging, B>, choice: [u64; 3]) -> Lent {
    let tenant = space.tenant;
    let dma = space.domain.dma_device(DmaConfig::default());
    let Ok(mut list) = ScatterList::with_capacity(4) else {
        return Ok(());
    };
    let mut frames = Vec::new();
    for round in 0..1 + choice[2] % 4 {
        let pages = 1 + (choice[0] >> (round * 4)) % 4;
        let Some(run) = lent_page::<B>(rig, tenant, pages) else {
            break;
        };
        frames.push(run.range());
        drop(list.push(run));
    }
    let mapping = match dma.map_scatter(list, Bidirectional) {
        Ok(mapping) => mapping,
        Err(DmaMapError::Refused { value, .. }) => {
            free_all(rig, value);
            return Ok(());
        }
        Err(DmaMapError::NotVisible { reason, .. }) => {
            space.forgot = true;
            return Err(reason);
        }
        Err(DmaMapError::Stuck { pending, flush, .. }) => {
            space.forgot = true;
            space.stuck.push(pending);
            return unit_failed(rig, flush);
        }
    };
    let mut spans = Vec::new();
    let whole = mapping.contiguous();
    let mut at = whole.map_or(Iova::new(0), |whole| whole.start());
    let each = mapping.segments().collect::<Vec<_>>();
    for (number, run) in frames.iter().enumerate() {
        let start = match whole {
            Some(_) => at,
            None => each.get(number).map_or(at, IovaRange::start),
        };
        let Ok(span) = IovaRange::new(start, run.pages()) else {
            return Ok(());
        };
        note(rig, tenant, span, *run);
        at = start.checked_add(run.pages().bytes()).unwrap_or(at);
        spans.push(span);
    }
    rig.idle(20);
    spans.iter().for_each(|span| rig.unmapping(tenant, *span));
    match mapping.unmap().flush() {
        Ok(list) => {
            for (span, run) in spans.iter().zip(&frames) {
                rig.expect_frames(tenant, *span, *run);
                rig.returned(tenant, *span);
            }
            free_all(rig, list);
            Ok(())
        }
        Err(error) => {
            space.forgot = true;
            unit_failed(rig, error.reason)
        }
    }
}
