//! Private table pages: taken before an operation that must not fail for want of one, or handed in.

#![expect(
    unsafe_code,
    reason = "turns frames into table pages and back, and keeps a list in private ones"
)]

use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, PageCount, PageSize, PhysAddr, PhysRange};

use super::TableMemory;

/// The frame of a table, or its frames, that no word names yet.
///
/// # Invariants
/// The frame is of the table's memory, was never linked since it came from there, and this value is the
/// only one that names it.
pub(super) struct Private(PhysAddr);

impl Private {
    /// Where it is.
    #[inline]
    pub(super) fn at(&self) -> PhysAddr {
        self.0
    }

    /// # Safety
    /// The frame is as the invariant says; nothing else names it from here on.
    pub(super) unsafe fn from_raw(at: PhysAddr) -> Self {
        // INVARIANT: the caller's promise.
        Self(at)
    }
}

/// The frame that no table may be.
const ZERO: PhysAddr = PhysAddr::new(0);

/// Frames for tables that no word names yet.
///
/// An operation takes from here first and from the platform's frame source for the rest. Dropping gives
/// what is left back to the platform.
///
/// # Invariants
/// `first` starts a list of `count` frames of `memory` that nothing else names, each with the next one's
/// address in its first word. They were never linked, so no walker reads them. None is the frame at address
/// 0: a word that keeps the address of a detached table and nothing else could not tell that one from
/// nothing. If there is one, `zero` holds it aside.
pub struct Spares<'m, M: TableMemory> {
    memory: &'m M,
    /// How many frames one table has: a power of two.
    frames: PageCount,
    /// The address bits that no table may have: no word can tell them.
    beyond: u64,
    first: u64,
    count: u64,
    zero: bool,
}

impl<'m, M: TableMemory> Spares<'m, M> {
    /// None, for tables of so many frames at addresses without these bits.
    #[inline]
    pub(super) fn new(memory: &'m M, frames: PageCount, beyond: u64) -> Self {
        // INVARIANT: the empty list.
        Self {
            memory,
            frames,
            beyond,
            first: 0,
            count: 0,
            zero: false,
        }
    }

    /// Whether they are of this memory.
    pub(super) fn are_of(&self, memory: &M) -> bool {
        core::ptr::eq(self.memory, memory)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Hands frames in. What makes no whole table, or has an address that no word can tell, goes back to the platform.
    pub fn add(&mut self, frames: FrameRun<Hypervisor>) {
        if !is_told(&frames, self.beyond) {
            return self.memory.free_frames(frames);
        }
        if self.frames != PageCount::ONE {
            return self.add_runs(frames);
        }
        let range = frames.into_range();
        for page in (0..range.pages().get()).filter_map(|index| range.page(index)) {
            if page == ZERO {
                self.zero = true;
                continue;
            }
            // INVARIANT: the run owned the frame, alone, and was given up just now.
            self.push(Private(page));
        }
    }

    /// The same for tables of several frames.
    fn add_runs(&mut self, mut frames: FrameRun<Hypervisor>) {
        let table = self.frames.get();
        loop {
            let first = frames.range().start().as_u64() / PageSize::Size4K.bytes();
            let before = first.next_multiple_of(table) - first;
            // What stands before the next multiple of a table's size, or a table.
            let take = if before == 0 { table } else { before };
            let (part, rest) = match PageCount::new(take).map(|take| frames.split_at(take)) {
                Some(Ok((part, rest))) => (part, Some(rest)),
                Some(Err(whole)) => (whole.run, None),
                // Not reached: both are at least one.
                None => return,
            };
            match before == 0 && part.pages() == self.frames {
                true if part.range().start() == ZERO => {
                    let _ = part.into_range();
                    self.zero = true;
                }
                // INVARIANT: the run owned the frames, alone, and is given up.
                true => self.push(Private(part.into_range().start())),
                false => self.memory.free_frames(part),
            }
            match rest {
                Some(rest) => frames = rest,
                None => return,
            }
        }
    }

    /// Takes a table's frames from the platform. Those at an address that no word can tell are as good as none.
    fn alloc(&self) -> Option<FrameRun<Hypervisor>> {
        let frames = match self.frames == PageCount::ONE {
            true => self.memory.alloc_table(),
            false => self.memory.alloc_table_run(self.frames),
        };
        told(self.memory, frames.ok()?, self.beyond)
    }

    /// Makes sure that there are at least `count`, from the platform's frame source.
    ///
    /// # Errors
    /// How many were missing; nothing was taken then.
    pub fn reserve(&mut self, count: u64) -> Result<(), u64> {
        let before = self.count;
        while self.count < count {
            match self.alloc() {
                Some(frame) => self.add(frame),
                None => {
                    let missing = count - self.count;
                    self.shrink(before.min(self.count));
                    return Err(missing);
                }
            }
        }
        Ok(())
    }

    /// Puts a private page back.
    pub(super) fn push(&mut self, Private(page): Private) {
        // SAFETY: by the invariant of `Private` the frame is the caller's alone.
        let cells = unsafe { self.memory.cells(page) };
        if let Some(word) = cells.first() {
            // ORDERING: Relaxed, the page is private to this value.
            word.store(self.first, Ordering::Relaxed);
        }
        // INVARIANT: the page goes to the front, and names what was there.
        self.first = page.as_u64();
        self.count += 1;
    }

    /// Takes one, whose words hold anything.
    #[inline]
    pub(super) fn take(&mut self) -> Option<Private> {
        if self.count == 0 {
            return None;
        }
        let page = PhysAddr::new(self.first);
        // SAFETY: by the invariant the frame is this value's alone.
        let cells = unsafe { self.memory.cells(page) };
        // ORDERING: Relaxed, the page is private to this value.
        self.first = cells.first()?.load(Ordering::Relaxed);
        self.count -= 1;
        // INVARIANT: the list named the page once, and no longer does.
        Some(Private(page))
    }

    /// Takes one, from the platform if there is none.
    #[inline]
    pub(super) fn take_or_alloc(&mut self) -> Option<Private> {
        if self.count != 0 {
            return self.take();
        }
        let mut page = self.alloc()?.into_range().start();
        if page == ZERO {
            self.zero = true;
            page = self.alloc()?.into_range().start();
        }
        // INVARIANT: the run owned the frame, alone, and was given up just now.
        Some(Private(page))
    }

    /// Gives all but `count` back to the platform.
    pub(super) fn shrink(&mut self, count: u64) {
        while self.count > count {
            let Some(Private(page)) = self.take() else {
                return;
            };
            // SAFETY: by the invariant of `Private` nothing else names the frame.
            unsafe { give_back(self.memory, page, self.frames) };
        }
    }
}

impl<M: TableMemory> Drop for Spares<'_, M> {
    fn drop(&mut self) {
        self.shrink(0);
        if self.zero {
            // SAFETY: the frame came as a run that was given up, and was never linked.
            unsafe { give_back(self.memory, ZERO, self.frames) };
        }
    }
}

/// Whether words can tell the addresses of frames.
fn is_told(frames: &FrameRun<Hypervisor>, beyond: u64) -> bool {
    frames.range().last().as_u64() & beyond == 0
}

/// The frames, if words can tell their addresses; they go back to the platform otherwise.
pub(super) fn told<M: TableMemory>(
    memory: &M,
    frames: FrameRun<Hypervisor>,
    beyond: u64,
) -> Option<FrameRun<Hypervisor>> {
    if is_told(&frames, beyond) {
        return Some(frames);
    }
    memory.free_frames(frames);
    None
}

/// Gives a table's frames back that no word names any more, or never did.
///
/// # Safety
/// `page` is the first of the frames of one table that was taken from this memory; they are given back once, and
/// neither a CPU nor a walker reaches them.
pub(super) unsafe fn give_back<M: TableMemory>(memory: &M, page: PhysAddr, frames: PageCount) {
    if let Ok(range) = PhysRange::new(page, frames) {
        // SAFETY: the frames came as a run that was given up for its address; by the caller's promise
        // nothing uses them, so this run is their one owner.
        memory.free_frames(unsafe { FrameRun::<Hypervisor>::from_raw(range, ()) });
    }
}
