//! What is free and how it goes out and comes back, without any cache.

use hv_core::{Iova, IovaRange, OutOfMemory, PageCount, PageSize};

use super::tree::{Ask, Hole, Tree};
use super::{IovaAlign, SpaceError};

/// The free ranges of one address space.
///
/// # Invariants
/// 1. No two free ranges touch, so each ends where a taken range, a reserved one or nothing begins: there are at most
///    `edges + out`, as long as ranges come back as they went out.
/// 2. There is room for half of `holes + edges + out` free ranges at least, so with 1 for all that there are. A range
///    that comes back adds one free range at most and takes itself off `out`, which leaves the sum: so it finds room,
///    and so does every later one, without an allocation.
///
/// Ranges that come back in more pieces than they went out break the first. They find whatever room there is, or memory
/// for more, or go back to whoever has them.
pub(super) struct Space {
    holes: Tree,
    whole: Hole,
    /// The end of the space, and reserved ranges: where a free range can end besides.
    edges: usize,
    /// Ranges that are out.
    out: usize,
    free_pages: u64,
}

impl Space {
    /// All of `whole` but `reserved`.
    pub(super) fn new(whole: IovaRange, reserved: &[IovaRange]) -> Result<Self, OutOfMemory> {
        let whole = pages_of(&whole);
        let mut space = Self {
            holes: Tree::new(),
            whole,
            edges: reserved.len().saturating_add(1),
            out: 0,
            free_pages: whole.pages(),
        };
        space.holes.reserve(space.edges)?;
        space.holes.insert(whole);
        for range in reserved {
            let range = pages_of(range);
            // From above: what overlaps the range starts below its end, and may start below it too.
            while let (Some(hole), _) = space.holes.around(range.end - 1)
                && hole.end > range.first
            {
                let cut = Hole {
                    first: hole.first.max(range.first),
                    end: hole.end.min(range.end),
                };
                space.cut(hole, cut);
            }
        }
        Ok(space)
    }

    /// Takes exactly `wanted`.
    pub(super) fn reserve(&mut self, wanted: IovaRange) -> Result<IovaRange, SpaceError> {
        let taken = pages_of(&wanted);
        let (hole, _) = self.holes.around(taken.first);
        let Some(hole) = hole.filter(|hole| hole.covers(&taken)) else {
            return Err(SpaceError::NotFree { wanted });
        };
        self.make_room()?;
        self.cut(hole, taken);
        self.out += 1;
        Ok(wanted)
    }

    /// Takes the highest aligned range that ends at `limit` at most.
    pub(super) fn allocate(
        &mut self,
        pages: PageCount,
        align: IovaAlign,
        limit: Iova,
    ) -> Result<IovaRange, SpaceError> {
        let full = SpaceError::Full {
            pages,
            align,
            limit,
        };
        let ask = Ask::new(pages.get(), align);
        let found = self.holes.highest(&ask, pages_up_to(limit));
        let (taken, hole) = found.ok_or(full)?;
        let range = range_at(taken.first, pages).ok_or(full)?;
        self.make_room()?;
        self.cut(hole, taken);
        self.out += 1;
        Ok(range)
    }

    /// Makes `range`, which was taken, free again, joined with its neighbours.
    pub(super) fn release(&mut self, range: IovaRange) -> Result<(), SpaceError> {
        let back = pages_of(&range);
        let (below, above) = self.holes.around(back.first);
        let is_taken = self.whole.covers(&back)
            && below.is_none_or(|below| below.end <= back.first)
            && above.is_none_or(|above| above.first >= back.end);
        if !is_taken {
            return Err(SpaceError::NotFree { wanted: range });
        }
        let below = below.filter(|below| below.end == back.first);
        let above = above.filter(|above| above.first == back.end);
        let joined = Hole {
            first: below.map_or(back.first, |below| below.first),
            end: above.map_or(back.end, |above| above.end),
        };
        match (below, above) {
            (Some(below), above) => {
                if let Some(above) = above {
                    self.holes.remove(above.first);
                }
                self.holes.change(below.first, joined);
            }
            (None, Some(above)) => self.holes.change(above.first, joined),
            (None, None) => {
                if !self.holes.insert(joined) {
                    // More pieces came back than went out.
                    self.holes.reserve(self.holes.count() + 1)?;
                    self.holes.insert(joined);
                }
            }
        }
        // INVARIANT: 2, one range less is out for the one free range that there may be more.
        self.out = self.out.saturating_sub(1);
        self.free_pages += back.pages();
        Ok(())
    }

    /// How many pages are free.
    pub(super) fn free_pages(&self) -> u64 {
        self.free_pages
    }

    /// Room, before one more range goes out and perhaps cuts a free range in two.
    fn make_room(&mut self) -> Result<(), OutOfMemory> {
        let ranges = self.holes.count() + self.edges + self.out + 2;
        // INVARIANT: 2, for the range that goes out next.
        let room = ranges.div_ceil(2).max(self.holes.count() + 1);
        if self.holes.capacity() < room {
            self.holes.reserve(room)?;
        }
        Ok(())
    }

    /// Takes `cut` out of the free range that it is part of. One free range becomes two at most; there is room.
    fn cut(&mut self, hole: Hole, cut: Hole) {
        let below = Hole {
            end: cut.first,
            ..hole
        };
        let above = Hole {
            first: cut.end,
            ..hole
        };
        match (below.pages(), above.pages()) {
            (0, 0) => self.holes.remove(hole.first),
            (0, _) => self.holes.change(hole.first, above),
            (_, rest) => {
                self.holes.change(hole.first, below);
                if rest != 0 {
                    self.holes.insert(above);
                }
            }
        }
        self.free_pages -= cut.pages();
    }
}

/// A range in pages.
#[inline]
pub(super) fn pages_of(range: &IovaRange) -> Hole {
    let first = range.start().as_u64() / PageSize::Size4K.bytes();
    let end = first + range.pages().get();
    Hole { first, end }
}

/// The range of so many pages from this page on.
#[inline]
pub(super) fn range_at(page: u64, pages: PageCount) -> Option<IovaRange> {
    let start = page.checked_mul(PageSize::Size4K.bytes())?;
    IovaRange::new(Iova::new(start), pages).ok()
}

/// How many pages end at `limit` at most.
#[inline]
pub(super) fn pages_up_to(limit: Iova) -> u64 {
    let page = PageSize::Size4K.bytes();
    let is_last = limit.as_u64() % page == page - 1;
    limit.as_u64() / page + u64::from(is_last)
}

#[cfg(all(test, not(hv_loom)))]
mod tests {
    use super::*;

    const TOP: Iova = Iova::new(u64::MAX);

    fn pages(count: u64) -> PageCount {
        PageCount::new(count).unwrap()
    }

    fn range(page: u64, count: u64) -> IovaRange {
        range_at(page, pages(count)).unwrap()
    }

    fn hole(first: u64, end: u64) -> Hole {
        Hole { first, end }
    }

    #[test]
    fn reserved_ranges_are_never_given() {
        let mut space = Space::new(range(0, 100), &[range(10, 5)]).unwrap();
        assert_eq!(space.free_pages(), 95);
        assert!(space.reserve(range(12, 1)).is_err());
        assert!(space.reserve(range(8, 4)).is_err());
        let mut taken = 0;
        while let Ok(one) = space.allocate(PageCount::ONE, IovaAlign::PAGE, TOP) {
            assert!(!one.overlaps(&range(10, 5)) && one.start() != Iova::new(0));
            taken += 1;
        }
        assert_eq!(taken, 94);
    }

    #[test]
    fn reserved_ranges_may_overlap_and_reach_out() {
        let reserved = [
            range(90, 40),
            range(5, 10),
            range(0, 1),
            range(12, 8),
            range(6, 2),
        ];
        let space = Space::new(range(0, 100), &reserved).unwrap();
        assert_eq!(space.holes.checked(), [hole(1, 5), hole(20, 90)]);
        assert_eq!(space.free_pages(), 74);
    }

    #[test]
    fn release_merges_with_both_neighbours() {
        let mut space = Space::new(range(0, 16), &[]).unwrap();
        for page in 4..8 {
            space.reserve(range(page, 1)).unwrap();
        }
        for page in [5, 7, 6, 4] {
            space.release(range(page, 1)).unwrap();
        }
        assert_eq!(space.holes.checked(), [hole(0, 16)]);
        assert!(space.release(range(3, 1)).is_err());
        assert!(space.release(range(16, 1)).is_err(), "never was in it");
    }

    #[test]
    fn allocation_is_aligned_and_from_above() {
        let mut space = Space::new(range(0, 4096), &[range(4000, 96)]).unwrap();
        let mut take = |count, align, limit| {
            let taken = space.allocate(pages(count), align, Iova::new(limit));
            taken.map(|taken| pages_of(&taken).first)
        };
        let large = PageSize::Size2M.into();
        assert_eq!(take(512, large, u64::MAX), Ok(3072));
        assert_eq!(take(512, large, (2048 << 12) - 1), Ok(1536));
        assert_eq!(take(1, large, (2049 << 12) - 1), Ok(2048));
        assert_eq!(take(1, large, (2049 << 12) - 2), Ok(1024));
        assert_eq!(take(1, IovaAlign::PAGE, u64::MAX), Ok(3999));
        assert_eq!(take(1, IovaAlign::PAGE, 0x1fff), Ok(1));
        for (count, limit) in [(4096, u64::MAX), (1, 0x1fff), (1, 0xfff), (1, 0)] {
            let (pages, align, limit) = (pages(count), IovaAlign::PAGE, Iova::new(limit));
            let full = SpaceError::Full {
                pages,
                align,
                limit,
            };
            assert_eq!(take(count, align, limit.as_u64()), Err(full));
        }
    }

    #[test]
    fn lengths_that_no_32_bits_hold_are_found() {
        let all = 1 << 45;
        let mut space = Space::new(range(0, all), &[]).unwrap();
        let large = PageSize::Size1G.into();
        let taken = space.allocate(pages((1 << 44) + 1), large, TOP).unwrap();
        assert!(taken.start().is_aligned(PageSize::Size1G));
        assert_eq!(space.allocate(pages(1 << 44), large, TOP).ok(), None);
        let half = space.allocate(pages(u64::from(u32::MAX)), IovaAlign::PAGE, TOP);
        space.release(half.unwrap()).unwrap();
        space.release(taken).unwrap();
        assert_eq!(space.holes.checked(), [hole(0, all)]);
    }

    /// What comes back whole never asks for memory, in the order that leaves the most free ranges.
    #[test]
    fn room_for_what_comes_back_is_there() {
        let mut space = Space::new(range(0, 2048), &[]).unwrap();
        let taken: Vec<_> =
            core::iter::from_fn(|| space.allocate(PageCount::ONE, IovaAlign::PAGE, TOP).ok())
                .collect();
        let room = space.holes.capacity();
        assert!(2 * room >= taken.len());
        let (odd, even): (Vec<IovaRange>, _) = taken
            .iter()
            .partition(|range| pages_of(range).first % 2 == 1);
        for range in odd.into_iter().chain(even) {
            space.release(range).unwrap();
            assert!(space.holes.count() <= room);
        }
        assert_eq!(space.holes.capacity(), room);
        assert_eq!(space.holes.checked(), [hole(0, 2048)]);
    }

    /// The most nodes that one call looks at while `holes` free ranges come and go.
    fn most_looks(holes: u64) -> u64 {
        // Six free pages from an odd page on, then two that are taken: nothing for six pages at an even one.
        let mut space = Space::new(range(0, 8 * holes + 1), &[]).unwrap();
        let mut most = 0;
        let mut counted = |space: &mut Space, act: &mut dyn FnMut(&mut Space)| {
            let before = space.holes.looks();
            act(space);
            most = most.max(space.holes.looks() - before);
        };
        for at in 0..holes {
            counted(&mut space, &mut |space| {
                space.reserve(range(8 * at + 7, 2)).unwrap();
            });
        }
        space.holes.checked();
        let two = IovaAlign::natural(pages(2));
        for limit in (0..holes).step_by(7).map(|at| Iova::new((8 * at) << 12)) {
            for (count, align) in [(6, two), (7, IovaAlign::PAGE), (1, IovaAlign::LARGEST)] {
                counted(&mut space, &mut |space| {
                    let found = space.allocate(pages(count), align, limit);
                    assert!(matches!(found, Err(SpaceError::Full { .. })), "{found:?}");
                });
            }
            counted(&mut space, &mut |space| {
                if let Ok(taken) = space.allocate(pages(4), two, limit) {
                    space.release(taken).unwrap();
                }
            });
        }
        for at in (0..holes)
            .filter(|at| at % 3 != 1)
            .chain((0..holes).filter(|at| at % 3 == 1))
        {
            counted(&mut space, &mut |space| {
                space.release(range(8 * at + 7, 2)).unwrap();
            });
        }
        assert_eq!(space.holes.checked(), [hole(0, 8 * holes + 1)]);
        most
    }

    #[test]
    fn the_worst_case_grows_with_the_logarithm() {
        for levels in [8, 11, 14] {
            let most = most_looks(1 << levels);
            assert!(
                most <= 24 * (levels + 1),
                "{most} nodes for 2^{levels} free ranges"
            );
        }
    }
}
