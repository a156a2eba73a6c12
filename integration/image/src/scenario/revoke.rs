//! `revoke`: after the receipt, a device cannot reach what it could reach before the unmap.

use alloc::string::String;

use hv_core::platform::FrameSource;
use hv_core::{Access, OwnerId, PageCount, PageSize, Perms};
use hv_iommu::DomainConfig;

use super::blocked::{SCRATCH_OFFSET, canary, fill, is_canary};
use super::drive::drive;
use super::faults::Expected;
use super::{Context, OrFail, Shown, ensure};

/// Maps a page, has the drive write it, unmaps it, takes the receipt, and has the drive write it
/// again. QEMU caches translations, so without the flush the page would still be reached.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let requester = drive(context.machine)?;
    let platform = context.machine.platform;
    context.with_kernel_drive(DomainConfig::default(), |context, domain, driver| {
        let frames = canary(platform)?;
        let range = domain
            .allocate(PageCount::ONE, PageSize::Size4K)
            .or_fail("taking a range")?;
        let mapped = range
            .map(frames, Perms::ReadWrite)
            .or_fail("mapping a page")?;
        let iova = mapped.span().start();
        driver.raw_read(SCRATCH_OFFSET, iova)?;
        context.forget_faults();
        let (range, frames) = mapped.unmap().flush().or_fail("taking the receipt")?;
        let used = !is_canary(platform, &frames);
        fill(platform, &frames)?;
        driver.raw_read(SCRATCH_OFFSET, iova)?;
        let intact = is_canary(platform, &frames);
        platform.free_frames(frames);
        range
            .release()
            .map_err(|(_, error)| error)
            .or_fail("releasing the range")?;
        ensure!(used, "the drive did not reach the page while it was mapped");
        ensure!(
            intact,
            "the drive reached the page at {iova} after the receipt"
        );
        context.expect_fault(Expected {
            requester,
            address: iova,
            access: Access::Write,
            owner: OwnerId::Hypervisor,
        })
    })?;
    Ok(String::from(
        "reached while mapped, blocked right after the receipt",
    ))
}
