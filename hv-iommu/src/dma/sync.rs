//! The CPU's turn at a streaming mapping that stays.

#![expect(
    unsafe_code,
    reason = "gives the CPU a view of frames that a mapping holds"
)]

use core::fmt;

use hv_core::platform::PhysMemory;
use hv_core::{Iova, OutOfBounds, PhysAddr};

use super::direction::{CpuWrites, Direction};
use super::stream::{PendingStream, StreamMapping};
use crate::backend::Backend;

/// A streaming mapping at which it is the CPU's turn. The device's driver has seen to it that the device
/// leaves the buffer alone meanwhile; if it does not, only bytes of the buffer are torn.
///
/// [`sync_for_device`](Self::sync_for_device) gives the turn to the device, without which there is no
/// unmapping.
#[must_use = "a dropped mapping keeps its memory until the domain ends"]
pub struct StreamOnCpu<B: Backend, D: Direction> {
    mapping: StreamMapping<B, D>,
}

/// Streaming mappings that the CPU reads and writes in the device's turn: none. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "the device has this buffer, so the CPU has no view of it: it is a `{Self}`",
    label = "it is the device's turn",
    note = "for a turn of the CPU: `sync_for_cpu()` gives a `StreamOnCpu` to read and write, whose `sync_for_device()` \
            ends the turn",
    note = "for good: `unmap()`, and `flush()` what that gives: the frames come back"
)]
pub trait SeenByCpu {
    /// Whatever the caller is to give: it is never called.
    fn never<T>(&self) -> T;
}

/// Streaming mappings that are unmapped in the CPU's turn: none. Exists for its message.
#[diagnostic::on_unimplemented(
    message = "a mapping is not unmapped in the CPU's turn: this is a `{Self}`",
    label = "what the CPU wrote may not be where the device, or who has the frames next, looks for it",
    note = "`sync_for_device()` ends the turn and gives the mapping back; `unmap()` that"
)]
pub trait UnmappedInTurn {
    /// Whatever the caller is to give: it is never called.
    fn never<T>(self) -> T;
}

impl<B: Backend, D: Direction> StreamMapping<B, D> {
    /// Does not compile: it is the device's turn, and the error says how the CPU gets its own.
    ///
    /// # Errors
    /// None: it is never called.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfBounds>
    where
        Self: SeenByCpu,
    {
        let _ = (offset, out);
        self.never()
    }

    /// Does not compile, like [`read`](Self::read).
    ///
    /// # Errors
    /// None: it is never called.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OutOfBounds>
    where
        Self: SeenByCpu,
    {
        let _ = (offset, bytes);
        self.never()
    }

    /// The CPU's turn: what the device wrote is seen from here on.
    pub fn sync_for_cpu(self) -> StreamOnCpu<B, D> {
        if D::PERMS.writable() {
            self.stream.copy_back();
        }
        StreamOnCpu { mapping: self }
    }
}

impl<B: Backend, D: Direction> StreamOnCpu<B, D> {
    /// Does not compile: the turn ends first, and the error says how.
    pub fn unmap(self) -> PendingStream<B, D>
    where
        Self: UnmappedInTurn,
    {
        self.never()
    }

    /// The device's turn: what the CPU wrote is seen from here on.
    pub fn sync_for_device(self) -> StreamMapping<B, D> {
        if D::PERMS.readable() {
            self.mapping.stream.copy_out();
        }
        self.mapping
    }

    /// Where the device finds the first byte.
    pub fn iova(&self) -> Iova {
        self.mapping.iova()
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes()
    }

    /// Copies bytes of the buffer out; `offset` counts from its first byte.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfBounds> {
        let from = self.place(offset, out.len())?;
        // SAFETY: the bytes lie in the run that the mapping holds for this value, whose hold keeps the domain
        // from ending, which is the one way for the run to go elsewhere meanwhile.
        unsafe { self.platform().read(from, out) };
        Ok(())
    }

    /// Copies bytes into the buffer, for the device's next turn.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OutOfBounds>
    where
        D: CpuWrites,
    {
        let to = self.place(offset, bytes.len())?;
        // SAFETY: the bytes lie in the run that the mapping holds for this value, whose hold keeps the domain
        // from ending, which is the one way for the run to go elsewhere meanwhile.
        unsafe { self.platform().write(to, bytes) };
        Ok(())
    }

    fn place(&self, offset: u64, bytes: usize) -> Result<PhysAddr, OutOfBounds> {
        let end = self.bytes();
        OutOfBounds::check(offset, bytes, end)?;
        let bytes = bytes as u64;
        self.mapping
            .stream
            .body
            .first_byte()
            .and_then(|first| first.checked_add(offset))
            .ok_or(OutOfBounds { offset, bytes, end })
    }

    fn platform(&self) -> &B::Platform {
        self.mapping.stream.hold.system.backend.platform()
    }
}

impl<B: Backend, D: Direction> fmt::Debug for StreamOnCpu<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, the CPU's turn", self.mapping)
    }
}
