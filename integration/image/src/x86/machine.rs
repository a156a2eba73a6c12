//! Bringing the machine up, step by step, with a reason where a step fails.
#![expect(
    unsafe_code,
    reason = "each step of boot has conditions that only this order of steps meets"
)]

use hv_core::PhysAddr;
use thiserror::Error;
use x86_64::VirtAddr;

use super::boot_info::{BootInfo, BootInfoError};
use super::clock::{self, ClockError};
use super::descriptors::{TrapStackTop, init_boot_cpu};
use super::guard::GuardError;
use super::smp::{self, StartError, Trampoline, guard_boot_stacks};
use super::traps::{self, SelfCheckError};
use crate::acpi::{AcpiError, IdentityTables, Tables};
use crate::machine::{BootError, Image, Machine, Memory, options};
use crate::memory::physical::identity_limit;
use crate::memory::usable::Span;
use crate::pci::Ecam;
use crate::platform::DeviceSpace;

/// What the linker and the assembly of the binary know.
#[derive(Clone, Copy)]
pub struct Symbols {
    /// Pages below the boot CPU's main and trap stacks.
    pub guards: [PhysAddr; 2],
    /// Top of the boot CPU's trap stacks.
    pub trap_stack_top: TrapStackTop,
    /// First of the 256 trap entry stubs.
    pub trap_stubs: VirtAddr,
    /// Start-up code of the other CPUs.
    pub trampoline: Trampoline,
}

/// The DMAR table, whole; `None` if firmware has none.
pub type Firmware = Option<&'static [u8]>;

/// Where interrupt controllers and IOMMUs have their registers, which the memory map may list as reserved.
pub const REGISTERS: Span = Span::between(0xfec0_0000, 0x1_0000_0000);

/// A step of this architecture failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepError {
    /// Boot data.
    #[error(transparent)]
    BootInfo(#[from] BootInfoError),
    /// Guard pages.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Traps.
    #[error(transparent)]
    Traps(#[from] SelfCheckError),
    /// Clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Firmware tables.
    #[error("firmware tables: {0}")]
    Acpi(#[from] AcpiError),
    /// A firmware table that cannot be done without.
    #[error("firmware has no {0} table")]
    NoTable(&'static str),
    /// The other CPUs.
    #[error(transparent)]
    Cpus(#[from] StartError),
}

/// Brings everything up, in the one order that works.
///
/// # Errors
/// [`BootError`] from the step that failed.
///
/// # Safety
/// Called once, first thing on the CPU that booted, with the start info address of the boot
/// loader, under the identity map of `boot/entry.s`, with `image` and `symbols` naming that binary's
/// symbols.
pub unsafe fn boot(
    start_info: u32,
    image: &Image,
    symbols: &Symbols,
) -> Result<Machine, BootError> {
    // SAFETY: the caller names the stubs; the boot code's code segment has selector 8, as in
    // every GDT of ours.
    unsafe { traps::init(symbols.trap_stubs) };
    // SAFETY: called once, after `traps::init`, on this CPU; the stacks are the image's own.
    unsafe { init_boot_cpu(symbols.trap_stack_top) };
    traps::self_check().map_err(StepError::from)?;

    // SAFETY: the caller passes on the boot loader's address; nothing was handed out yet.
    let info = unsafe { BootInfo::read(start_info) }.map_err(StepError::from)?;
    // SAFETY: called before anything else takes memory, with the boot data reserved.
    let memory = unsafe { Memory::new(&info.ram, &info.reserved, image) }?;
    let options = options(info.command_line)?;
    clock::init().map_err(StepError::from)?;

    let limit = identity_limit();
    // SAFETY: everything below the limit is mapped but for guard pages, which belong to the
    // image or the frame allocator; other RAM than the usable ranges is left as it is.
    let readable = unsafe { IdentityTables::new(limit, memory.usable.clone()) };
    let tables = Tables::find(readable, info.rsdp).map_err(StepError::from)?;
    let madt = tables.madt().map_err(StepError::from)?;
    let madt = madt.ok_or(StepError::NoTable("MADT"))?;
    let mcfg = tables.mcfg().map_err(StepError::from)?;
    let mcfg = mcfg.ok_or(StepError::NoTable("MCFG"))?;
    let dmar = tables.dmar().map_err(StepError::from)?;

    // SAFETY: only this CPU runs, and the pages lie between the image's stacks.
    unsafe { guard_boot_stacks(&symbols.guards, &memory.frames) }.map_err(StepError::from)?;
    // SAFETY: called once, on this CPU, whose tables are loaded; the page at 0x8000 is low
    // memory, which nothing uses, and the boot data was copied or lies elsewhere.
    let cpus = unsafe { smp::start(&madt, symbols.trampoline, &memory.frames) }
        .map_err(StepError::from)?;

    let devices = DeviceSpace::new(info.ram, info.firmware, limit);
    let config = Ecam::map(&mcfg.regions, &devices)?;
    // SAFETY: `cpus` counts the CPUs that run, and the frames are usable RAM.
    Ok(unsafe { Machine::new(memory, devices, config, cpus, dmar, options) })
}
