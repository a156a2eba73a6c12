//! What the PVH boot loader hands over: command line, memory map, ACPI root pointer.
#![expect(
    unsafe_code,
    reason = "reads structures that the boot loader left in memory"
)]

use core::str::Utf8Error;

use arrayvec::ArrayVec;
use hv_core::PhysAddr;
use pvh::start_info::reader::StartInfoReader;
use pvh::start_info::{MemmapTableEntry, MemmapType, ModlistEntry, StartInfo};
use thiserror::Error;

use crate::memory::usable::Span;

/// Most memory map entries that are kept.
const MAX_MAP_ENTRIES: usize = 128;
/// Everything below is left alone: firmware's data areas, and the trampoline of the other CPUs.
const LOW_MEMORY_BYTES: u64 = 1 << 20;

/// Boot data, checked. It still lies where the boot loader put it; [`BootInfo::reserved`] covers
/// that.
pub struct BootInfo {
    /// The kernel command line.
    pub command_line: &'static str,
    /// The RAM of the memory map.
    pub ram: ArrayVec<Span, MAX_MAP_ENTRIES>,
    /// What the memory map says is reserved: firmware's, or nobody's.
    pub firmware: ArrayVec<Span, MAX_MAP_ENTRIES>,
    /// What must not be handed out: low memory, the boot data, and modules.
    pub reserved: ArrayVec<Span, 16>,
    /// The ACPI root pointer, if the boot loader found one.
    pub rsdp: Option<PhysAddr>,
}

/// The boot data cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BootInfoError {
    /// Not started by a PVH boot loader.
    #[error("no PVH start info at {address:#x}; start the image with `qemu-system-x86_64 -kernel`")]
    NoStartInfo {
        /// Where it should be.
        address: u32,
    },
    /// There is no memory map, or it is too long.
    #[error("the memory map has {found} entries, expected 1 to {MAX_MAP_ENTRIES}")]
    MemoryMap {
        /// Entries that were found.
        found: usize,
    },
    /// More modules than can be reserved.
    #[error("{found} boot modules, expected none to 8")]
    Modules {
        /// Modules that were found.
        found: u32,
    },
    /// The command line is not text.
    #[error("the kernel command line is not UTF-8: {0}")]
    CommandLine(Utf8Error),
}

impl BootInfo {
    /// Reads the start info at `address`.
    ///
    /// # Errors
    /// [`BootInfoError`] when it is missing or cannot be used.
    ///
    /// # Safety
    /// Called on the CPU that booted, with `address` as the boot loader gave it, under the identity
    /// map, before any memory is handed out.
    pub unsafe fn read(address: u32) -> Result<Self, BootInfoError> {
        // SAFETY: the caller passes on what the boot loader gave; the PVH ABI promises the
        // structure and what it points to, all below 4 GiB, which the identity map shows.
        let reader = unsafe { StartInfoReader::from_paddr_identity(address) };
        let reader = reader.ok_or(BootInfoError::NoStartInfo { address })?;
        let raw = reader.raw();
        let map = reader.memmap();
        let wrong_map = BootInfoError::MemoryMap { found: map.len() };
        if map.is_empty() {
            return Err(wrong_map);
        }
        let (mut ram, mut firmware) = (ArrayVec::new(), ArrayVec::new());
        for entry in map {
            let list = match entry.ty() {
                MemmapType::Ram => &mut ram,
                MemmapType::Reserved => &mut firmware,
                _ => continue,
            };
            list.try_push(Span::new(PhysAddr::new(entry.addr), entry.size))
                .map_err(|_| wrong_map)?;
        }
        let command_line = match reader.cmdline() {
            Some(text) => text.to_str().map_err(BootInfoError::CommandLine)?,
            None => "",
        };
        let mut reserved = ArrayVec::new();
        let own = [
            (0, LOW_MEMORY_BYTES),
            (u64::from(address), size_of::<StartInfo>() as u64),
            (raw.cmdline_paddr, command_line.len() as u64 + 1),
            (
                raw.memmap_paddr,
                size_of_val::<[MemmapTableEntry]>(map) as u64,
            ),
            (
                raw.modlist_paddr,
                u64::from(raw.nr_modules) * size_of::<ModlistEntry>() as u64,
            ),
        ];
        let modules = reader
            .modlist()
            .map(|module| (module.raw().paddr, module.raw().size));
        for (start, bytes) in own.into_iter().chain(modules) {
            reserved
                .try_push(Span::new(PhysAddr::new(start), bytes))
                .map_err(|_| BootInfoError::Modules {
                    found: raw.nr_modules,
                })?;
        }
        Ok(Self {
            command_line,
            ram,
            firmware,
            reserved,
            rsdp: (raw.rsdp_paddr != 0).then(|| PhysAddr::new(raw.rsdp_paddr)),
        })
    }
}
