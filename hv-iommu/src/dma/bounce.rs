//! Bounce pages: what an untrusted device gets in the place of a page that it shares with others.

#![expect(
    unsafe_code,
    reason = "copies between pages of a buffer and the pages that stand in for them"
)]

use alloc::vec::Vec;
use core::mem;

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
/// Runs that a bounce page may leave behind: itself, what it stood in for, and a middle.
const ORPHANS: usize = 3;
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
/// are frames of a mapping that was dropped and that no table holds: for each bounce page that is not in `free` at most
/// itself, the page that it stood in for, and a middle. Both lists have room for what may come, so that putting
/// something there allocates nothing.
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

    /// Keeps frames of a mapping, whose value was dropped, for the end of the domain.
    pub(super) fn keep_orphan(&mut self, frames: PhysRange) {
        // By the invariant there is room.
        if self.orphans.len() < self.orphans.capacity() {
            self.orphans.push(frames);
        }
    }

    pub(crate) fn take_orphan(&mut self) -> Option<PhysRange> {
        self.orphans.pop()
    }

    /// Adds pages, with lists that have the room; the old lists come out, to be freed without the lock. Not if pages came
    /// or went meanwhile, so that the room may not do.
    fn grow(&mut self, lists: &mut Lists, pages: &[PhysAddr]) -> bool {
        if lists.before != self.all {
            return false;
        }
        // All within the room that `Lists` made, so nothing is allocated.
        lists.free.append(&mut self.free);
        lists.free.extend_from_slice(pages);
        lists.orphans.append(&mut self.orphans);
        mem::swap(&mut lists.free, &mut self.free);
        mem::swap(&mut lists.orphans, &mut self.orphans);
        self.all += pages.len();
        true
    }
}

/// Empty lists for a pool that had `before` pages and is to have more.
struct Lists {
    before: usize,
    free: Vec<PhysAddr>,
    orphans: Vec<PhysRange>,
}

impl Lists {
    fn new(before: usize, more: usize) -> Result<Self, OutOfMemory> {
        let wanted = before.saturating_add(more);
        Ok(Self {
            before,
            free: with_room(wanted)?,
            orphans: with_room(wanted.saturating_mul(ORPHANS))?,
        })
    }
}

/// An empty list with room for that many.
fn with_room<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    let bytes = count.saturating_mul(size_of::<T>());
    list.try_reserve_exact(count)
        .map_err(|_| OutOfMemory { bytes })?;
    Ok(list)
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
        let count = usize::try_from(pages.get()).unwrap_or(usize::MAX);
        let mut taken = with_room(count)?;
        let filled = self.fill_from_platform(pages, &mut taken);
        if filled.is_err() {
            let platform = self.core.system.backend.platform();
            for page in taken {
                // SAFETY: it was taken just now, and the pool does not have it.
                if let Some(run) = unsafe { run_of(page) } {
                    platform.free_frames(run);
                }
            }
        }
        filled
    }

    /// Takes pages into `taken`, and gives the pool all of them. Nothing is allocated under the pool's lock.
    fn fill_from_platform(
        &self,
        pages: PageCount,
        taken: &mut Vec<PhysAddr>,
    ) -> Result<(), BounceError> {
        let platform = self.core.system.backend.platform();
        for missing in (1..=pages.get()).rev() {
            let frames = platform
                .alloc_frames(PageCount::ONE, PageSize::Size4K)
                .map_err(|_| BounceError::OutOfFrames { missing })?;
            if !self.core.reaches(&frames.range()) {
                let refusal = MapRefusal::PhysTooWide {
                    frames: frames.range(),
                    bits: self.core.caps.phys_bits,
                };
                platform.free_frames(frames);
                return Err(refusal.into());
            }
            // INVARIANT: the run was alone and is given up for its place here; there is room.
            taken.push(frames.into_range().start());
        }
        loop {
            let before = self.core.dma.pool.lock().all;
            let mut lists = Lists::new(before, taken.len())?;
            if self.core.dma.pool.lock().grow(&mut lists, taken) {
                return Ok(());
            }
        }
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
