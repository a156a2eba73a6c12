//! `shut-down`: the subsystem ends, for whoever has the machine next, and the drive that worked through it reaches nothing.
//!
//! What a unit that is off does differs: an SMMU's gate aborts everything. VT-d lets everything through, so what stops the
//! drive there is its bus master bit alone. Both are tried, with a drive whose queues lie where memory does.

use alloc::string::String;

use hv_core::platform::FrameSource;
use hv_core::{PageCount, PageSize, Perms};
use hv_iommu::{Domain, DomainConfig, FlushSpan};

use super::blocked::{SCRATCH_OFFSET, canary, is_canary};
use super::drive::{drive_function, drive_registers};
use super::untranslated::{COMMAND_LIMIT, Pool};
use super::{Context, Failure, OrFail, Shown, ensure};
use crate::arch::backend::PASSES_WHEN_OFF;
use crate::machine::Machine;
use crate::nvme::{self, Controller, DomainMemory, NvmeError, Parts};

/// The drive works through its domain. Then the subsystem is shut down while the drive is attached: units take no request
/// any more, and the drive has no bus mastering, and reaches no memory. With bus mastering, which the next owner of the
/// machine turns on, it reaches none either behind a gate, and all of it behind a unit that is off as before bring-up.
pub(super) fn run(context: &mut Context<'_>) -> Shown {
    let machine = context.machine;
    let (platform, function) = (machine.platform, drive_function(machine)?);
    let (group, drive) = context.take_drive()?;
    let claimed = group.claim_for_hypervisor();
    let domain = Domain::paging_domain_alloc(&claimed, DomainConfig::default())
        .or_fail("allocating a domain")?;
    let attached = claimed.attach(&domain).or_fail("attaching the drive")?;
    context.with_driver(&attached, drive, DomainMemory(&domain), |driver| {
        let range = domain
            .allocate(PageCount::ONE, PageSize::Size4K)
            .or_fail("taking a range")?;
        let mapped = range
            .map(canary(platform)?, Perms::ReadWrite)
            .or_fail("mapping a page")?;
        driver.raw_read(SCRATCH_OFFSET, mapped.span().start())?;
        let (_, frames) = mapped.unmap().flush().or_fail("taking the receipt")?;
        let used = !is_canary(platform, &frames);
        platform.free_frames(frames);
        ensure!(
            used,
            "the drive did not reach a page that was mapped for it"
        );
        Ok(())
    })?;

    context
        .iommu
        .shut_down()
        .or_fail("shutting the subsystem down")?;
    ensure!(
        domain.flush(FlushSpan::Domain).is_err(),
        "a unit did a flush after it was shut down"
    );
    // Before the detach, which would take that itself.
    ensure!(
        !function.bus_mastering(platform),
        "the drive has bus mastering after the shut-down"
    );
    refused(reach(machine)?, "without bus mastering")?;
    // Nobody needs the drive's entry to be forgotten: it stays where it is, and the group wedged.
    ensure!(
        attached.detach().is_err(),
        "a unit forgot an entry after it was shut down"
    );

    function.set_bus_mastering(platform, true);
    let reached = reach(machine);
    function.set_bus_mastering(platform, false);
    match (PASSES_WHEN_OFF, reached?) {
        (true, Ok(())) => Ok(String::from(
            "units take no requests, the drive has no bus mastering and reaches nothing; given that by hand it reaches \
             memory: translation is off as before bring-up",
        )),
        (true, Err(error)) => Err(Failure::new(format_args!(
            "a unit that is off still stands between the drive and memory: {error}"
        ))),
        (false, reached) => {
            refused(reached, "through a gate that has to be closed")?;
            Ok(String::from(
                "units take no requests, the drive has no bus mastering and reaches nothing; given that by hand neither: \
                 the gate is closed",
            ))
        }
    }
}

/// That the drive reached nothing, because it was refused.
fn refused(reached: Result<(), NvmeError>, how: &str) -> Result<(), Failure> {
    match reached {
        Err(NvmeError::Fatal { .. }) => Ok(()),
        Err(other) => Err(Failure::new(format_args!(
            "expected the drive to fail for want of its queues, found {other}"
        ))),
        Ok(()) => Err(Failure::new(format_args!(
            "the drive reached memory after the shut-down, {how}"
        ))),
    }
}

/// Starts the drive with queues that lie where memory does, as whoever has the machine next would, and stops it. It asks
/// who it is before it counts as started, so it has read and written memory then; otherwise it says why not.
fn reach(machine: &Machine) -> Result<Result<(), NvmeError>, Failure> {
    let registers = drive_registers(machine)?;
    nvme::disable(&registers, machine.platform).or_fail("resetting the drive")?;
    let mut pool = Pool(machine.platform);
    let parts = Parts::alloc(registers, &mut pool).or_fail("allocating the drive's queues")?;
    match Controller::start(parts, machine.platform, COMMAND_LIMIT) {
        Ok(drive) => {
            let parts = drive.stop().or_fail("stopping the drive")?;
            pool.take_back(parts);
            Ok(Ok(()))
        }
        Err(failure) => {
            failure.stopped.or_fail("stopping the drive")?;
            pool.take_back(failure.parts);
            Ok(Err(failure.error))
        }
    }
}
