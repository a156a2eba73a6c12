//! Walking a table: from the root to the words of a range, linking tables on the way.

#![expect(
    unsafe_code,
    reason = "reaches the words of table pages by their physical address"
)]

use core::ops::Deref;

use hv_core::fault::Fault;
use hv_core::platform::{CacheMaintenance, FrameSource, PhysMemory};
use hv_core::sync::Ordering;
use hv_core::{EntryCell, FrameRun, Hypervisor, Iova, PageCount, PageSize, PhysAddr, PhysRange};

use super::{MemoryHandle, Table, TableError, TableMemory, Translation};
use crate::format::{Entry, Format, Level};
use crate::quiesce::Guard;

/// The cell type of the memory that `H` leads to.
pub(super) type CellOf<H> = <<H as Deref>::Target as PhysMemory>::Cell;

/// The words of one table page, and where they are.
pub(super) struct Page<'g, C> {
    cells: &'g [C],
    at: PhysAddr,
}

/// The part of an operation's addresses that one word covers.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// The word's index in its table.
    pub(super) index: usize,
    /// The first address of the operation under this word.
    pub(super) first: u64,
    /// The last one, inclusive.
    pub(super) last: u64,
    /// Whether the operation covers the whole span of the word.
    pub(super) whole: bool,
}

impl<'g, C: EntryCell> Page<'g, C> {
    pub(super) fn cell(&self, index: usize) -> Option<&'g C> {
        self.cells.get(index)
    }

    /// The physical address of the word with this index.
    pub(super) fn word_at(&self, index: usize) -> PhysAddr {
        PhysAddr::new(self.at.as_u64() + (index * size_of::<u64>()) as u64)
    }
}

/// Takes a frame, all of whose words are empty and in memory.
pub(super) fn new_table<M: TableMemory>(memory: &M, coherent: bool) -> Option<PhysAddr> {
    let frame = memory.alloc_frames(PageCount::ONE, PageSize::Size4K).ok()?;
    let at = frame.range().start();
    for cell in frame.cells(memory, 0).unwrap_or(&[]) {
        // ORDERING: Relaxed, the page is private; the CAS or store that links it publishes it.
        cell.store(0, Ordering::Relaxed);
    }
    if !coherent && !Fault::SkipTableWriteBack.is_on() {
        memory.write_back(at, PageSize::Size4K.bytes());
    }
    // Whoever links the address owns the frame from here; `give_back` makes a run of it again.
    Some(frame.into_range().start())
}

/// Gives a table page back that no word names any more, or never did.
///
/// # Safety
/// `page` came from [`new_table`] on the same memory, is given back once, and neither a CPU nor a
/// walker reaches it.
pub(super) unsafe fn give_back<M: FrameSource>(memory: &M, page: PhysAddr) {
    if let Ok(range) = PhysRange::new(page, PageCount::ONE) {
        // SAFETY: `new_table` took this frame and gave up its run; by the caller's promise nothing
        // uses it, so this run is its one owner.
        memory.free_frames(unsafe { FrameRun::<Hypervisor>::from_raw(range, ()) });
    }
}

/// What [`Table::child`] may do about an empty slot.
pub(super) enum Missing<'p> {
    /// Report it.
    Skip,
    /// Link a new table; a page that was taken and lost a race is kept here for the next slot.
    Install {
        /// A private page left over.
        spare: &'p mut Option<PhysAddr>,
        /// How many tables were linked.
        installed: &'p mut u64,
    },
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// The words of the table page at `page`, for as long as the guard protects them.
    pub(super) fn page<'g>(&'g self, _guard: &'g Guard<'_>, page: PhysAddr) -> Page<'g, CellOf<H>> {
        // SAFETY: callers pass the root or a page named by a link of this table, read under the
        // guard. By the invariant of `Table` such a page is a frame that this table owns; it is
        // freed only after the root was closed and every guard of before has ended, and the
        // reference cannot outlive the guard.
        let cells = unsafe { self.memory.cells(page) };
        Page { cells, at: page }
    }

    /// The words of a table page that nobody else can reach any more.
    ///
    /// # Safety
    /// The table was closed, all guards of that time have ended, and `page` was not given back.
    pub(super) unsafe fn page_alone(&self, page: PhysAddr) -> Page<'_, CellOf<H>> {
        // SAFETY: by the invariant of `Table` the page is a frame that this table owns; by the
        // caller's promise it has not been given back.
        let cells = unsafe { self.memory.cells(page) };
        Page { cells, at: page }
    }

    pub(super) fn memory(&self) -> &H::Target {
        &self.memory
    }

    /// The words of a table of `level` that addresses `first` to `last` go through.
    pub(super) fn parts(
        &self,
        level: Level,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = Part> + use<F, H> {
        let shift = Self::shift(level);
        let mask = (1_u64 << F::INDEX_BITS) - 1;
        let span_mask = (1_u64 << shift) - 1;
        let mut next = Some(first);
        core::iter::from_fn(move || {
            let from = next?;
            let end = (from | span_mask).min(last);
            next = if end == last {
                None
            } else {
                end.checked_add(1)
            };
            Some(Part {
                // The mask leaves `INDEX_BITS` bits, which fit any `usize`.
                index: ((from >> shift) & mask) as usize,
                first: from,
                last: end,
                whole: from & span_mask == 0 && end & span_mask == span_mask,
            })
        })
    }

    /// The table linked at word `index` of `page`, or `None` when the slot is empty and `missing`
    /// says to skip it.
    pub(super) fn child(
        &self,
        page: &Page<'_, CellOf<H>>,
        index: usize,
        level: Level,
        at: Iova,
        mut missing: Missing<'_>,
    ) -> Result<Option<PhysAddr>, TableError> {
        let Some(cell) = page.cell(index) else {
            return Err(TableError::Damaged { at, word: 0 });
        };
        // ORDERING: Acquire pairs with the install below: behind a link its table's words are seen.
        let mut word = cell.load(Ordering::Acquire);
        loop {
            match self.format.decode(word, level) {
                Entry::Table {
                    page: child,
                    written_back,
                } => {
                    if !self.geometry.coherent && !written_back {
                        self.link_written_back(cell, page.word_at(index));
                    }
                    return Ok(Some(child));
                }
                Entry::Leaf { .. } | Entry::Pending { .. } => {
                    return Err(TableError::Occupied { at });
                }
                Entry::Unknown(word) => return Err(TableError::Damaged { at, word }),
                Entry::Empty => {}
            }
            let Missing::Install { spare, installed } = &mut missing else {
                return Ok(None);
            };
            let private = match spare.take() {
                Some(private) => private,
                None => new_table(&*self.memory, self.geometry.coherent)
                    .ok_or(TableError::OutOfFrames { missing: 1 })?,
            };
            let link = self.format.table(private);
            if !Fault::SkipPublishFence.is_on() {
                self.memory.walker_fence();
            }
            if Fault::InstallByStore.is_on() {
                // ORDERING: Release; the deliberate fault is that a table may be overwritten.
                cell.store(link, Ordering::Release);
                **installed += 1;
                return Ok(Some(private));
            }
            // ORDERING: AcqRel publishes the private page's words to whoever walks through the
            // link; Acquire on failure, to walk through the winner's.
            match cell.compare_exchange(word, link, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    **installed += 1;
                    if !self.geometry.coherent {
                        self.link_written_back(cell, page.word_at(index));
                    }
                    return Ok(Some(private));
                }
                Err(found) => {
                    **spare = Some(private);
                    word = found;
                }
            }
        }
    }

    /// Brings a link to memory before anything that depends on it, and notes that in the link.
    fn link_written_back(&self, cell: &CellOf<H>, at: PhysAddr) {
        if !Fault::SkipLinkWriteBack.is_on() {
            self.memory.write_back(at, size_of::<u64>() as u64);
        }
        self.memory.walker_fence();
        // ORDERING: Release: who sees the bit may rely on the write-back that came before it.
        cell.fetch_or(self.format.written_back(), Ordering::Release);
    }

    /// The leaf that `at` goes through.
    pub(super) fn lookup(&self, guard: &Guard<'_>, at: Iova) -> Option<Translation> {
        let root = self.root()?;
        let (mut level, mut table) = (root.level, root.page);
        if at.as_u64() >> (Self::shift(level) + F::INDEX_BITS) != 0 {
            return None;
        }
        loop {
            let page = self.page(guard, table);
            let part = self.parts(level, at.as_u64(), at.as_u64()).next()?;
            // ORDERING: Acquire pairs with the install and leaf stores.
            let word = page.cell(part.index)?.load(Ordering::Acquire);
            match self.format.decode(word, level) {
                Entry::Table { page, .. } => {
                    table = page;
                    level = level.below()?;
                }
                Entry::Leaf { to, perms } => {
                    let offset = at.as_u64() & (self.span(level) - 1);
                    return Some(Translation {
                        to: to.checked_add(offset)?,
                        perms,
                        level,
                    });
                }
                Entry::Empty | Entry::Pending { .. } | Entry::Unknown(_) => return None,
            }
        }
    }
}
