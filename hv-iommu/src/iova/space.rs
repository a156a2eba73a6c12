//! Which ranges of a domain's address space are free: the plain allocator.

use alloc::vec::Vec;

use super::{IovaAlign, SpaceError};
use hv_core::{Iova, IovaRange, OutOfMemory, PageCount, PageSize};

/// The free ranges of one address space.
///
/// # Invariants
/// `free` is sorted by address; its ranges neither overlap nor touch.
pub(crate) struct IovaSpace {
    free: Vec<IovaRange>,
}

impl IovaSpace {
    /// All of `whole` but `reserved`.
    pub(crate) fn new(whole: IovaRange, reserved: &[IovaRange]) -> Result<Self, OutOfMemory> {
        let mut space = Self { free: Vec::new() };
        space.make_room(1 + reserved.len())?;
        space.free.push(whole);
        for range in reserved {
            space.cut_out(*range)?;
        }
        Ok(space)
    }

    /// Takes exactly `wanted`.
    pub(crate) fn reserve(&mut self, wanted: IovaRange) -> Result<IovaRange, SpaceError> {
        if !self.free.iter().any(|free| free.covers(&wanted)) {
            return Err(SpaceError::NotFree { wanted });
        }
        self.cut_out(wanted)?;
        Ok(wanted)
    }

    /// Takes the lowest aligned range that is long enough and ends at `limit` at most; never the page at
    /// address 0, which drivers take for "no address".
    pub(crate) fn allocate(
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
        let found = self.free.iter().find_map(|free| {
            let low = free.start().as_u64().max(PageSize::Size4K.bytes());
            let start = low.checked_next_multiple_of(align.bytes())?;
            let range = IovaRange::new(Iova::new(start), pages).ok()?;
            (free.covers(&range) && range.last() <= limit).then_some(range)
        });
        let range = found.ok_or(full)?;
        self.cut_out(range)?;
        Ok(range)
    }

    /// Makes `range`, which was taken, free again.
    pub(crate) fn release(&mut self, range: IovaRange) -> Result<(), SpaceError> {
        if self.free.iter().any(|free| free.overlaps(&range)) {
            return Err(SpaceError::NotFree { wanted: range });
        }
        self.make_room(1)?;
        let index = self
            .free
            .partition_point(|free| free.start() < range.start());
        let mut whole = range;
        let after = self.free.get(index).copied();
        if let Some(joined) = after.and_then(|after| whole.join(&after)) {
            whole = joined;
            self.free.remove(index);
        }
        let before = index
            .checked_sub(1)
            .and_then(|before| self.free.get_mut(before));
        match before {
            Some(before) if before.join(&whole).is_some() => {
                if let Some(joined) = before.join(&whole) {
                    *before = joined;
                }
            }
            _ => self.free.insert(index, whole),
        }
        Ok(())
    }

    /// How many pages are free.
    pub(crate) fn free_pages(&self) -> u64 {
        self.free.iter().map(|range| range.pages().get()).sum()
    }

    /// Removes `range` from the free ranges that it overlaps. Room first, so that it is all or
    /// nothing: one free range becomes two at most.
    fn cut_out(&mut self, range: IovaRange) -> Result<(), OutOfMemory> {
        self.make_room(1)?;
        let mut index = 0;
        while let Some(free) = self.free.get(index).copied() {
            if !free.overlaps(&range) {
                index += 1;
                continue;
            }
            self.free.remove(index);
            for piece in [before(free, range), after(free, range)]
                .into_iter()
                .flatten()
            {
                self.free.insert(index, piece);
                index += 1;
            }
        }
        Ok(())
    }

    fn make_room(&mut self, ranges: usize) -> Result<(), OutOfMemory> {
        self.free.try_reserve(ranges).map_err(|_| OutOfMemory {
            bytes: ranges * size_of::<IovaRange>(),
        })
    }
}

/// The part of `free` below `cut`.
fn before(free: IovaRange, cut: IovaRange) -> Option<IovaRange> {
    let bytes = cut.start().as_u64().checked_sub(free.start().as_u64())?;
    let pages = PageCount::new(bytes / PageSize::Size4K.bytes())?;
    IovaRange::new(free.start(), pages).ok()
}

/// The part of `free` above `cut`.
fn after(free: IovaRange, cut: IovaRange) -> Option<IovaRange> {
    let bytes = free.last().as_u64().checked_sub(cut.last().as_u64())?;
    let pages = PageCount::new(bytes / PageSize::Size4K.bytes())?;
    let start = cut.last().as_u64().checked_add(1)?;
    IovaRange::new(Iova::new(start), pages).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: Iova = Iova::new(u64::MAX);

    fn range(page: u64, pages: u64) -> IovaRange {
        IovaRange::new(Iova::new(page << 12), PageCount::new(pages).unwrap()).unwrap()
    }

    #[test]
    fn reserved_ranges_are_never_given() {
        let mut space = IovaSpace::new(range(0, 100), &[range(10, 5)]).unwrap();
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
    fn release_merges_with_both_neighbours() {
        let mut space = IovaSpace::new(range(0, 16), &[]).unwrap();
        for page in 4..8 {
            space.reserve(range(page, 1)).unwrap();
        }
        for page in [5, 7, 6, 4] {
            space.release(range(page, 1)).unwrap();
        }
        assert_eq!(space.free, [range(0, 16)]);
        assert!(space.release(range(3, 1)).is_err());
    }

    #[test]
    fn allocation_is_aligned() {
        let mut space = IovaSpace::new(range(0, 4096), &[]).unwrap();
        let large = space
            .allocate(PageCount::new(512).unwrap(), PageSize::Size2M.into(), TOP)
            .unwrap();
        assert_eq!(large, range(512, 512));
        assert!(matches!(
            space.allocate(PageCount::new(4096).unwrap(), IovaAlign::PAGE, TOP),
            Err(SpaceError::Full { .. })
        ));
    }
}
