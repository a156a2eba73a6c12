//! Coherent buffers: memory that CPU and device both see, all the time.

#![expect(
    unsafe_code,
    reason = "gives the CPU a view of frames that a mapping holds"
)]

use core::fmt;

use hv_core::platform::{FrameSource, OutOfFrames, PhysMemory};
use hv_core::{
    Iova, KernelPaging, OutOfBounds, Owner, PageCount, PageSize, Perms, PhysAddr, Shared,
};
use thiserror::Error;

use super::error::DmaRefusal;
use super::mask::DmaMask;
use super::{DmaOwner, Hold, Snooping, device};
use crate::backend::Backend;
use crate::domain::{Domain, DomainCore};
use crate::flush::FlushError;
use crate::iova::SpaceError;
use crate::pending::{PendingUnmap, RedeemRefusal};
use crate::range::{Free, MapError, MapRefusal, Mapped, Range};

/// Why there is no buffer. Everything taken for it was given back, unless it is [`Stuck`](DmaError::Stuck).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DmaError {
    /// The frame source has no such run.
    #[error(transparent)]
    OutOfFrames(#[from] OutOfFrames),
    /// The domain has no such range.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The mapping was refused.
    #[error(transparent)]
    Map(#[from] MapRefusal),
    /// A unit was not told of the mapping: it is wedged, or was busy. It has forgotten that there was one.
    #[error("no buffer, since a unit did not take its mapping: {0}")]
    NotVisible(FlushError),
    /// The same, and what was mapped was not given back, since a unit did not forget it either, or a CPU walked there for too
    /// long: the buffer's frames and addresses stay with the domain until its end. This is why the unit was not told.
    #[error("no buffer, and what was mapped for it stays with its domain until the end: {0}")]
    Stuck(FlushError),
    /// The device cannot have such a buffer.
    #[error(transparent)]
    Device(DmaRefusal),
}

impl From<DmaRefusal> for DmaError {
    fn from(refusal: DmaRefusal) -> Self {
        match refusal {
            DmaRefusal::Space(error) => error.into(),
            DmaRefusal::Map(error) => error.into(),
            other => Self::Device(other),
        }
    }
}

/// What a driver wants of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferRequest {
    /// Its length.
    pub pages: PageCount,
    /// The alignment of its first byte, for device and memory alike, and the largest page it is
    /// mapped with.
    pub align: PageSize,
    /// What the device may do.
    pub perms: Perms,
}

impl<B: Backend> Domain<KernelPaging, B> {
    /// Takes a free range of that length and alignment anywhere in the domain.
    ///
    /// # Errors
    /// [`SpaceError`].
    pub fn allocate(
        &self,
        pages: PageCount,
        align: PageSize,
    ) -> Result<Range<KernelPaging, B, Free>, SpaceError> {
        self.allocate_within(pages, align, self.core.caps.last)
    }
}

impl<O: Owner, B: Backend> Domain<O, B> {
    /// A zeroed buffer that the CPU and the domain's devices see at once, for devices that can say every
    /// address of the domain and snoop. For others, [`dma_device`](Self::dma_device).
    ///
    /// # Errors
    /// [`DmaError`]; nothing is taken then, but for what is [`Stuck`](DmaError::Stuck).
    pub fn alloc_coherent(&self, request: BufferRequest) -> Result<CoherentBuffer<B>, DmaError>
    where
        O: DmaOwner,
    {
        if self.core.snooping() == Snooping::DoesNotSnoop {
            return Err(DmaRefusal::DoesNotSnoop.into());
        }
        alloc(&self.core, DmaMask::ALL, request)
    }
}

/// A zeroed buffer at addresses that `mask` has.
pub(super) fn alloc<B: Backend>(
    core: &Shared<DomainCore<B>>,
    mask: DmaMask,
    request: BufferRequest,
) -> Result<CoherentBuffer<B>, DmaError> {
    let hold = Hold::new(core);
    let platform = core.system.backend.platform();
    let frames = platform.alloc_frames(request.pages, request.align)?;
    let span = match device::addresses(core, mask, request.pages, request.align.into()) {
        Ok(span) => span,
        Err(error) => {
            platform.free_frames(frames);
            return Err(error.into());
        }
    };
    let at = frames.range().start();
    let range = Range::new(core.clone(), (), span, Free(()));
    match range.map_with(frames, request.perms, request.align) {
        Ok(range) => Ok(CoherentBuffer {
            range,
            at,
            view: hold,
        }),
        Err(MapError::Refused { frames, reason, .. }) => {
            platform.free_frames(frames);
            core.free_iova(span);
            Err(reason.into())
        }
        Err(MapError::NotVisible { range, reason }) => {
            let pending = range.unmap();
            let why = RedeemRefusal::StillWalked;
            let freed = FreeError {
                pending,
                reason: why,
            };
            match freed.retry() {
                Ok(()) => Err(DmaError::NotVisible(reason)),
                // The table is the record of what it holds, for the domain's end.
                Err(_) => Err(DmaError::Stuck(reason)),
            }
        }
    }
}

/// Memory of the hypervisor that is mapped for a device and that the CPU reads and writes meanwhile.
///
/// Dropping it leaves it mapped until the domain ends; [`free`](Self::free) gives it back. The domain
/// cannot end while it is alive.
///
/// # Invariants
/// `range` is mapped to the contiguous run of frames that starts at `at`, taken from the platform.
#[must_use = "a dropped buffer stays mapped until its domain ends"]
pub struct CoherentBuffer<B: Backend> {
    range: Range<KernelPaging, B, Mapped>,
    at: PhysAddr,
    view: Hold<B>,
}

/// A buffer that could not be freed yet. It is unmapped, and its frames stay with the domain until
/// [`retry`](Self::retry) works, or the domain ends.
pub struct FreeError<B: Backend> {
    /// Range and frames.
    pub pending: PendingUnmap<KernelPaging, B>,
    /// Why.
    pub reason: RedeemRefusal,
}

impl<B: Backend> FreeError<B> {
    /// Flushes again, and gives frames and range back.
    ///
    /// # Errors
    /// This value, when the flush failed once more.
    pub fn retry(self) -> Result<(), Self> {
        let (range, frames) = self.pending.flush().map_err(|error| Self {
            pending: error.pending,
            reason: error.reason,
        })?;
        range.core().system.backend.platform().free_frames(frames);
        range.core().free_iova(range.span());
        Ok(())
    }
}

impl<B: Backend> fmt::Display for FreeError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pending, reason) = (&self.pending, &self.reason);
        write!(
            f,
            "a buffer's frames stay with the domain ({pending:?}): {reason}"
        )
    }
}

impl<B: Backend> fmt::Debug for FreeError<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<B: Backend> core::error::Error for FreeError<B> {}

impl<B: Backend> CoherentBuffer<B> {
    /// Where the device sees it.
    pub fn iova(&self) -> Iova {
        self.range.span().start()
    }

    /// Where it is in memory. A device cannot use this address.
    pub fn phys(&self) -> PhysAddr {
        self.at
    }

    /// Its length.
    pub fn pages(&self) -> PageCount {
        self.range.span().pages()
    }

    /// What devices may do with it.
    pub fn granted(&self) -> Perms {
        self.range.granted()
    }

    /// Copies bytes out.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfBounds> {
        let from = self.place(offset, out.len())?;
        // SAFETY: the bytes lie in the run that the mapping holds for this buffer, and `view` keeps the
        // domain from ending, which is the one way for the run to go elsewhere while `range` is here.
        unsafe { self.platform().read(from, out) };
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// # Errors
    /// [`OutOfBounds`]; nothing is copied then.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OutOfBounds> {
        let to = self.place(offset, bytes.len())?;
        // SAFETY: the bytes lie in the run that the mapping holds for this buffer, and `view` keeps the
        // domain from ending, which is the one way for the run to go elsewhere while `range` is here.
        unsafe { self.platform().write(to, bytes) };
        Ok(())
    }

    /// Reads one 32-bit word in one access; nothing that the caller reads later is read before it.
    ///
    /// # Errors
    /// [`OutOfBounds`], also when `offset` is not a multiple of 4.
    pub fn read_u32(&self, offset: u64) -> Result<u32, OutOfBounds> {
        let bytes = size_of::<u32>();
        let from = self.place(offset, bytes)?;
        if !offset.is_multiple_of(bytes as u64) {
            return Err(OutOfBounds {
                offset,
                bytes: bytes as u64,
                end: self.pages().bytes(),
            });
        }
        // SAFETY: the word lies in the run that the mapping holds for this buffer, which starts
        // page-aligned, and the offset is a multiple of 4; `view` keeps the domain from ending.
        Ok(unsafe { self.platform().read_u32(from) })
    }

    /// Unmaps the buffer, waits until no device reaches it, and gives frames and range back.
    ///
    /// # Errors
    /// [`FreeError`] when the flush failed; it can be tried again.
    pub fn free(self) -> Result<(), FreeError<B>> {
        // The CPU's last access through this buffer is over: `self` is consumed.
        drop(self.view);
        let pending = self.range.unmap();
        let reason = RedeemRefusal::StillWalked;
        FreeError { pending, reason }.retry()
    }

    /// The mapping without the CPU's view.
    pub fn into_range(self) -> Range<KernelPaging, B, Mapped> {
        self.range
    }

    fn place(&self, offset: u64, bytes: usize) -> Result<PhysAddr, OutOfBounds> {
        let end = self.pages().bytes();
        OutOfBounds::check(offset, bytes, end)?;
        let bytes = bytes as u64;
        self.at
            .checked_add(offset)
            .ok_or(OutOfBounds { offset, bytes, end })
    }

    fn platform(&self) -> &B::Platform {
        self.range.core().system.backend.platform()
    }
}

impl<B: Backend> fmt::Debug for CoherentBuffer<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "buffer at {} of {}", self.iova(), self.range.domain())
    }
}
