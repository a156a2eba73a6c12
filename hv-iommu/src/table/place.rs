//! Leaves by their place: a single page that one owner maps and unmaps again is found once, not on every step.
//!
//! Rule 9 is what allows it: a table with a leaf or a pending word in it stays, with all tables above it. So from the map
//! of a page until its pending word is emptied, the word can be reached by its address, without a guard and a walk.

#![expect(
    unsafe_code,
    reason = "reaches a word of a table page by its physical address, without a guard"
)]

use core::num::NonZeroU64;

use hv_core::fault::Fault;
use hv_core::platform::{CacheMaintenance, PhysMemory};
use hv_core::sync::Ordering;
use hv_core::{EntryCell, IovaRange, PageSize, Perms, PhysAddr};

use super::walk::{CellOf, WORD_BYTES};
use super::{MemoryHandle, Table, TableError};
use crate::format::{Format, Level};
use crate::quiesce::Guard;

/// Where the leaf of a single page stands.
///
/// # Invariants
/// The address of a word of a table of level 1, in which a leaf was written for whoever has this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafPlace(NonZeroU64);

impl LeafPlace {
    #[inline]
    fn word(self) -> PhysAddr {
        PhysAddr::new(self.0.get())
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// As [`map_vacant`](Self::map_vacant) for a range of one page. Gives where its leaf stands; not where walkers write
    /// dirty bits, whose harvest takes a walk.
    ///
    /// # Errors
    /// [`TableError`]; nothing was mapped then.
    ///
    /// # Safety
    /// As for [`map_vacant`](Self::map_vacant). The range has one page.
    #[inline(always)]
    pub unsafe fn map_page(
        &self,
        guard: &Guard<'_>,
        page: IovaRange,
        to: PhysAddr,
        perms: Perms,
    ) -> Result<Option<LeafPlace>, TableError> {
        let at = page.start().as_u64();
        // A range of 4 KiB is part of a page elsewhere, which the long way refuses.
        if Self::PAGE_ORDER == 0
            && let Some(word) = self.map_leaf_run(guard, at, to, perms)
        {
            return Ok(self.place(word));
        }
        self.map_range(guard, page, to, perms, PageSize::Size4K)?;
        let table = self.descend::<1, true, false>(guard, at, Self::any_link());
        Ok(table.and_then(|table| self.place(table.word_at(Self::index(Level::LEAF, at)))))
    }

    #[inline(always)]
    fn place(&self, word: PhysAddr) -> Option<LeafPlace> {
        // INVARIANT: callers have just written the leaf there. At address 0 there is no place, and the page is walked to.
        let word = NonZeroU64::new(word.as_u64())?;
        (!self.geometry.dirty).then_some(LeafPlace(word))
    }

    /// The word at a place.
    ///
    /// # Safety
    /// A leaf or a pending word of the caller's stands there, and the table does not end meanwhile.
    #[inline(always)]
    unsafe fn word_of(&self, place: LeafPlace) -> Option<&CellOf<H>> {
        let word = place.word();
        let page = word.align_down(PageSize::Size4K);
        let index = (word.as_u64() - page.as_u64()) / WORD_BYTES;
        // SAFETY: by the invariant of `LeafPlace` the page was a table of this one, and by the caller's promise it has
        // content since. By rules 9 and 10 it is then neither unlinked nor detached by anybody but the caller, so it is
        // still this table's frame, and stays that until the caller empties the word.
        let cells = unsafe { self.memory.cells(page) };
        cells.get(index as usize)
    }

    /// Turns the leaf at its place into a pending word, without a walk. No table is detached.
    ///
    /// # Safety
    /// [`map_page`](Self::map_page) of this table gave the place, and the caller, who owns the page's addresses alone, has
    /// neither redeemed nor split, merged or given away what it mapped there. The table does not end meanwhile.
    #[inline(always)]
    pub unsafe fn unmap_page(&self, place: LeafPlace) {
        // SAFETY: by the caller's promise the leaf still stands there, or its pending word.
        let Some(cell) = (unsafe { self.word_of(place) }) else {
            return;
        };
        // ORDERING: Relaxed: the word is the caller's own.
        let word = cell.load(Ordering::Relaxed);
        if word & F::PRESENT != 0 {
            // ORDERING: Release, rule 3; the caller's fence before it notes the flush sequence orders the store before
            // the flush.
            cell.store(self.format.pending(word), Ordering::Release);
        }
        if !Fault::SkipUnmapWriteBack.is_on() {
            self.write_words_back(place.word(), 1);
        }
        self.memory().walker_fence();
    }

    /// As [`redeem`](Self::redeem) for what [`unmap_page`](Self::unmap_page) left of a page that was mapped to `to`, without
    /// a walk. Whether the word was that; nothing was changed otherwise.
    ///
    /// # Safety
    /// As for [`unmap_page`](Self::unmap_page), and a flush of the page has completed on every unit, asked for after it.
    /// Once this has answered yes, the place is not used again.
    #[inline(always)]
    pub unsafe fn redeem_page(&self, place: LeafPlace, to: PhysAddr) -> bool {
        // SAFETY: by the caller's promise the pending word still stands there.
        let Some(cell) = (unsafe { self.word_of(place) }) else {
            return false;
        };
        // ORDERING: Relaxed: the word is the caller's own since its unmap.
        if cell.load(Ordering::Relaxed) != self.pending_for(Level::LEAF, to) {
            return false;
        }
        // ORDERING: Release, rule 3: all that was done to this word and its page comes before whoever finds the word
        // empty and gives the page back: the attempt's look is an Acquire. There is no guard that would say so. The page
        // is not touched after this, nor written back: for a walker, pending and empty are the same, not present.
        cell.store(0, Fault::EmptyRelaxed.weakens(Ordering::Release));
        true
    }
}
