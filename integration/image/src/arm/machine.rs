//! Bringing the machine up, step by step, with a reason where a step fails.
#![expect(
    unsafe_code,
    reason = "each step of boot has conditions that only this order of steps meets"
)]

use core::fmt;

use arrayvec::ArrayVec;
use hv_core::{CpuId, PhysAddr};
use thiserror::Error;

use super::clock::{self, ClockError};
use super::gic::{self, GicSetupError};
use super::smp::{self, StartError};
use super::traps::{self, SelfCheckError};
use super::{cpu, firmware, paging, uart};
use crate::device_tree::{Board, DeviceTreeError};
use crate::machine::{BootError, Image, Machine, Memory, options};
use crate::memory::physical::{self, identity_limit};
use crate::memory::usable::{MemoryMapError, Span};
use crate::pci::{AssignError, Ecam, Window, assign};
use crate::platform::DeviceSpace;

/// First bytes of a device tree, big endian (Devicetree Specification 0.4, 5.2).
const MAGIC: u32 = 0xd00d_feed;
/// The largest tree that the boot protocol allows.
const MAX_TREE_BYTES: u32 = 2 << 20;
/// Where the tree is when the loader does not say so: at the start of RAM, the GiB that the image is in.
const RAM_ALIGN: u64 = 1 << 30;

/// What the linker and the assembly of the binary know.
#[derive(Clone, Copy)]
pub struct Symbols {
    /// Where firmware starts the other CPUs: `secondary_entry` of `boot/entry.s`.
    pub secondary_entry: PhysAddr,
}

/// The device tree.
#[derive(Clone, Copy)]
pub struct Firmware {
    /// The tree, whole.
    pub tree: &'static [u8],
    /// Where it is.
    pub address: PhysAddr,
    /// Whether the boot loader said so; it is at the start of RAM otherwise.
    pub is_told: bool,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.is_told {
            true => "as x0 said",
            false => "the start of RAM: x0 was zero",
        };
        write!(f, "device tree at {}, {how}", self.address)
    }
}

/// Where interrupt controllers and IOMMUs have their registers. What firmware keeps is a part of RAM here, never beside
/// registers.
pub const REGISTERS: Span = Span::between(0, 0x4000_0000);

/// A step of this architecture failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepError {
    /// There is no device tree.
    #[error(
        "no device tree at {address}: expected {MAGIC:#x} and at most {MAX_TREE_BYTES:#x} bytes, found {found:#x} and \
         {bytes:#x} bytes"
    )]
    NoTree {
        /// Where it should be.
        address: PhysAddr,
        /// The first word there.
        found: u32,
        /// The second one.
        bytes: u32,
    },
    /// The device tree cannot be used.
    #[error(transparent)]
    Tree(#[from] DeviceTreeError),
    /// Traps.
    #[error(transparent)]
    Traps(#[from] SelfCheckError),
    /// Clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Interrupt controller.
    #[error(transparent)]
    Gic(#[from] GicSetupError),
    /// PCI.
    #[error(transparent)]
    Assign(#[from] AssignError),
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
/// Called once, first thing on the CPU that booted, with what the boot loader left in x0, under the identity map of
/// `boot/entry.s`, with `image` and `symbols` naming that binary's symbols.
pub unsafe fn boot(tree: u64, image: &Image, symbols: &Symbols) -> Result<Machine, BootError> {
    // SAFETY: this is the CPU that booted, and no other has number 0.
    unsafe { cpu::install(CpuId::new(0)) };
    traps::self_check().map_err(StepError::from)?;
    traps::accept_system_errors();

    let address = PhysAddr::new(match tree {
        0 => image.start.as_u64() / RAM_ALIGN * RAM_ALIGN,
        given => given,
    });
    // SAFETY: the boot loader's address, or where it puts the tree without one; nothing was handed out yet.
    let blob = unsafe { blob(address) }?;
    let found = Firmware {
        tree: blob,
        address,
        is_told: tree != 0,
    };
    let board = Board::parse(blob).map_err(StepError::from)?;
    if let Some(registers) = board.uart {
        uart::place(registers);
    }
    firmware::init(board.firmware);

    // SAFETY: only this CPU runs; it has used nothing but the image and the tree, which is not used meanwhile.
    let mapped = unsafe { paging::map_ram(&board.ram) }?;
    let mut reserved = board.reserved.clone();
    let tree = Span::new(address, blob.len() as u64);
    reserved
        .try_push(tree)
        .map_err(|_| MemoryMapError::TooManyRanges)?;
    // SAFETY: called before anything else takes memory, with what firmware and boot loader left reserved.
    let memory = unsafe { Memory::new(&board.ram, &reserved, image) }?;
    let options = options(board.command_line)?;
    clock::init().map_err(StepError::from)?;
    // SAFETY: the registers that the device tree names, under the identity map; called once, on this CPU.
    unsafe { gic::init(&board.gic, board.cpus.len(), smp::this_cpu()) }.map_err(StepError::from)?;
    // SAFETY: called once, on this CPU, with the clock and the interrupt controller running.
    let cpus = unsafe { smp::start(&board.cpus, symbols.secondary_entry, &memory.frames) }
        .map_err(StepError::from)?;

    // A GiB with RAM in it is mapped as memory whole: no registers are reached there. Nothing is firmware's for devices to
    // use: what the tree reserves is a part of RAM.
    let devices = DeviceSpace::new(mapped, ArrayVec::new(), identity_limit())
        .with_doorbells(board.doorbells.clone());
    let regions: ArrayVec<_, 4> = board.hosts.iter().map(|host| host.config).collect();
    let config = Ecam::map(&regions, &devices)?;
    for host in &board.hosts {
        let mut window = Window::new(host.window.start, host.window.bytes);
        let region = host.config;
        assign(&config, region.segment(), region.buses(), &mut window).map_err(StepError::from)?;
    }
    // SAFETY: `cpus` counts the CPUs that run, and the frames are usable RAM.
    Ok(unsafe { Machine::new(memory, devices, config, cpus, found, options) })
}

/// The tree at `address`.
///
/// # Safety
/// The memory there is mapped, and nobody writes it any more.
unsafe fn blob(address: PhysAddr) -> Result<&'static [u8], StepError> {
    let no_tree = |found, bytes| StepError::NoTree {
        address,
        found,
        bytes,
    };
    if !address.as_u64().is_multiple_of(8) || address >= identity_limit() {
        return Err(no_tree(0, 0));
    }
    let word = |offset| {
        let place = physical::pointer(address).wrapping_add(offset);
        // SAFETY: the caller promises mapped memory; the place is aligned.
        u32::from_be(unsafe { physical::read_word(place.cast()) })
    };
    let (found, bytes) = (word(0), word(4));
    let end = address.checked_add(bytes.into());
    if found != MAGIC || bytes > MAX_TREE_BYTES || end.is_none_or(|end| end > identity_limit()) {
        return Err(no_tree(found, bytes));
    }
    // SAFETY: the boot protocol has the tree in RAM, of which this CPU, the only one, has used nothing but the image's.
    unsafe { paging::map_bytes(address, bytes.into()) };
    // SAFETY: the tree says that it is this long, and the caller that nobody writes it.
    Ok(unsafe { physical::bytes(address, bytes as usize) })
}
