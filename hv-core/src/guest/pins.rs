//! Which pages of a run are pinned: counted by range, at the same price for a run of any length.

use alloc::vec::Vec;

use crate::sync::{AtomicU64, Ordering};
use crate::{OutOfMemory, PageSize};

/// Granules that are summed up in a few words, so that a look at a long run need not read all of it.
const BLOCK: u64 = 512;

/// The sums of one block.
struct Block {
    /// Its edges.
    edges: AtomicU64,
    /// Each of its edges as often as there are granules from it to the block's end: the runs that these add to the
    /// granules of the block, together.
    weighed: AtomicU64,
    /// Its parts.
    parts: AtomicU64,
}

/// Who holds pages of one run of memory.
///
/// A pinned run is one more at the granule where it begins and one less at that where it ends: the sum of
/// these edges up to a granule says how many runs hold all of it. So a run of a terabyte costs as many words as
/// one of a granule, and it may come back in other pieces than it went out. What a run holds of a granule in
/// part is counted in pages.
///
/// # Invariants
/// For each granule, pages in `parts` and a granule's worth of pages for each run in the sum of `edges` up to it
/// are, together, the pages that live runs hold of it (all arithmetic wraps; the sums do not). `blocks` has
/// the sums of [`BLOCK`] granules each.
pub(super) struct PinBook {
    /// Log2 of the pages in a granule.
    shift: u32,
    /// How far into its first granule the run begins, in pages.
    skew: u64,
    /// How many pages the run has.
    pages: u64,
    edges: Vec<AtomicU64>,
    blocks: Vec<Block>,
    parts: Vec<AtomicU64>,
}

/// What is pinned of some pages, as far as the book tells.
#[derive(Clone, Copy, Default)]
pub(super) struct Held {
    /// Pins on the granules that have a page of these, in pages.
    pub(super) pages: u64,
    /// One of them is on one of these pages, and not just in the same granule.
    pub(super) beyond_doubt: bool,
}

impl PinBook {
    /// Nothing is pinned of a run of `pages` pages, the first of which has the number `first` in the space in
    /// which granules are aligned.
    pub(super) fn new(first: u64, pages: u64, granule: PageSize) -> Result<Self, OutOfMemory> {
        let shift = granule.shift() - PageSize::Size4K.shift();
        let skew = first & (granule.pages() - 1);
        let granules = (skew + pages).div_ceil(granule.pages());
        // Where granules are pages, no run holds one in part.
        let parts = if shift == 0 { 0 } else { granules };
        // INVARIANT: all zero, and no runs.
        Ok(Self {
            shift,
            skew,
            pages,
            edges: zeroes(granules + 1)?,
            blocks: filled((granules + 1).div_ceil(BLOCK), || Block {
                edges: AtomicU64::new(0),
                weighed: AtomicU64::new(0),
                parts: AtomicU64::new(0),
            })?,
            parts: zeroes(parts)?,
        })
    }

    /// Counts `pages` pages from page `first` of the run as pinned once more.
    pub(super) fn pin(&self, first: u64, pages: u64) {
        self.count(first, pages, 1);
    }

    /// Counts `pages` pages from page `first` of the run as pinned once less.
    pub(super) fn unpin(&self, first: u64, pages: u64) {
        self.count(first, pages, u64::MAX);
    }

    /// How many pins there are on granules that have a page of these. Exact when nobody pins or unpins meanwhile.
    /// Reads a few words for each block, and those of two blocks at most one by one.
    pub(super) fn held(&self, first: u64, pages: u64) -> Held {
        let from = self.skew + first;
        let end = from + pages;
        let (low, high) = (from >> self.shift, end.saturating_sub(1) >> self.shift);
        let block = low / BLOCK;
        let blocks = self.blocks.get(..block as usize).unwrap_or(&[]);
        let before = blocks
            .iter()
            .fold(0, |sum: u64, block| sum.wrapping_add(read(&block.edges)));
        let mut covering = before.wrapping_add(sum(&self.edges, block * BLOCK, low));
        let mut held = Held::default();
        let mut granule = low;
        while granule <= high {
            // A block of which all pages are asked about.
            let last = granule + BLOCK - 1;
            if granule % BLOCK == 0
                && last <= high
                && from <= self.within(granule).0
                && self.within(last).1 <= end
                && let Some(block) = self.blocks.get((granule / BLOCK) as usize)
            {
                let whole = covering.wrapping_mul(BLOCK);
                let whole = whole
                    .wrapping_add(read(&block.weighed))
                    .wrapping_mul(1 << self.shift);
                let sum = whole.wrapping_add(read(&block.parts));
                held.pages = held.pages.wrapping_add(sum);
                held.beyond_doubt |= sum != 0;
                covering = covering.wrapping_add(read(&block.edges));
                granule += BLOCK;
                continue;
            }
            covering = covering.wrapping_add(sum(&self.edges, granule, granule + 1));
            let whole = covering.wrapping_mul(1 << self.shift);
            let part = sum(&self.parts, granule, granule + 1);
            let sum = whole.wrapping_add(part);
            held.pages = held.pages.wrapping_add(sum);
            let (starts, ends) = self.within(granule);
            let inside = from <= starts && ends <= end;
            held.beyond_doubt |= whole != 0 || (inside && sum != 0);
            granule += 1;
        }
        held
    }

    /// The pages of the run in granules that have a page of these: the first one's number, and how many they are.
    pub(super) fn watched(&self, first: u64, pages: u64) -> (u64, u64) {
        let from = self.skew + first;
        let last = from + pages.saturating_sub(1);
        let (start, _) = self.within(from >> self.shift);
        let (_, end) = self.within(last >> self.shift);
        (start - self.skew, end - start)
    }

    /// Where the run's pages in a granule begin and end.
    fn within(&self, granule: u64) -> (u64, u64) {
        let starts = granule << self.shift;
        let ends = starts + (1 << self.shift);
        (starts.max(self.skew), ends.min(self.skew + self.pages))
    }

    /// Counts a run `sign` times, which is 1 or, wrapped, -1.
    fn count(&self, first: u64, pages: u64, sign: u64) {
        let granule = 1_u64 << self.shift;
        let (from, end) = (self.skew + first, self.skew + first + pages);
        let head = from.next_multiple_of(granule).min(end);
        if head > from {
            self.count_part(from >> self.shift, sign.wrapping_mul(head - from));
        }
        let (low, high) = (head >> self.shift, end >> self.shift);
        if high > low {
            let less = sign.wrapping_neg();
            add(&self.edges, low, sign);
            add(&self.edges, high, less);
            let left = |granule: u64| BLOCK - granule % BLOCK;
            if low / BLOCK == high / BLOCK {
                if let Some(block) = self.blocks.get((low / BLOCK) as usize) {
                    add_to(&block.weighed, sign.wrapping_mul(high - low));
                }
            } else {
                for (granule, sign) in [(low, sign), (high, less)] {
                    if let Some(block) = self.blocks.get((granule / BLOCK) as usize) {
                        add_to(&block.edges, sign);
                        add_to(&block.weighed, sign.wrapping_mul(left(granule)));
                    }
                }
            }
        }
        let tail = high << self.shift;
        if end > tail.max(head) {
            self.count_part(high, sign.wrapping_mul(end - tail.max(head)));
        }
    }

    fn count_part(&self, granule: u64, pages: u64) {
        add(&self.parts, granule, pages);
        if let Some(block) = self.blocks.get((granule / BLOCK) as usize) {
            add_to(&block.parts, pages);
        }
    }
}

fn zeroes(count: u64) -> Result<Vec<AtomicU64>, OutOfMemory> {
    filled(count, || AtomicU64::new(0))
}

fn filled<T>(count: u64, zero: impl Fn() -> T) -> Result<Vec<T>, OutOfMemory> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut words = Vec::new();
    words.try_reserve_exact(count).map_err(|_| OutOfMemory {
        bytes: count.saturating_mul(size_of::<T>()),
    })?;
    for _ in 0..count {
        words.push(zero());
    }
    Ok(words)
}

fn add(words: &[AtomicU64], index: u64, value: u64) {
    if let Some(word) = words.get(index as usize) {
        add_to(word, value);
    }
}

fn add_to(word: &AtomicU64, value: u64) {
    // ORDERING: Relaxed, the counts guard nothing but what `&mut GuestMemory` does, and whatever made that
    // borrow exclusive comes after every pin and unpin.
    word.fetch_add(value, Ordering::Relaxed);
}

fn sum(words: &[AtomicU64], from: u64, to: u64) -> u64 {
    let some = words.get(from as usize..to as usize).unwrap_or(&[]);
    some.iter()
        .fold(0, |sum, word| sum.wrapping_add(read(word)))
}

fn read(word: &AtomicU64) -> u64 {
    #[cfg(all(test, not(hv_loom)))]
    tests::READS.with(|reads| reads.set(reads.get() + 1));
    // ORDERING: Relaxed, as in `add_to`.
    word.load(Ordering::Relaxed)
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    /// xorshift64.
    fn next(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Random runs, split and given back in pieces, against a count per page.
    #[test]
    fn runs_that_come_back_in_other_pieces_are_counted_like_pages() {
        for (granule, pages, skew) in [
            (PageSize::Size4K, 1300_u64, 5),
            (PageSize::Size2M, 3 * 512 + 17, 0),
            (PageSize::Size2M, 700, 300),
            (PageSize::Size2M, 9, 511),
        ] {
            let mut state = 0x9e37_79b9_7f4a_7c15;
            let book = PinBook::new(skew, pages, granule).unwrap();
            let mut model = std::vec![0_u64; pages as usize];
            let mut live: Vec<(u64, u64)> = Vec::new();
            let step = granule.pages();
            for round in 0..4000 {
                let start = next(&mut state) % pages;
                let count = 1 + next(&mut state) % (pages - start);
                if next(&mut state).is_multiple_of(2) || live.is_empty() {
                    book.pin(start, count);
                    model[start as usize..(start + count) as usize]
                        .iter_mut()
                        .for_each(|page| *page += 1);
                    live.push((start, count));
                } else {
                    let index = next(&mut state) as usize % live.len();
                    let (start, count) = live.swap_remove(index);
                    let cut = next(&mut state) % count;
                    let (gone, rest) = match next(&mut state) % 2 {
                        0 => ((start, cut), (start + cut, count - cut)),
                        _ => ((start + cut, count - cut), (start, cut)),
                    };
                    live.extend([rest].into_iter().filter(|rest| rest.1 != 0));
                    if gone.1 != 0 {
                        book.unpin(gone.0, gone.1);
                        model[gone.0 as usize..(gone.0 + gone.1) as usize]
                            .iter_mut()
                            .for_each(|page| *page -= 1);
                    }
                }
                let start = next(&mut state) % pages;
                let count = 1 + next(&mut state) % (pages - start);
                let low = ((start + skew) / step * step).saturating_sub(skew);
                let high = ((start + count + skew).div_ceil(step) * step - skew).min(pages);
                let expected = model[low as usize..high as usize].iter().sum::<u64>();
                assert_eq!(
                    book.held(start, count).pages,
                    expected,
                    "{granule}, round {round}"
                );
            }
            for (start, count) in live {
                book.unpin(start, count);
            }
            assert_eq!(book.held(0, pages).pages, 0);
        }
    }

    std::thread_local! {
        /// How many words this thread has read.
        pub(super) static READS: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
    }

    fn reads(act: impl FnOnce() -> u64) -> (u64, u64) {
        READS.with(|reads| reads.set(0));
        let held = act();
        (held, READS.with(core::cell::Cell::get))
    }

    /// A balloon asks, or whoever takes a slot back: a guest of terabytes does not keep a CPU for long.
    #[test]
    fn bc16_a_look_at_a_huge_run_reads_a_few_words_for_each_block() {
        let pages = 1 << 22;
        for (granule, granules) in [(PageSize::Size4K, pages), (PageSize::Size2M, pages / 512)] {
            let book = PinBook::new(0, pages, granule).unwrap();
            let bound = 4 * granules / BLOCK + 4 * BLOCK;
            let (held, looks) = reads(|| book.held(0, pages).pages);
            assert!(held == 0 && looks <= bound, "{looks} reads of {granule}");
            // Pins in the first block and the last, one of them over all.
            book.pin(3, 1);
            book.pin(0, pages);
            book.pin(pages - 5, 2);
            let (held, looks) = reads(|| book.held(0, pages).pages);
            assert!(held == pages + 3 && looks <= bound, "{held}, {looks} reads");
            let (held, looks) = reads(|| book.held(1024, pages - 2048).pages);
            assert!(held == pages - 2048 && looks <= bound, "{held}, {looks}");
            book.unpin(0, 1024);
            book.unpin(1024, pages - 1024);
            assert_eq!(book.held(0, pages).pages, 3);
        }
    }

    /// Runs over several blocks, cut and given back in pieces, against a count per page.
    #[test]
    fn sums_of_blocks_are_those_of_their_pages() {
        let (pages, skew) = (4 * BLOCK + 77, 0);
        let mut state = 0x1234_5678_9abc_def1;
        let book = PinBook::new(skew, pages, PageSize::Size4K).unwrap();
        let mut model = std::vec![0_u64; pages as usize];
        for _ in 0..600 {
            let start = next(&mut state) % pages;
            let count = 1 + next(&mut state) % (pages - start);
            let cut = next(&mut state) % count;
            book.pin(start, count);
            // A part of it stays.
            if cut > 0 {
                book.unpin(start, cut);
            }
            let stays = (start + cut) as usize..(start + count) as usize;
            model[stays].iter_mut().for_each(|page| *page += 1);
            let start = next(&mut state) % pages;
            let count = 1 + next(&mut state) % (pages - start);
            let expected = model[start as usize..(start + count) as usize].iter();
            assert_eq!(book.held(start, count).pages, expected.sum::<u64>());
        }
    }

    #[test]
    fn a_book_of_many_blocks_adds_up() {
        let pages = 5 * BLOCK;
        let book = PinBook::new(0, pages, PageSize::Size4K).unwrap();
        book.pin(100, 4 * BLOCK);
        book.pin(3 * BLOCK, BLOCK);
        assert_eq!(book.held(0, 100).pages, 0);
        assert_eq!(book.held(3 * BLOCK + 7, 1).pages, 2);
        assert_eq!(book.held(4 * BLOCK + 100, BLOCK - 100).pages, 0);
        assert_eq!(book.held(0, pages).pages, 5 * BLOCK);
        book.unpin(100, 4 * BLOCK);
        assert_eq!(book.held(0, pages).pages, BLOCK);
    }
}
