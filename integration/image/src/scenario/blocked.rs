//! `blocked`: what a domain does not let through does not get through, and leaves a fault.

use alloc::string::String;

use hv_core::platform::FrameSource;
use hv_core::{Access, FrameRun, Hypervisor, Iova, IovaRange, OwnerId, PageCount, PageSize, Perms};
use hv_iommu::{DomainConfig, FlushSpan};

use super::drive::{buffer, drive};
use super::faults::Expected;
use super::{Context, Failure, OrFail, Shown, ensure};
use crate::platform::BareMetal;

/// The page of the drive that raw commands use; outside of what xtask looks at.
pub(super) const SCRATCH_OFFSET: u64 = 30 << 20;
/// What memory holds that must not change.
pub(super) const CANARY: [u8; 4096] = [0xc5; 4096];

/// Four accesses that must be blocked: a write to and a read from an unmapped address, a write to a
/// raw physical address, a write to a read-only mapping. Judged by memory and by fault records, each told by an interrupt
/// of the unit for faults; what the drive itself reports proves nothing.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let requester = drive(context.machine)?;
    let platform = context.machine.platform;
    context.with_kernel_drive(DomainConfig::default(), |context, domain, driver| {
        let expected = |address, access| Expected {
            requester,
            address,
            access,
            owner: OwnerId::Hypervisor,
        };
        let unmapped = Iova::new(0x7f_0000_0000);
        ensure!(domain.translate(unmapped).is_none(), "{unmapped} is mapped");
        context.forget_faults();
        driver.raw_read(SCRATCH_OFFSET, unmapped)?;
        context.expect_announced(expected(unmapped, Access::Write))?;
        driver.raw_write(SCRATCH_OFFSET, unmapped)?;
        context.expect_announced(expected(unmapped, Access::Read))?;

        let frames = canary(platform)?;
        let raw = Iova::new(frames.range().start().as_u64());
        ensure!(
            domain.translate(raw).is_none(),
            "{raw} happens to be mapped"
        );
        driver.raw_read(SCRATCH_OFFSET, raw)?;
        let intact = is_canary(platform, &frames);
        platform.free_frames(frames);
        ensure!(
            intact,
            "a DMA write to the raw physical address {raw} reached memory"
        );
        context.expect_announced(expected(raw, Access::Write))?;

        let buffer = buffer(domain, PageCount::ONE, PageSize::Size4K, Perms::Read)?;
        buffer.write(0, &CANARY).or_fail("filling a buffer")?;
        // QEMU records no fault for a write whose read translation is cached.
        let page = IovaRange::new(buffer.iova(), PageCount::ONE).or_fail("naming a page")?;
        let _receipt = domain.flush(FlushSpan::Pages(page)).or_fail("flushing")?;
        driver.raw_read(SCRATCH_OFFSET, buffer.iova())?;
        let mut bytes = [0; 4096];
        buffer.read(0, &mut bytes).or_fail("reading a buffer")?;
        ensure!(
            bytes == CANARY,
            "a DMA write through a read-only mapping reached memory"
        );
        context.expect_announced(expected(buffer.iova(), Access::Write))?;
        buffer.free().or_fail("freeing a buffer")
    })?;
    Ok(String::from(
        "unmapped write and read, raw physical write, write to read-only: blocked, each with its fault and an interrupt that \
         told of it",
    ))
}

/// One frame full of canaries.
pub(super) fn canary(platform: &BareMetal) -> Result<FrameRun<Hypervisor>, Failure> {
    let frames = platform
        .alloc_frames(PageCount::ONE, PageSize::Size4K)
        .or_fail("allocating a frame")?;
    fill(platform, &frames)?;
    Ok(frames)
}

/// Fills the first frame of a run with canaries.
pub(super) fn fill(platform: &BareMetal, frames: &FrameRun<Hypervisor>) -> Result<(), Failure> {
    frames
        .write(platform, 0, &CANARY)
        .or_fail("filling a frame")
}

/// Whether the first frame of a run is still full of canaries.
pub(super) fn is_canary(platform: &BareMetal, frames: &FrameRun<Hypervisor>) -> bool {
    let mut bytes = [0; 4096];
    frames.read(platform, 0, &mut bytes).is_ok() && bytes == CANARY
}
