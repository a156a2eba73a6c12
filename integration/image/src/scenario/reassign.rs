//! `reassign`: the drive changes hands, and only its present owner's memory is in reach. Where no guest can have it, that
//! is said.

use alloc::format;

use hv_core::platform::FrameSource;
use hv_core::{
    Access, FrameRun, Gpa, GuestMemory, Hypervisor, Iova, IovaRange, OwnerId, PageCount, PageSize,
    Perms,
};
use hv_iommu::{DomainError, HwDomainId};

use super::blocked::{CANARY, SCRATCH_OFFSET, canary, fill, is_canary};
use super::drive::{drive, stand_in_guest};
use super::faults::Expected;
use super::{Context, Failure, OrFail, Shown, ensure};

/// Where the hypervisor maps the page that the guest's drive must not reach.
const KERNEL_PAGE: Iova = Iova::new(0x40_0000_0000);
/// Where the guest has its memory.
const GUEST_BASE: Gpa = Gpa::new(0x10_0000);
/// How much memory the guest has, in pages.
const GUEST_PAGES: u64 = 256;

/// The hypervisor's domains have deeper tables than the guest's, where the unit has several depths: a stale binding would
/// be walked at the wrong one.
///
/// Hypervisor, guest, hypervisor: at each step the drive works for its owner, and what the other
/// owner mapped at the same drive just before is out of reach.
///
/// Behind a unit without a second stage a guest's domain has to be refused, and the hypervisor's drive to work after that
/// as it did before.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    if !context.drives_unit()?.second_stage {
        return refused(context);
    }
    let platform = context.machine.platform;
    let requester = drive(context.machine)?;
    let expected = |address, owner| Expected {
        requester,
        address,
        access: Access::Write,
        owner,
    };
    // Mapped until its domain ends, and used, so that its translation is cached.
    let (first_id, secret) = kernel_turn(context, canary(platform)?)?;
    fill(platform, &secret)?;

    let mut guest = stand_in_guest()?;
    let pages = PageCount::new(GUEST_PAGES).ok_or_else(|| Failure::new("a guest has memory"))?;
    let frames = platform
        .alloc_frames(pages, PageSize::Size4K)
        .or_fail("allocating guest memory")?;
    let gpas = guest
        .give(GUEST_BASE, frames)
        .map_err(|(_, error)| error)
        .or_fail("giving guest memory")?;
    let space = IovaRange::new(gpas.start().into(), gpas.pages())
        .or_fail("naming the guest's addresses")?;
    let probe = space
        .page(GUEST_PAGES - 1)
        .ok_or_else(|| Failure::new("a guest has memory"))?;
    let vm = OwnerId::Vm(guest.vm());
    fill_guest(context, &guest, probe)?;
    let guest_id = context.with_guest_drive(&guest, space, |context, domain, driver| {
        driver.raw_read(SCRATCH_OFFSET, probe)?;
        ensure!(
            !guest_is_intact(context, &guest, probe),
            "the guest's drive did not reach the guest's memory"
        );
        context.forget_faults();
        driver.raw_read(SCRATCH_OFFSET, KERNEL_PAGE)?;
        ensure!(
            is_canary(platform, &secret),
            "the guest's drive reached the hypervisor's memory"
        );
        context.expect_fault(expected(KERNEL_PAGE, vm))?;
        Ok(domain.hw_id())
    })?;
    ensure!(
        guest_id == first_id,
        "{guest_id} was used, expected {first_id} again"
    );

    fill_guest(context, &guest, probe)?;
    let config = context.widest()?;
    let last_id = context.with_kernel_drive(config, |context, domain, driver| {
        context.forget_faults();
        driver.raw_read(SCRATCH_OFFSET, probe)?;
        ensure!(
            guest_is_intact(context, &guest, probe),
            "the hypervisor's drive reached the guest's memory"
        );
        context.expect_fault(expected(probe, OwnerId::Hypervisor))?;
        Ok(domain.hw_id())
    })?;
    ensure!(
        last_id == first_id,
        "{last_id} was used, expected {first_id} again"
    );

    let frames = guest
        .take_back(GUEST_BASE)
        .or_fail("taking the guest's memory back")?;
    platform.free_frames(frames);
    platform.free_frames(secret);
    Ok(format!(
        "hypervisor, {vm}, hypervisor: works for its owner, the other's memory blocked, {first_id} reused"
    ))
}

/// What there is to show without a second stage: a guest's domain is refused, and of the hypervisor's domains, one after
/// the other under the same id, the drive reaches the present one's page and not that of the one before, which was mapped
/// at the same address until its domain ended.
fn refused(context: &mut Context<'_>) -> Shown {
    let platform = context.machine.platform;
    let (first_id, old) = kernel_turn(context, canary(platform)?)?;
    fill(platform, &old)?;
    let guest = stand_in_guest()?;
    let error = context.refused_guest(&guest)?;
    ensure!(
        matches!(error, DomainError::NoSecondStage { .. }),
        "a guest's domain is refused by {error:?}, expected the lack of a second stage"
    );
    let (last_id, new) = kernel_turn(context, canary(platform)?)?;
    ensure!(
        is_canary(platform, &old),
        "the drive reached what its last domain had mapped"
    );
    platform.free_frames(old);
    platform.free_frames(new);
    ensure!(
        last_id == first_id,
        "{last_id} was used, expected {first_id} again"
    );
    Ok(format!(
        "no guest can have the drive, which works for the hypervisor before and after: {error}"
    ))
}

/// Has the hypervisor's drive write `page`, so that the unit caches where it is, and leaves it mapped
/// until the domain ends: only the detach can make the unit forget it.
fn kernel_turn(
    context: &mut Context<'_>,
    page: FrameRun<Hypervisor>,
) -> Result<(HwDomainId, FrameRun<Hypervisor>), Failure> {
    let platform = context.machine.platform;
    let place = page.range();
    let mut secret = None;
    let config = context.widest()?;
    let id = context.with_kernel_drive_until(
        config,
        |_, domain, driver| {
            let at = IovaRange::new(KERNEL_PAGE, PageCount::ONE).or_fail("naming a page")?;
            let range = domain.reserve(at).or_fail("reserving a page")?;
            let mapped = range
                .map(page, Perms::ReadWrite)
                .or_fail("mapping a page")?;
            driver.raw_read(SCRATCH_OFFSET, KERNEL_PAGE)?;
            // Dropped as it is: the end of the domain gives the page back.
            drop(mapped);
            Ok(domain.hw_id())
        },
        |frames| {
            if frames.range() == place {
                secret = Some(frames);
            } else {
                platform.free_frames(frames);
            }
        },
    )?;
    let secret =
        secret.ok_or_else(|| Failure::new("the end of the domain did not give the page back"))?;
    ensure!(
        !is_canary(platform, &secret),
        "the hypervisor's drive did not reach its page"
    );
    Ok((id, secret))
}

/// Fills the guest's page at `at` with canaries.
fn fill_guest(context: &Context<'_>, guest: &GuestMemory, at: Iova) -> Result<(), Failure> {
    let gpa = Gpa::new(at.as_u64());
    guest
        .write(context.machine.platform, gpa, &CANARY)
        .or_fail("filling guest memory")
}

/// Whether the guest's page at `at` is still full of canaries.
fn guest_is_intact(context: &Context<'_>, guest: &GuestMemory, at: Iova) -> bool {
    let mut bytes = [0; 4096];
    let read = guest.read(context.machine.platform, Gpa::new(at.as_u64()), &mut bytes);
    read.is_ok() && bytes == CANARY
}
