//! The machine that the scenarios run on, and the steps of bringing it up that all architectures share.
//!
//! The order of the steps is the architecture's: [`crate::arch::machine`].
#![expect(
    unsafe_code,
    reason = "hands out memory and makes the platform over it"
)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use hv_core::platform::RegistersError;
use hv_core::{PageCount, PhysAddr};
use thiserror::Error;

use crate::arch::machine::{Firmware, StepError};
use crate::command_line::{OptionError, Options};
use crate::cpus::Cpus;
use crate::memory::frames::{FrameAllocator, NoBitmap};
use crate::memory::heap::{ArenaTooSmall, HEAP_BYTES, Heap};
use crate::memory::physical::identity_limit;
use crate::memory::usable::{MAX_RESERVED, MemoryMapError, Span, UsableRanges, carve, usable};
use crate::mmio::MmioBlock;
use crate::pci::{Ecam, Function, scan};
use crate::platform::{BareMetal, DeviceSpace};

/// Where the image is, and its allocator.
#[derive(Clone, Copy)]
pub struct Image {
    /// First byte of the image in memory.
    pub start: PhysAddr,
    /// First byte behind it.
    pub end: PhysAddr,
    /// The global allocator.
    pub heap: &'static Heap,
}

/// The machine cannot be used, or the run is set up wrongly.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BootError {
    /// Memory map.
    #[error(transparent)]
    MemoryMap(#[from] MemoryMapError),
    /// Heap.
    #[error(transparent)]
    Heap(#[from] ArenaTooSmall),
    /// Frame allocator.
    #[error(transparent)]
    Frames(#[from] NoBitmap),
    /// Command line.
    #[error("kernel command line: {0}")]
    Options(#[from] OptionError<'static>),
    /// Configuration space.
    #[error("PCI configuration space: {0}")]
    Config(#[from] RegistersError),
    /// A step of this architecture alone.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// A machine that is up.
pub struct Machine {
    /// The platform that the IOMMU crates run on. Never freed.
    pub platform: &'static BareMetal,
    /// The CPUs.
    pub cpus: Cpus,
    /// Every PCI function, ascending by address.
    pub functions: Vec<Function>,
    /// What firmware says about IOMMUs.
    pub firmware: Firmware,
    /// What to run.
    pub options: Options,
    /// Usable memory in bytes, heap included.
    pub memory_bytes: u64,
}

impl Machine {
    /// The machine of these parts; the functions of all its buses are looked for here.
    ///
    /// # Safety
    /// The frames are usable RAM below the limit of the identity map that nothing else uses, and `cpus` are all that
    /// run.
    pub(crate) unsafe fn new(
        memory: Memory,
        devices: DeviceSpace,
        config: Ecam<MmioBlock>,
        cpus: Cpus,
        firmware: Firmware,
        options: Options,
    ) -> Self {
        let mut functions = Vec::new();
        for region in config.regions() {
            functions.extend(scan(&config, region.segment(), region.buses()));
        }
        let memory_bytes = memory.bytes();
        // SAFETY: the caller's promise.
        let platform = unsafe { BareMetal::new(memory.frames, devices, config, cpus.count()) };
        Self {
            platform: Box::leak(Box::new(platform)),
            cpus,
            functions,
            firmware,
            options,
            memory_bytes,
        }
    }
}

/// The command line's options, with the faults that it asks for switched on.
///
/// # Errors
/// [`OptionError`].
pub(crate) fn options(command_line: &'static str) -> Result<Options, OptionError<'static>> {
    let options = Options::parse(command_line)?;
    #[cfg(hv_fault)]
    options.faults.iter().for_each(|fault| fault.switch_on());
    Ok(options)
}

/// RAM, split into heap and frames.
pub(crate) struct Memory {
    pub(crate) frames: FrameAllocator,
    /// All that can be handed out, heap included.
    pub(crate) usable: UsableRanges,
}

impl Memory {
    /// Gives the heap its arena and the rest of the usable RAM to a frame allocator.
    ///
    /// # Errors
    /// When the memory map is too fragmented, or memory is too small.
    ///
    /// # Safety
    /// Called once; nothing else uses RAM that is neither `reserved` nor part of `image`, and RAM below the identity
    /// map's limit is mapped.
    pub(crate) unsafe fn new(
        ram: &[Span],
        reserved: &[Span],
        image: &Image,
    ) -> Result<Self, BootError> {
        let mut kept = arrayvec::ArrayVec::<Span, { MAX_RESERVED + 1 }>::new();
        let image_bytes = image.end.as_u64().saturating_sub(image.start.as_u64());
        let spans = reserved.iter().copied();
        for span in spans.chain([Span::new(image.start, image_bytes)]) {
            kept.try_push(span)
                .map_err(|_| MemoryMapError::TooManyRanges)?;
        }
        let usable = usable(ram, &kept, identity_limit())?;
        let mut ranges = usable.clone();
        let no_room = MemoryMapError::NoRoomForHeap { wanted: HEAP_BYTES };
        let heap_pages = PageCount::for_bytes(HEAP_BYTES).ok_or(no_room)?;
        let arena = carve(&mut ranges, heap_pages)?;
        // SAFETY: the arena is RAM under the identity map that was just taken out of the usable ranges.
        unsafe { image.heap.add_arena(arena) }?;
        let frames = FrameAllocator::new(&ranges)?;
        Ok(Self { frames, usable })
    }

    /// All that can be handed out, heap included.
    fn bytes(&self) -> u64 {
        self.usable.iter().map(|range| range.pages().bytes()).sum()
    }
}
