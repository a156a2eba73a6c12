//! Runs of physical frames with an owner: the value that a mapping holds.

#![expect(
    unsafe_code,
    reason = "ownership of a run is what makes access to its memory sound"
)]

use core::fmt;

use thiserror::Error;

use crate::platform::PhysMemory;
use crate::{FrameOwner, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};

/// A physically contiguous run of whole 4 KiB frames and the right to use it.
///
/// A `FrameRun<Hypervisor>` is the one owner of its frames: it moves into a mapping and comes back
/// with a flush receipt. A `FrameRun<Guest>` is a pin: while it exists, also inside a mapping, the
/// guest's memory can be neither freed nor taken back ([`GuestMemory`](crate::GuestMemory)). It has no
/// access by the CPU: what it pins may be memory of the guest, memory lent to it, or registers of a device.
///
/// Dropping a run frees nothing. The frames are lost to their owner, never reused by mistake.
///
/// # Invariants
/// For [`Hypervisor`] the frames are RAM, and no other run, table or buffer names them. For
/// [`Guest`](crate::Guest) `owner` was given them, and a pin is counted for each page.
#[must_use = "dropping a run of frames loses the memory for good"]
pub struct FrameRun<F: FrameOwner> {
    range: PhysRange,
    owner: F::Id,
}

/// A run could not be split there: one part would be empty. Gives the run back.
#[derive(Error)]
#[error("cannot split {run} at page {at}: both parts need at least one page")]
pub struct SplitError<F: FrameOwner> {
    /// The run, unchanged.
    pub run: FrameRun<F>,
    /// Where the split was asked for, in pages from the start.
    pub at: u64,
}

impl<F: FrameOwner> fmt::Debug for SplitError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An access reaches past the end of its run or buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("access of {bytes} bytes at offset {offset:#x} passes the end at {end:#x}")]
pub struct OutOfBounds {
    /// Where the access starts.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// The size of the buffer.
    pub end: u64,
}

impl OutOfBounds {
    /// Checks that `bytes` bytes at `offset` fit into `end` bytes.
    ///
    /// # Errors
    /// [`OutOfBounds`] when they do not.
    pub fn check(offset: u64, bytes: usize, end: u64) -> Result<(), Self> {
        let bytes = bytes as u64;
        match offset.checked_add(bytes) {
            Some(last) if last <= end => Ok(()),
            _ => Err(Self { offset, bytes, end }),
        }
    }
}

impl<F: FrameOwner> FrameRun<F> {
    /// Takes ownership of the frames of `range` for `owner`.
    ///
    /// # Safety
    /// For [`Hypervisor`] the frames are RAM and nothing else owns or uses any of them. For
    /// [`Guest`](crate::Guest) they were given to `owner`, and a pin is held for each page until this run is unpinned.
    pub unsafe fn from_raw(range: PhysRange, owner: F::Id) -> Self {
        // INVARIANT: the caller's promise.
        Self { range, owner }
    }

    /// The physical range.
    pub fn range(&self) -> PhysRange {
        self.range
    }

    /// Gives the run up for its range, which something else remembers from now on: a table word, a
    /// register. [`from_raw`](Self::from_raw) makes it a run again.
    pub fn into_range(self) -> PhysRange {
        self.range
    }

    /// The number of frames.
    pub fn pages(&self) -> PageCount {
        self.range.pages()
    }

    /// Which owner of its kind.
    pub fn owner(&self) -> F::Id {
        self.owner
    }

    /// The first `pages` frames and the rest.
    ///
    /// # Errors
    /// [`SplitError`] with the run when either part would be empty.
    pub fn split_at(self, pages: PageCount) -> Result<(Self, Self), SplitError<F>> {
        let owner = self.owner;
        match self.range.split_at(pages) {
            // INVARIANT: the two parts are disjoint and replace the whole.
            Some((left, right)) => Ok((
                Self { range: left, owner },
                Self {
                    range: right,
                    owner,
                },
            )),
            None => Err(SplitError {
                run: self,
                at: pages.get(),
            }),
        }
    }

    /// One run of both, when `next` starts right behind this one and has the same owner.
    ///
    /// # Errors
    /// Both runs, when they do not fit together.
    pub fn join(self, next: Self) -> Result<Self, (Self, Self)> {
        match self.range.join(&next.range) {
            // INVARIANT: the whole replaces its two parts.
            Some(range) if self.owner == next.owner => Ok(Self {
                range,
                owner: self.owner,
            }),
            _ => Err((self, next)),
        }
    }
}

impl FrameRun<Hypervisor> {
    /// The 64-bit words of the frame with this index in the run, or `None` past its end.
    pub fn cells<'m, M: PhysMemory>(&'m self, memory: &'m M, index: u64) -> Option<&'m [M::Cell]> {
        let frame = self.range.page(index)?;
        // SAFETY: this run owns the frame exclusively and is borrowed for as long as the cells,
        // so it stays RAM that nothing else owns; cells are shared-mutable by themselves.
        Some(unsafe { memory.cells(frame) })
    }

    /// Copies bytes out of the run.
    ///
    /// # Errors
    /// [`OutOfBounds`] when the run ends before the bytes do; nothing is copied then.
    pub fn read<M: PhysMemory>(
        &self,
        memory: &M,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), OutOfBounds> {
        let at = self.place(offset, out.len())?;
        // SAFETY: the bytes lie in the run, which owns them.
        unsafe { memory.read(at, out) };
        Ok(())
    }

    /// Copies bytes into the run.
    ///
    /// # Errors
    /// [`OutOfBounds`] when the run ends before the bytes do; nothing is copied then.
    pub fn write<M: PhysMemory>(
        &self,
        memory: &M,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), OutOfBounds> {
        let at = self.place(offset, bytes.len())?;
        // SAFETY: the bytes lie in the run, which owns them.
        unsafe { memory.write(at, bytes) };
        Ok(())
    }

    /// Reads one 32-bit word in one access; nothing that the caller reads later is read before it.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 4.
    pub fn read_u32<M: PhysMemory>(&self, memory: &M, offset: u64) -> Result<u32, OutOfBounds> {
        let bytes = size_of::<u32>();
        let at = self.place(offset, bytes)?;
        if !at.as_u64().is_multiple_of(bytes as u64) {
            return Err(OutOfBounds {
                offset,
                bytes: bytes as u64,
                end: self.pages().bytes(),
            });
        }
        // SAFETY: the word lies in the run, which owns it; its address is a multiple of 4.
        Ok(unsafe { memory.read_u32(at) })
    }

    fn place(&self, offset: u64, bytes: usize) -> Result<PhysAddr, OutOfBounds> {
        let end = self.pages().bytes();
        OutOfBounds::check(offset, bytes, end)?;
        let error = OutOfBounds {
            offset,
            bytes: bytes as u64,
            end,
        };
        self.range.start().checked_add(offset).ok_or(error)
    }

    /// Whether the run starts at a multiple of `size`.
    pub fn is_aligned(&self, size: PageSize) -> bool {
        self.range.start().is_aligned(size)
    }
}

impl<F: FrameOwner> fmt::Display for FrameRun<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames {}", F::NAME, self.range)
    }
}

impl<F: FrameOwner> fmt::Debug for FrameRun<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "FrameRun<{}>({:?}, {:?})",
            F::NAME,
            self.range,
            self.owner
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Guest;

    // A second run for the same frames would be a second owner, or a pin that nobody counted.
    static_assertions::assert_not_impl_any!(FrameRun<Hypervisor>: Clone, Copy);
    static_assertions::assert_not_impl_any!(FrameRun<Guest>: Clone, Copy);
}
