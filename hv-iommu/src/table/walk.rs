//! Walking a table: from the root to the words that an operation is about, and what a writer does to
//! links on its way.

#![expect(
    unsafe_code,
    reason = "reaches the words of table pages by their physical address"
)]

use core::ops::{Deref, Range};

use hv_core::fault::Fault;
use hv_core::platform::{CacheMaintenance, PhysMemory};
use hv_core::sync::Ordering;
use hv_core::{EntryCell, Iova, PhysAddr};

use super::root::TableAt;
use super::{Geometry, MemoryHandle, Table, TableError, Translation};
use crate::format::{Entry, Format, Level, RootPointer};
use crate::quiesce::Guard;

/// The cell type of the memory that `H` leads to.
pub(super) type CellOf<H> = <<H as Deref>::Target as PhysMemory>::Cell;

pub(super) const WORD_BYTES: u64 = size_of::<u64>() as u64;
/// Words of a cache line.
pub(super) const LINE: usize = 8;

/// The words of one table page, and where they are.
pub(super) struct Page<'g, C> {
    pub(super) cells: &'g [C],
    pub(super) at: PhysAddr,
}

impl<C> Clone for Page<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Page<'_, C> {}

/// One word of a table page.
pub(super) struct Slot<'g, C> {
    pub(super) cell: &'g C,
    /// The physical address of the word.
    pub(super) word_at: PhysAddr,
    /// The level of its table.
    pub(super) level: Level,
    /// The first address of the operation under it.
    pub(super) first: u64,
}

impl<C> Clone for Slot<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Slot<'_, C> {}

/// The part of an operation's addresses under one word that it does not cover whole.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) first: u64,
    /// Inclusive.
    pub(super) last: u64,
}

/// How a range of addresses lies over the words of one table: a word of which it covers the end, words
/// that it covers whole, a word of which it covers the beginning. Any of them may be missing.
pub(super) struct Cover {
    pub(super) head: Option<Part>,
    pub(super) whole: Range<usize>,
    /// The first address under the first whole word.
    pub(super) base: u64,
    pub(super) tail: Option<Part>,
}

impl<'g, C: EntryCell> Page<'g, C> {
    #[inline]
    pub(super) fn cell(&self, index: usize) -> Option<&'g C> {
        self.cells.get(index)
    }

    /// Words in a row; none when the page has fewer, which no index of ours asks for.
    #[inline]
    pub(super) fn run(&self, indices: Range<usize>) -> &'g [C] {
        self.cells.get(indices).unwrap_or(&[])
    }

    /// The physical address of the word with this index.
    #[inline]
    pub(super) fn word_at(&self, index: usize) -> PhysAddr {
        PhysAddr::new(self.at.as_u64() + index as u64 * WORD_BYTES)
    }

    /// The word with this index, for an operation that begins at `first` under it.
    pub(super) fn slot(&self, index: usize, level: Level, first: u64) -> Option<Slot<'g, C>> {
        Some(Slot {
            cell: self.cell(index)?,
            word_at: self.word_at(index),
            level,
            first,
        })
    }
}

impl<C> Slot<'_, C> {
    pub(super) fn at(&self) -> Iova {
        Iova::new(self.first)
    }

    pub(super) fn damaged(&self, word: u64) -> TableError {
        TableError::Damaged {
            at: self.at(),
            word,
        }
    }

    pub(super) fn occupied(&self) -> TableError {
        TableError::Occupied { at: self.at() }
    }

    pub(super) fn not_mapped(&self) -> TableError {
        TableError::NotMapped { at: self.at() }
    }
}

impl<F: Format, H: MemoryHandle> Table<F, H> {
    /// The words of the table page at `page`, for as long as the guard protects them.
    #[inline]
    pub(super) fn page<'g>(&'g self, _guard: &'g Guard<'_>, page: PhysAddr) -> Page<'g, CellOf<H>> {
        // SAFETY: callers pass the root or a page named by a link or a tombstone of this table, read
        // under the guard, or a private page. By the invariant of `Table` such a page is a frame that
        // this table owns; it is freed only after it was unlinked or the root was closed, and every
        // guard of before has ended, and the reference cannot outlive the guard.
        let cells = unsafe { Self::cells(&self.memory, page) };
        // SAFETY: a reference is not null. Said again since the compiler forgets it of one that was made from
        // an integer, and then tests every `Option<Page>` for it.
        unsafe { core::hint::assert_unchecked(cells.as_ptr().addr() != 0) };
        Page { cells, at: page }
    }

    /// The words of a table page that no other CPU can reach.
    ///
    /// # Safety
    /// The page is a frame of this table that was not given back: one never linked, or one that was
    /// unlinked, or whose table was closed, before all guards of that time ended.
    pub(super) unsafe fn page_alone(&self, page: PhysAddr) -> Page<'_, CellOf<H>> {
        // SAFETY: by the caller's promise the page is a frame that this table owns.
        let cells = unsafe { Self::cells(&self.memory, page) };
        Page { cells, at: page }
    }

    /// The words of a table, or none where the platform cannot reach all of its frames at once: such a table was
    /// never made.
    ///
    /// # Safety
    /// As for [`PhysMemory::cells`], for each frame of the table.
    #[inline(always)]
    unsafe fn cells(memory: &H::Target, page: PhysAddr) -> &[CellOf<H>] {
        if Self::TABLE_FRAMES.get() == 1 {
            // SAFETY: the caller's promise is the same.
            return unsafe { memory.cells(page) };
        }
        // SAFETY: the caller's promise is the same.
        unsafe { memory.cells_of(page, Self::TABLE_FRAMES) }.unwrap_or(&[])
    }

    /// Whether addresses stand in words as they are.
    pub(super) const IN_PLACE: bool = F::CARRY_BITS == u64::BITS;

    #[inline]
    pub(super) fn memory(&self) -> &H::Target {
        &self.memory
    }

    /// Log2 of the bytes that one word of a table of `level` spans.
    #[inline]
    pub(super) const fn shift(level: Level) -> u32 {
        F::PAGE_SHIFT + F::INDEX_BITS * (level.number() as u32 - 1)
    }

    /// The address bits that such tables do not translate.
    pub(super) fn beyond(geometry: &Geometry) -> u64 {
        let bits = Self::bits(geometry.root, geometry.root_tables);
        u64::MAX.checked_shl(bits).unwrap_or(0)
    }

    /// The address bits that a leaf of level 3 must not have, and the lowest one only where there are none.
    pub(super) fn beside_huge(largest_leaf: Level) -> u64 {
        let huge = Self::level::<3>();
        match largest_leaf >= huge {
            true => (Self::span(huge) - 1) & !1,
            false => u64::MAX,
        }
    }

    /// Bytes that one word of a table of `level` spans.
    #[inline]
    pub(super) const fn span(level: Level) -> u64 {
        1 << Self::shift(level)
    }

    /// The index of the word for `at` in a table of `level`.
    #[inline]
    pub(super) const fn index(level: Level, at: u64) -> usize {
        // The mask leaves `INDEX_BITS` bits, which fit any `usize`.
        ((at >> Self::shift(level)) & ((1 << F::INDEX_BITS) - 1)) as usize
    }

    /// The root, if the table translates addresses up to `last`.
    #[inline]
    pub(super) fn root_for(&self, last: Iova) -> Result<RootPointer, TableError> {
        let root = self.root().ok_or(TableError::Ended)?;
        let bits = Self::bits(root.level, root.tables);
        if last.as_u64() >> bits != 0 {
            return Err(TableError::TooWide { last, bits });
        }
        Ok(root)
    }

    /// The table of level `TARGET` that `at` goes through, if the table translates it and every word on the
    /// way is a link as [`follow`](Self::follow) says. The unrolled walk that all fast paths share.
    /// Without `CHECK` callers know that the table translates it.
    #[inline(always)]
    pub(super) fn descend<'g, const TARGET: u8, const CHECK: bool, const PLAIN: bool>(
        &'g self,
        guard: &'g Guard<'_>,
        at: u64,
        link: (u64, u64),
    ) -> Option<Page<'g, CellOf<H>>> {
        // ORDERING: Acquire pairs with the store that made the table reachable.
        let root = self.root.load(Ordering::Acquire);
        if CHECK && at & self.beyond != 0 {
            return None;
        }
        // The page's low bits are zero, so the level stands in the word's own.
        let levels = root & u64::from(Level::MASK);
        let mut page;
        macro_rules! step {
            ($level:literal) => {
                if $level > TARGET {
                    const LEVEL: Level = match Level::new($level) {
                        Some(level) => level,
                        None => Level::LEAF,
                    };
                    let cells = self.page(guard, page);
                    // ORDERING: Acquire: behind a link the words of its table are seen.
                    let word = cells
                        .cell(Self::index(LEVEL, at))?
                        .load(Fault::WalkRelaxed.weakens(Ordering::Acquire));
                    page = self.follow::<PLAIN>(word, link)?;
                }
            };
        }
        // Two depths inline: with more of them the choice becomes a jump through a table, which costs as
        // much as two steps. A table that has ended has depth 0.
        if levels == 4 {
            page = PhysAddr::new(root - 4 + Self::root_offset(Self::level::<4>(), at));
            step!(4);
        } else if levels == 3 {
            page = PhysAddr::new(root - 3 + Self::root_offset(Self::level::<3>(), at));
        } else {
            let top = PhysAddr::new(root - levels);
            let page = self.descend_other::<TARGET>(guard, top, levels, at, link)?;
            return Some(self.page(guard, page));
        }
        step!(3);
        step!(2);
        (TARGET <= 3 || levels == 4).then(|| self.page(guard, page))
    }

    /// The table that `word` links, if it has `want` under `mask`, which must make it a link.
    ///
    /// With `PLAIN`, which only plain tables are walked with, all that is no address is compared: no walker sets a bit in
    /// their links, and nobody notes that one was written back. What is left is the address, without a mask. A link of
    /// theirs that has anything beside takes the long way, as one that is frozen.
    #[inline(always)]
    fn follow<const PLAIN: bool>(&self, word: u64, (mask, want): (u64, u64)) -> Option<PhysAddr> {
        if Fault::ShortWayComparesNothing.is_on() {
            return (word != 0).then(|| F::address(word));
        }
        let mask = match Fault::ShortWaySkipsMarks.is_on() {
            true => mask & !F::FROZEN,
            false => mask,
        };
        if PLAIN {
            const { assert!(F::LINK & F::ADDRESS == 0 && F::LINK & !F::LINK_MASK == 0) };
            let is_link = word & self.beside_address == F::LINK;
            return is_link.then(|| match Self::IN_PLACE {
                true => PhysAddr::new(word - F::LINK),
                false => F::address(word),
            });
        }
        (word & mask == want).then(|| match Self::IN_PLACE {
            true => PhysAddr::new(word & self.address),
            false => F::address(word),
        })
    }

    /// The same for tables of other depths. Gives the page's address: a value of two words more would go
    /// through memory, on the way of those who never come here too.
    #[inline(never)]
    fn descend_other<const TARGET: u8>(
        &self,
        guard: &Guard<'_>,
        root: PhysAddr,
        levels: u64,
        at: u64,
        (mask, want): (u64, u64),
    ) -> Option<PhysAddr> {
        let mut level = Level::new(u8::try_from(levels).ok()?)?;
        let mut page = PhysAddr::new(root.as_u64() + Self::root_offset(level, at));
        while level.number() > TARGET {
            let cells = self.page(guard, page);
            // ORDERING: Acquire, as in `descend`.
            let word = cells
                .cell(Self::index(level, at))?
                .load(Fault::WalkRelaxed.weakens(Ordering::Acquire));
            if word & mask != want {
                return None;
            }
            page = F::address(word);
            level = level.below()?;
        }
        (level.number() == TARGET).then_some(page)
    }

    /// What a word has to look like for those to go through it who are no mappers: a link.
    #[inline]
    pub(super) const fn any_link() -> (u64, u64) {
        (F::LINK_MASK & !F::FROZEN, F::LINK)
    }

    /// How `first` to `last`, which one word above covers, lie over a table of `level`.
    pub(super) fn cover(level: Level, first: u64, last: u64) -> Cover {
        let mask = Self::span(level) - 1;
        let (from, to) = (Self::index(level, first), Self::index(level, last));
        let (cut_below, cut_above) = (first & mask != 0, last & mask != mask);
        let head = (cut_below || (from == to && cut_above)).then_some(Part {
            index: from,
            first,
            last: last.min(first | mask),
        });
        let tail = (cut_above && (from != to)).then_some(Part {
            index: to,
            first: last & !mask,
            last,
        });
        let start = from + usize::from(head.is_some());
        let end = (to + 1) - usize::from(tail.is_some());
        Cover {
            head,
            whole: start..end.max(start),
            base: if head.is_some() {
                (first | mask).wrapping_add(1)
            } else {
                first
            },
            tail,
        }
    }

    /// The table below a slot for a mapper, or `None` when the slot is empty. Thaws and relinks what a
    /// reclaimer left there (rule 6), and writes a link back that is not known to be in memory (rule 11).
    pub(super) fn open(&self, slot: Slot<'_, CellOf<H>>) -> Result<Option<PhysAddr>, TableError> {
        let (mask, want) = self.clear_link;
        // ORDERING: Acquire pairs with the install: behind a link its table's words are seen.
        let mut word = slot.cell.load(Ordering::Acquire);
        loop {
            let upper = slot.level.number() > 2 && Fault::SkipUpperThaw.is_on();
            let mask = if upper { mask & !F::FROZEN } else { mask };
            if slot.level != Level::LEAF && word & mask == want {
                return Ok(Some(F::address(word)));
            }
            let (child, link) = match self.format.decode(word, slot.level) {
                Entry::Empty => return Ok(None),
                Entry::Table { page, frozen, .. } => (
                    page,
                    if frozen && !Fault::SkipThaw.is_on() {
                        word & !F::FROZEN
                    } else {
                        word
                    },
                ),
                Entry::Tombstone { .. } if Fault::SkipRelink.is_on() => {
                    // ORDERING: as below; the deliberate fault is to take the place of the tombstone.
                    let _ =
                        slot.cell
                            .compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire);
                    return Ok(None);
                }
                Entry::Tombstone { page } if Fault::RelinkClaimsWrittenBack.is_on() => {
                    (page, self.format.table(page) | F::WRITTEN_BACK)
                }
                Entry::Tombstone { page } => (page, self.format.table(page)),
                Entry::Leaf { .. } | Entry::Pending { .. } | Entry::PendingTable { .. } => {
                    return Err(slot.occupied());
                }
                Entry::Unknown(word) => return Err(slot.damaged(word)),
            };
            if link != word && Fault::ThawByStore.is_on() {
                // ORDERING: Release; the deliberate fault is that the word may have changed.
                slot.cell.store(link, Ordering::Release);
            } else if link != word {
                // ORDERING: AcqRel: the reclaimer that finds this word changed has lost, whatever it
                // did before; Acquire on failure, to look again.
                if let Err(found) =
                    slot.cell
                        .compare_exchange(word, link, Ordering::AcqRel, Ordering::Acquire)
                {
                    word = found;
                    continue;
                }
            }
            if !self.geometry.coherent && link & F::WRITTEN_BACK == 0 {
                self.write_link_back(slot.cell, slot.word_at);
            }
            return Ok(Some(child));
        }
    }

    /// The table below a slot for everybody else: `None` unless the slot links one.
    #[inline]
    pub(super) fn peek(&self, cell: &CellOf<H>) -> Option<PhysAddr> {
        // ORDERING: Acquire, as in `open`.
        let word = cell.load(Ordering::Acquire);
        let (mask, want) = Self::any_link();
        (word & mask == want).then(|| F::address(word))
    }

    /// The word of a table of `level` for `at`, by links alone.
    pub(super) fn find<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        root: RootPointer,
        at: u64,
        level: Level,
    ) -> Option<Slot<'g, CellOf<H>>> {
        let mut table = Self::top(root, at);
        loop {
            let page = self.page(guard, table.page);
            let slot = page.slot(Self::index(table.level, at), table.level, at)?;
            if table.level <= level {
                return (table.level == level).then_some(slot);
            }
            table = TableAt {
                page: self.peek(slot.cell)?,
                level: table.level.below()?,
            };
        }
    }

    /// Brings a link to memory before anything that depends on it, and notes that in the link.
    pub(super) fn write_link_back(&self, cell: &CellOf<H>, at: PhysAddr) {
        if !Fault::SkipLinkWriteBack.is_on() {
            self.memory.write_back(at, WORD_BYTES);
        }
        self.memory.walker_fence();
        // ORDERING: Release: who sees the bit may rely on the write-back that came before it. On a word
        // that is no link any more the bit would be damage, so it is added by exchange.
        let mut word = cell.load(Ordering::Relaxed);
        let (mask, want) = Self::any_link();
        while word & mask == want && word & F::WRITTEN_BACK == 0 {
            // ORDERING: Release, as above; Relaxed on failure, the word is only looked at again.
            match cell.compare_exchange(
                word,
                word | F::WRITTEN_BACK,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(found) => word = found,
            }
        }
    }

    /// Writes words in a row back, where walkers do not snoop.
    #[inline]
    pub(super) fn write_words_back(&self, from: PhysAddr, words: usize) {
        if !self.geometry.coherent && words != 0 {
            self.memory.write_back(from, words as u64 * WORD_BYTES);
        }
    }

    /// The leaf that `at` goes through.
    #[inline(always)]
    pub(super) fn lookup(&self, guard: &Guard<'_>, at: Iova) -> Option<Translation> {
        let first = at.as_u64();
        // Links of plain tables are compared whole, but for a frozen one, which the long way follows.
        let page = match (first | 1) & self.beyond_plain == 0 {
            true => self.descend::<1, false, true>(guard, first, Self::any_link()),
            false => self.descend::<1, true, false>(guard, first, Self::any_link()),
        };
        if let Some(page) = page {
            // ORDERING: Acquire pairs with the leaf's store.
            let word = page
                .cell(Self::index(Level::LEAF, first))?
                .load(Ordering::Acquire);
            return self.translation(word, Level::LEAF, first);
        }
        self.lookup_large(guard, at)
    }

    #[inline(never)]
    fn lookup_large(&self, guard: &Guard<'_>, at: Iova) -> Option<Translation> {
        let root = self.root_for(at).ok()?;
        let at = at.as_u64();
        let mut table = Self::top(root, at);
        loop {
            let page = self.page(guard, table.page);
            // ORDERING: Acquire pairs with the installs and the leaf's store.
            let word = page
                .cell(Self::index(table.level, at))?
                .load(Ordering::Acquire);
            match self.format.decode(word, table.level) {
                Entry::Table { page, .. } => {
                    table = TableAt {
                        page,
                        level: table.level.below()?,
                    };
                }
                _ => return self.translation(word, table.level, at),
            }
        }
    }

    #[inline(always)]
    fn translation(&self, word: u64, level: Level, at: u64) -> Option<Translation> {
        match self.format.decode(word, level) {
            Entry::Leaf { to, perms } => Some(Translation {
                // The page is aligned to its size.
                to: PhysAddr::new(to.as_u64() | (at & (Self::span(level) - 1))),
                perms,
                level,
            }),
            _ => None,
        }
    }
}

/// How many words at the front of `cells` are empty.
#[inline]
pub(super) fn leading_empty<C: EntryCell>(cells: &[C]) -> usize {
    let lines = cells.chunks_exact(LINE);
    let mut clear = 0;
    for line in lines {
        let together = line.iter().fold(0, |bits, cell| {
            // ORDERING: Acquire: who emptied the word, by a receipt, has done so before.
            bits | cell.load(Ordering::Acquire)
        });
        if together != 0 {
            break;
        }
        clear += line.len();
    }
    // ORDERING: Acquire, as above.
    let rest = cells.get(clear..).unwrap_or(&[]).iter();
    clear
        + rest
            .take_while(|cell| cell.load(Ordering::Acquire) == 0)
            .count()
}

/// Writes `first`, `first + step`, ... to words in a row.
#[inline]
pub(super) fn store_run<C: EntryCell>(cells: &[C], first: u64, step: u64) {
    // Within a line each word is made of the line's first, not of the one before: a chain of sums would
    // allow one store per cycle.
    let nth = |word: u64, nth: usize| word.wrapping_add(step.wrapping_mul(nth as u64));
    let put = |cell: &C, word: u64| {
        // ORDERING: Release: what the page holds comes before the device, or a CPU, can reach it. In a
        // private table the publishing exchange says it again; the store costs the same.
        cell.store(word, Ordering::Release);
    };
    let mut word = first;
    let mut lines = cells.chunks_exact(LINE);
    for line in &mut lines {
        for (index, cell) in line.iter().enumerate() {
            put(cell, nth(word, index));
        }
        word = nth(word, LINE);
    }
    for (index, cell) in lines.remainder().iter().enumerate() {
        put(cell, nth(word, index));
    }
}
