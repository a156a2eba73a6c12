//! Bounce pages: what an untrusted device gets in the place of a page that it shares with others.

#![expect(
    unsafe_code,
    reason = "copies between pages of a buffer and the pages that stand in for them"
)]

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::platform::{FrameSource, PhysMemory};
use hv_core::{FrameRun, Hypervisor, OutOfMemory, Owner, PageCount, PageSize, PhysAddr, PhysRange};
use thiserror::Error;

use super::DmaOwner;
use crate::backend::Backend;
use crate::domain::Domain;
use crate::range::MapRefusal;

/// Bytes of a page.
const PAGE: u64 = PageSize::Size4K.bytes();
/// Bytes that are copied through the stack at once.
const CHUNK: usize = 256;
/// What a bounce page holds beside the buffer's bytes.
const ZEROS: [u8; CHUNK] = [0; CHUNK];

/// Why the pool was not filled. What was taken was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BounceError {
    /// The platform has too few frames.
    #[error("{missing} frames are missing for the pool of bounce pages")]
    OutOfFrames {
        /// How many.
        missing: u64,
    },
    /// The domain's units cannot address a frame of the platform.
    #[error(transparent)]
    Map(#[from] MapRefusal),
    /// The pool's list cannot grow.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// A domain's bounce pages that stand in for nothing, and pages of buffers whose values were dropped.
///
/// # Invariants
/// `free` are frames of the platform that nothing else names; `all` counts them and those in use. `orphans`
/// are frames that a driver gave up for a mapping, that no table holds, and whose mapping was dropped: two
/// runs at most per bounce page that is not in `free`. Both lists have room for what may come, so that
/// putting something there allocates nothing.
pub(crate) struct Pool {
    free: Vec<PhysAddr>,
    all: usize,
    orphans: Vec<PhysRange>,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            free: Vec::new(),
            all: 0,
            orphans: Vec::new(),
        }
    }

    /// How many are missing to take `count`.
    pub(super) fn missing(&self, count: usize) -> u64 {
        count.saturating_sub(self.free.len()) as u64
    }

    pub(super) fn take(&mut self) -> Option<PhysAddr> {
        self.free.pop()
    }

    pub(super) fn put(&mut self, page: PhysAddr) {
        // INVARIANT: it was taken from here, so there is room for it.
        self.free.push(page);
    }

    /// Keeps frames of a driver, whose value was dropped, for the end of the domain.
    pub(super) fn keep_orphan(&mut self, frames: PhysRange) {
        // By the invariant there is room.
        if self.orphans.len() < self.orphans.capacity() {
            self.orphans.push(frames);
        }
    }

    pub(crate) fn take_orphan(&mut self) -> Option<PhysRange> {
        self.orphans.pop()
    }

    fn room(&mut self, more: usize) -> Result<(), OutOfMemory> {
        let wanted = self.all.saturating_add(more);
        let bytes = wanted.saturating_mul(size_of::<PhysRange>());
        let out = |_| OutOfMemory { bytes };
        let missing = wanted.saturating_sub(self.free.len());
        self.free.try_reserve_exact(missing).map_err(out)?;
        let missing = wanted.saturating_mul(2).saturating_sub(self.orphans.len());
        self.orphans.try_reserve_exact(missing).map_err(out)
    }
}

/// The run of a page of the pool.
///
/// # Safety
/// `page` was taken from the pool and is given up: no table holds it, no device reaches it.
unsafe fn run_of(page: PhysAddr) -> Option<FrameRun<Hypervisor>> {
    let range = PhysRange::new(page, PageCount::ONE).ok()?;
    // SAFETY: the pool's frames came from the platform as runs that were given up for their addresses; by the
    // caller's promise nothing else names this one.
    Some(unsafe { FrameRun::from_raw(range, ()) })
}

impl<O: Owner, B: Backend> Domain<O, B> {
    /// Adds `pages` bounce pages, from the platform, to the domain's pool. A buffer that is not page-whole
    /// takes one or two while an untrusted device has it, whatever its length.
    ///
    /// # Errors
    /// [`BounceError`]; the pool is as it was then.
    pub fn fill_bounce_pool(&self, pages: PageCount) -> Result<(), BounceError>
    where
        O: DmaOwner,
    {
        let platform = self.core.system.backend.platform();
        let count = usize::try_from(pages.get()).unwrap_or(usize::MAX);
        let mut pool = self.core.dma.pool.lock();
        pool.room(count)?;
        let before = pool.free.len();
        let mut failed = None;
        for taken in 0..pages.get() {
            let frames = match platform.alloc_frames(PageCount::ONE, PageSize::Size4K) {
                Ok(frames) => frames,
                Err(_) => {
                    let missing = pages.get() - taken;
                    failed = Some(BounceError::OutOfFrames { missing });
                    break;
                }
            };
            if !self.core.reaches(&frames.range()) {
                let refusal = MapRefusal::PhysTooWide {
                    frames: frames.range(),
                    bits: self.core.caps.phys_bits,
                };
                platform.free_frames(frames);
                failed = Some(refusal.into());
                break;
            }
            // INVARIANT: the run was alone and is given up; there is room for it.
            pool.free.push(frames.into_range().start());
        }
        let Some(error) = failed else {
            pool.all += count;
            return Ok(());
        };
        while pool.free.len() > before {
            let Some(page) = pool.free.pop() else { break };
            // SAFETY: it was put there just now, under the lock that is still held.
            if let Some(run) = unsafe { run_of(page) } {
                platform.free_frames(run);
            }
        }
        Err(error)
    }

    /// Gives the bounce pages that stand in for nothing back to the platform. Gives how many.
    pub fn drain_bounce_pool(&self) -> u64
    where
        O: DmaOwner,
    {
        self.core.drain_bounce_pool()
    }

    /// How many bounce pages stand in for nothing right now.
    pub fn free_bounce_pages(&self) -> u64 {
        self.core.dma.pool.lock().free.len() as u64
    }
}

impl<B: Backend> crate::domain::DomainCore<B> {
    pub(crate) fn drain_bounce_pool(&self) -> u64 {
        let mut count = 0;
        loop {
            let page = {
                let mut pool = self.dma.pool.lock();
                let page = pool.free.pop();
                pool.all -= usize::from(page.is_some());
                page
            };
            // SAFETY: it is in the pool no more, so nothing names it.
            let Some(run) = page.and_then(|page| unsafe { run_of(page) }) else {
                return count;
            };
            self.system.backend.platform().free_frames(run);
            count += 1;
        }
    }
}

/// A part of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PagePart {
    /// Where it begins in the page, in bytes.
    pub(super) offset: u64,
    /// How many bytes it has.
    pub(super) bytes: u64,
}

/// Makes `bounce` hold this part of `own`, and zeros.
///
/// # Safety
/// Both are pages that the caller owns.
pub(super) unsafe fn fill<M: PhysMemory>(
    memory: &M,
    own: PhysAddr,
    bounce: PhysAddr,
    part: PagePart,
) {
    let part = match Fault::BounceCopiesWholePage.is_on() {
        true => PagePart {
            offset: 0,
            bytes: PAGE,
        },
        false => part,
    };
    if !Fault::BounceKeepsOldBytes.is_on() {
        let end = part.offset + part.bytes;
        for (from, to) in [(0, part.offset), (end, PAGE)] {
            for (at, bytes) in chunks(from, to) {
                if let (Some(at), Some(zeros)) = (bounce.checked_add(at), ZEROS.get(..bytes)) {
                    // SAFETY: the bytes lie in the bounce page, which is the caller's.
                    unsafe { memory.write(at, zeros) };
                }
            }
        }
    }
    // SAFETY: the caller's promise is the same.
    unsafe { copy(memory, own, bounce, part) };
}

/// Copies this part of one page to the same place of another.
///
/// # Safety
/// Both are pages that the caller owns.
pub(super) unsafe fn copy<M: PhysMemory>(memory: &M, from: PhysAddr, to: PhysAddr, part: PagePart) {
    let mut buffer = [0; CHUNK];
    for (at, bytes) in chunks(part.offset, part.offset + part.bytes) {
        let (Some(from), Some(to), Some(buffer)) = (
            from.checked_add(at),
            to.checked_add(at),
            buffer.get_mut(..bytes),
        ) else {
            return;
        };
        // SAFETY: the bytes lie in a page that the caller owns.
        unsafe { memory.read(from, buffer) };
        // SAFETY: as above.
        unsafe { memory.write(to, buffer) };
    }
}

/// `from..to` in pieces that fit the stack: where each begins, and its length.
fn chunks(from: u64, to: u64) -> impl Iterator<Item = (u64, usize)> {
    (from..to)
        .step_by(CHUNK)
        .map(move |at| (at, (to - at).min(CHUNK as u64) as usize))
}
