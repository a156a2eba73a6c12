//! Bringing the machine up, step by step, with a reason where a step fails.
#![expect(
    unsafe_code,
    reason = "each step of boot has conditions that only this order of steps meets"
)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_core::platform::RegistersError;
use hv_core::{PageCount, PhysAddr};
use thiserror::Error;
use x86_64::VirtAddr;

use crate::acpi::{AcpiError, IdentityTables, Tables};
use crate::command_line::{OptionError, Options};
use crate::memory::frames::{FrameAllocator, NoBitmap};
use crate::memory::heap::{ArenaTooSmall, HEAP_BYTES, Heap};
use crate::memory::physical::identity_limit;
use crate::memory::usable::{MemoryMapError, Span, UsableRanges, carve, usable};
use crate::pci::{Ecam, Function, scan};
use crate::platform::{BareMetal, DeviceSpace};
use crate::x86::boot_info::{BootInfo, BootInfoError};
use crate::x86::clock::{self, ClockError};
use crate::x86::descriptors::{TrapStackTop, init_boot_cpu};
use crate::x86::guard::GuardError;
use crate::x86::smp::{Cpus, StartError, Trampoline, guard_boot_stacks};
use crate::x86::traps::{self, SelfCheckError};

/// What the linker and the assembly of the binary know.
#[derive(Clone, Copy)]
pub struct Image {
    /// First byte of the image in memory.
    pub start: PhysAddr,
    /// First byte behind it.
    pub end: PhysAddr,
    /// Pages below the boot CPU's main and trap stacks.
    pub guards: [PhysAddr; 2],
    /// Top of the boot CPU's trap stacks.
    pub trap_stack_top: TrapStackTop,
    /// First of the 256 trap entry stubs.
    pub trap_stubs: VirtAddr,
    /// Start-up code of the other CPUs.
    pub trampoline: Trampoline,
    /// The global allocator.
    pub heap: &'static Heap,
}

/// The machine cannot be used, or the run is set up wrongly.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BootError {
    /// Boot data.
    #[error(transparent)]
    BootInfo(#[from] BootInfoError),
    /// Memory map.
    #[error(transparent)]
    MemoryMap(#[from] MemoryMapError),
    /// Heap.
    #[error(transparent)]
    Heap(#[from] ArenaTooSmall),
    /// Frame allocator.
    #[error(transparent)]
    Frames(#[from] NoBitmap),
    /// Guard pages.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// Traps.
    #[error(transparent)]
    Traps(#[from] SelfCheckError),
    /// Clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Command line.
    #[error("kernel command line: {0}")]
    Options(#[from] OptionError<'static>),
    /// Firmware tables.
    #[error("firmware tables: {0}")]
    Acpi(#[from] AcpiError),
    /// A firmware table that cannot be done without.
    #[error("firmware has no {0} table")]
    NoTable(&'static str),
    /// Configuration space.
    #[error("PCI configuration space: {0}")]
    Config(#[from] RegistersError),
    /// The other CPUs.
    #[error(transparent)]
    Cpus(#[from] StartError),
}

/// A machine that is up.
pub struct Machine {
    /// The platform that the IOMMU crates run on. Never freed.
    pub platform: &'static BareMetal,
    /// The CPUs.
    pub cpus: Cpus,
    /// Every PCI function, ascending by address.
    pub functions: Vec<Function>,
    /// The DMAR table, whole; `None` if firmware has none.
    pub dmar: Option<&'static [u8]>,
    /// What to run.
    pub options: Options,
    /// Usable memory in bytes, heap included.
    pub memory_bytes: u64,
}

impl Machine {
    /// Brings everything up, in the one order that works.
    ///
    /// # Errors
    /// [`BootError`] from the step that failed.
    ///
    /// # Safety
    /// Called once, first thing on the CPU that booted, with the start info address of the boot
    /// loader, under the identity map of `boot/entry.s`, with `image` naming that binary's
    /// symbols.
    pub unsafe fn boot(start_info: u32, image: &Image) -> Result<Self, BootError> {
        // SAFETY: the caller names the stubs; the boot code's code segment has selector 8, as in
        // every GDT of ours.
        unsafe { traps::init(image.trap_stubs) };
        // SAFETY: called once, after `traps::init`, on this CPU; the stacks are the image's own.
        unsafe { init_boot_cpu(image.trap_stack_top) };
        traps::self_check()?;

        // SAFETY: the caller passes on the boot loader's address; nothing was handed out yet.
        let info = unsafe { BootInfo::read(start_info) }?;
        // SAFETY: called before anything else takes memory, with the boot data and image reserved.
        let Memory { frames, usable } = unsafe { memory(&info, image) }?;
        let memory_bytes = usable.iter().map(|range| range.pages().bytes()).sum();
        let options = Options::parse(info.command_line)?;
        #[cfg(hv_fault)]
        options.faults.iter().for_each(|fault| fault.switch_on());
        clock::init()?;

        let limit = identity_limit();
        // SAFETY: everything below the limit is mapped but for guard pages, which belong to the
        // image or the frame allocator; other RAM than the usable ranges is left as it is.
        let memory = unsafe { IdentityTables::new(limit, usable) };
        let tables = Tables::find(memory, info.rsdp)?;
        let madt = tables.madt()?.ok_or(BootError::NoTable("MADT"))?;
        let mcfg = tables.mcfg()?.ok_or(BootError::NoTable("MCFG"))?;
        let dmar = tables.dmar()?;

        // SAFETY: only this CPU runs, and the pages lie between the image's stacks.
        unsafe { guard_boot_stacks(&image.guards, &frames) }?;
        // SAFETY: called once, on this CPU, whose tables are loaded; the page at 0x8000 is low
        // memory, which nothing uses, and the boot data was copied or lies elsewhere.
        let cpus = unsafe { Cpus::start(&madt, image.trampoline, &frames) }?;

        let devices = DeviceSpace::new(info.ram, info.firmware, limit);
        let config = Ecam::map(&mcfg, &devices)?;
        let mut functions = Vec::new();
        for region in config.regions() {
            functions.extend(scan(&config, region.segment(), region.buses()));
        }
        // SAFETY: the frames are usable RAM below the limit of the identity map, and `cpus` counts
        // the CPUs that run.
        let platform = unsafe { BareMetal::new(frames, devices, config, cpus.count()) };
        Ok(Self {
            platform: Box::leak(Box::new(platform)),
            cpus,
            functions,
            dmar,
            options,
            memory_bytes,
        })
    }
}

/// RAM, split into heap and frames.
struct Memory {
    frames: FrameAllocator,
    /// All that can be handed out, heap included.
    usable: UsableRanges,
}

/// Gives the heap its arena and the rest of the usable RAM to a frame allocator.
///
/// # Safety
/// Nothing else uses RAM that is neither reserved by `info` nor part of `image`.
unsafe fn memory(info: &BootInfo, image: &Image) -> Result<Memory, BootError> {
    let mut reserved: ArrayVec<Span, 17> = info.reserved.iter().copied().collect();
    let image_bytes = image.end.as_u64().saturating_sub(image.start.as_u64());
    reserved.push(Span::new(image.start, image_bytes));
    let usable = usable(&info.ram, &reserved, identity_limit())?;
    let mut ranges = usable.clone();
    let no_room = MemoryMapError::NoRoomForHeap { wanted: HEAP_BYTES };
    let heap_pages = PageCount::for_bytes(HEAP_BYTES).ok_or(no_room)?;
    let arena = carve(&mut ranges, heap_pages)?;
    // SAFETY: the arena is RAM under the identity map that was just taken out of the usable ranges.
    unsafe { image.heap.add_arena(arena) }?;
    let frames = FrameAllocator::new(&ranges)?;
    Ok(Memory { frames, usable })
}
