//! What the embedding hypervisor provides: memory, registers, PCI, caches, time and CPUs.
//!
//! An embedder implements these traits once for one type; together they make it a [`Platform`].
//! Traits that the soundness of this system rests on are `unsafe` to implement and say what
//! they must keep.

#![expect(
    unsafe_code,
    reason = "declares the traits whose contract memory safety rests on"
)]

mod by_reference;

use core::time::Duration;

use thiserror::Error;

use crate::{
    CpuId, EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PciAddress, PhysAddr, PhysRange,
};

/// Everything the subsystem needs of its hypervisor. Implemented by having all the parts.
pub trait Platform:
    FrameSource
    + PhysMemory
    + MemoryMap
    + Registers
    + PciConfig
    + CacheMaintenance
    + Clock
    + Cpus
    + 'static
{
}

impl<
    P: FrameSource
        + PhysMemory
        + MemoryMap
        + Registers
        + PciConfig
        + CacheMaintenance
        + Clock
        + Cpus
        + 'static,
> Platform for P
{
}

/// Too few free frames, or none with that alignment. Nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("out of frames: no run of {pages} aligned to {align} is free")]
pub struct OutOfFrames {
    /// The length that was asked for.
    pub pages: PageCount,
    /// The alignment that was asked for.
    pub align: PageSize,
}

/// Gives and takes back physical frames of the hypervisor.
///
/// Called on the map path: it must not block for long, and may be called from any CPU.
pub trait FrameSource: Send + Sync {
    /// A contiguous run of zeroed frames whose start is a multiple of `align`.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is no such run.
    fn alloc_frames(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<FrameRun<Hypervisor>, OutOfFrames>;

    /// One frame for a table. What it holds does not matter: every word of it is written before anybody
    /// looks. A source that can leave out zeroing here saves that on every new table.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is none.
    fn alloc_table(&self) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        self.alloc_frames(PageCount::ONE, PageSize::Size4K)
    }

    /// A run for a table of more than one frame, or for tables that stand side by side: `frames` is a power of two,
    /// and the run starts at a multiple of its own size. What it holds does not matter, as for
    /// [`alloc_table`](Self::alloc_table). A source that finds such runs by itself saves taking twice as much for
    /// a moment.
    ///
    /// # Errors
    /// [`OutOfFrames`] when there is none.
    fn alloc_table_run(&self, frames: PageCount) -> Result<FrameRun<Hypervisor>, OutOfFrames> {
        if frames == PageCount::ONE {
            return self.alloc_table();
        }
        let out = OutOfFrames {
            pages: frames,
            align: PageSize::Size4K,
        };
        let enough = PageCount::new(frames.get().saturating_mul(2) - 1).ok_or(out)?;
        let mut run = self.alloc_frames(enough, PageSize::Size4K)?;
        // What stands before the first multiple, and behind the run, goes back.
        let first = run.range().start().as_u64() / PageSize::Size4K.bytes();
        let before = first.next_multiple_of(frames.get()) - first;
        if let Some(before) = PageCount::new(before) {
            let (head, rest) = cut(self, run, before, out)?;
            self.free_frames(head);
            run = rest;
        }
        if run.pages() != frames {
            let (whole, tail) = cut(self, run, frames, out)?;
            self.free_frames(tail);
            run = whole;
        }
        Ok(run)
    }

    /// Takes frames back. Runs may come back in other pieces than they were given.
    fn free_frames(&self, run: FrameRun<Hypervisor>);
}

/// The first `pages` frames of a run and the rest. A run that is too short goes back whole.
fn cut<S: FrameSource + ?Sized>(
    source: &S,
    run: FrameRun<Hypervisor>,
    pages: PageCount,
    out: OutOfFrames,
) -> Result<(FrameRun<Hypervisor>, FrameRun<Hypervisor>), OutOfFrames> {
    run.split_at(pages).map_err(|error| {
        source.free_frames(error.run);
        out
    })
}

/// Reaches physical memory from the CPU.
///
/// # Safety
/// For every frame that a live [`FrameRun`] names, `cells`, `read`, `write` and `read_u32` reach
/// that frame and no other memory, and the methods of `Cell` are the atomic operations of the same
/// names on its words. Frames given by [`FrameSource`] on the same platform are RAM that nothing else
/// uses.
pub unsafe trait PhysMemory: Send + Sync {
    /// How one 64-bit word of a frame is reached.
    type Cell: EntryCell;

    /// The 512 words of the frame at `frame` (models may have fewer).
    ///
    /// # Safety
    /// `frame` is the 4 KiB aligned address of a frame that the caller owns, alone or by a protocol
    /// that keeps it RAM of the hypervisor for as long as the reference is used.
    unsafe fn cells(&self, frame: PhysAddr) -> &[Self::Cell];

    /// The words of `frames` frames one behind the other, the first one at `first`: of a table that is larger than
    /// a frame. `None`, always, where frames can only be reached one by one; such a platform has no tables of other
    /// than 4 KiB pages.
    ///
    /// # Safety
    /// As for [`cells`](Self::cells), for each of the frames.
    unsafe fn cells_of(&self, first: PhysAddr, frames: PageCount) -> Option<&[Self::Cell]> {
        let _ = (first, frames);
        None
    }

    /// Copies bytes out of memory that a device may write at the same time.
    ///
    /// # Safety
    /// All bytes lie in frames that the caller owns or holds a pin on.
    unsafe fn read(&self, from: PhysAddr, out: &mut [u8]);

    /// Copies bytes into memory that a device may read at the same time.
    ///
    /// # Safety
    /// As for [`read`](Self::read).
    unsafe fn write(&self, to: PhysAddr, bytes: &[u8]);

    /// Reads one aligned 32-bit word in one access, as an acquire load: no read or write that the
    /// caller does later is done before it.
    ///
    /// # Safety
    /// As for [`read`](Self::read), and `from` is a multiple of 4.
    unsafe fn read_u32(&self, from: PhysAddr) -> u32;
}

/// Knows which memory is not the hypervisor's.
///
/// Firmware's tables name memory that a device has to reach (RMRR, RMR). What they say is firmware's word alone, and
/// has been wrong on shipped machines; it is believed only as far as the memory map agrees.
///
/// # Safety
/// Where [`firmware_may_use`](Self::firmware_may_use) gives true, nothing in the range is the hypervisor's or a
/// guest's, now or later: no [`FrameRun`] names it, no code, data or table is there, and no registers that
/// decide who may do what, such as those of an interrupt controller or of an IOMMU.
///
/// Where [`takes_messages`](Self::takes_messages) gives true, nothing in the range is memory, now or later, and a
/// device's write there does no more than ask an interrupt controller for an interrupt.
pub unsafe trait MemoryMap: Send + Sync {
    /// Whether all of `range` is firmware's, so that a device may be let through to it at firmware's word: what the
    /// memory map lists as reserved. False when in doubt.
    fn firmware_may_use(&self, range: PhysRange) -> bool;

    /// Whether all of `range` is where devices write interrupt messages to a controller that the hypervisor sets up, such
    /// as the translation frame of a GICv3 ITS. A domain maps no such place that is not known here. False when in doubt,
    /// and on machines whose IOMMUs do not translate messages.
    fn takes_messages(&self, range: PhysRange) -> bool {
        let _ = range;
        false
    }
}

/// One mapped block of device registers. Offsets are bytes from its start; each access is done
/// once, in full width, uncached and in program order with other register accesses.
///
/// What a CPU loads from memory after a read here is no older than what the read gave (on Arm that takes a barrier behind it).
///
/// An access past the end of the block reads as all ones and writes nothing.
pub trait Mmio: Send + Sync {
    /// Reads a 32-bit register.
    fn read32(&self, offset: u32) -> u32;
    /// Writes a 32-bit register, after all stores to memory that this CPU has made, and all that it has seen by acquire loads.
    fn write32(&self, offset: u32, value: u32);
    /// Reads a 64-bit register.
    fn read64(&self, offset: u32) -> u64;
    /// Writes a 64-bit register, as [`write32`](Self::write32).
    fn write64(&self, offset: u32, value: u64);
}

/// A block of registers cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("registers at {range} cannot be mapped: {reason}")]
pub struct RegistersError {
    /// The block that was asked for.
    pub range: PhysRange,
    /// Why not.
    pub reason: &'static str,
}

/// Maps device registers.
pub trait Registers: Send + Sync {
    /// A mapped block.
    type Block: Mmio;

    /// Maps the registers at `range`, uncached.
    ///
    /// # Errors
    /// [`RegistersError`] when the range is RAM, or cannot be mapped.
    fn map_registers(&self, range: PhysRange) -> Result<Self::Block, RegistersError>;
}

/// Reads and writes PCI configuration space. `offset` is in bytes, a multiple of 4, below 4096.
///
/// A function that is not there reads as all ones.
pub trait PciConfig: Send + Sync {
    /// Reads 32 bits.
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32;
    /// Writes 32 bits.
    fn config_write32(&self, function: PciAddress, offset: u16, value: u32);
}

/// Makes stores visible to table walkers and devices that do not snoop the CPU's caches, and theirs to the CPU.
pub trait CacheMaintenance: Send + Sync {
    /// Writes back every cache line that holds one of the `bytes` bytes at `from`, and returns when
    /// a walker that does not snoop would read them.
    fn write_back(&self, from: PhysAddr, bytes: u64);

    /// As [`write_back`](Self::write_back), for a device that does not snoop, and drops the lines: what the CPU
    /// reads of the bytes afterwards comes from memory, as the device left it.
    fn write_back_and_drop(&self, from: PhysAddr, bytes: u64);

    /// Orders all earlier stores of this CPU before all later ones, as the walkers see them.
    ///
    /// A release store orders for CPUs only; on some architectures device walkers need more.
    fn walker_fence(&self);
}

/// A moment of the monotonic clock, in nanoseconds since some start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// The moment this many nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment `wait` later; stays at the end of time instead of wrapping.
    pub fn after(self, wait: Duration) -> Self {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The time since `earlier`, zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A monotonic clock that all CPUs agree on.
pub trait Clock: Send + Sync {
    /// The present moment. Never earlier than any moment that was returned before it.
    fn now(&self) -> Instant;

    /// Waits a little for an event that a device sends to waiting CPUs: called between two looks at what the event tells of,
    /// and only for devices that say that they send one.
    ///
    /// It may return at once, for any reason or none: an event is a hint to look again, and proves nothing. It returns at
    /// the latest after a bounded time that is short against a deadline (tens of microseconds), whether or not the event
    /// came, for hardware loses events, and whoever waits looks at the clock only in between.
    ///
    /// On Arm this is WFE with the generic timer's event stream turned on on every CPU (CNTHCTL_EL2.EVNTEN), or WFET;
    /// WFE without either may sleep past every deadline. A platform that has nothing of the kind leaves it as it
    /// is: it spins.
    #[inline]
    fn pause(&self) {
        crate::sync::spin_hint();
    }
}

/// Knows which CPU runs.
///
/// # Safety
/// While a caller runs without being moved to another CPU, `current_cpu` gives it a number below
/// `cpu_count` that no other context running at the same time is given. Code that calls into this
/// system is not moved to another CPU in the middle of a call, nor while it holds a stay or a guard; a handler
/// that interrupts such a call and calls in itself returns before the interrupted call goes on, and has given
/// up every stay and guard of its own by then.
pub unsafe trait Cpus: Send + Sync {
    /// The CPU that executes this call.
    fn current_cpu(&self) -> CpuId;
    /// How many CPUs there can be. Never changes.
    fn cpu_count(&self) -> usize;
}
