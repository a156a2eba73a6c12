//! Page-aligned ranges of an address space, checked once when they are made.

use core::fmt;

use thiserror::Error;

use crate::{Gpa, Iova, PageCount, PageSize, PhysAddr};

/// An address of one of the spaces of this crate.
pub trait Address: Copy + Ord + fmt::Display + fmt::Debug {
    /// The address with this byte value.
    fn from_u64(bytes: u64) -> Self;
    /// The byte value.
    fn to_u64(self) -> u64;
}

/// Why a range could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// The start is not a multiple of 4 KiB.
    #[error("range start {start:#x} is not 4 KiB aligned")]
    Unaligned {
        /// The start that was given.
        start: u64,
    },
    /// The range reaches past the last byte of a 64-bit space.
    #[error("range of {pages} pages at {start:#x} passes the end of the address space")]
    Overflow {
        /// The start that was given.
        start: u64,
        /// The length that was given.
        pages: u64,
    },
}

/// A non-empty run of whole 4 KiB pages.
///
/// # Invariants
/// `start` is 4 KiB aligned and the last byte is at most 2^64 - 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRange<A> {
    start: A,
    pages: PageCount,
}

/// A range that devices address.
pub type IovaRange = PageRange<Iova>;
/// A range of host-physical memory.
pub type PhysRange = PageRange<PhysAddr>;
/// A range of guest-physical memory.
pub type GpaRange = PageRange<Gpa>;

impl<A: Address> PageRange<A> {
    /// The range of `pages` pages from `start`.
    ///
    /// # Errors
    /// [`RangeError`] when `start` is not page aligned or the range passes 2^64.
    pub fn new(start: A, pages: PageCount) -> Result<Self, RangeError> {
        let first = start.to_u64();
        if first & (PageSize::Size4K.bytes() - 1) != 0 {
            return Err(RangeError::Unaligned { start: first });
        }
        let last_page = (pages.get() - 1)
            .checked_mul(PageSize::Size4K.bytes())
            .and_then(|offset| first.checked_add(offset));
        if last_page.is_none() {
            return Err(RangeError::Overflow {
                start: first,
                pages: pages.get(),
            });
        }
        // INVARIANT: alignment and end were checked above; the last page of an aligned start
        // that fits as an address fits whole.
        Ok(Self { start, pages })
    }

    /// The first byte.
    pub fn start(&self) -> A {
        self.start
    }

    /// The number of pages.
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// The last byte, inclusive.
    pub fn last(&self) -> A {
        let first = self.start.to_u64();
        A::from_u64(
            first
                + (self.pages.get() - 1) * PageSize::Size4K.bytes()
                + (PageSize::Size4K.bytes() - 1),
        )
    }

    /// The page with this index counted from the start, or `None` past the end.
    pub fn page(&self, index: u64) -> Option<A> {
        (index < self.pages.get())
            .then(|| A::from_u64(self.start.to_u64() + index * PageSize::Size4K.bytes()))
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: A) -> bool {
        (self.start..=self.last()).contains(&address)
    }

    /// Whether all of `other` lies in this range.
    pub fn covers(&self, other: &Self) -> bool {
        self.contains(other.start) && self.contains(other.last())
    }

    /// Whether the two ranges share a page.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }

    /// The first `pages` pages and the rest, or `None` when either part would be empty.
    pub fn split_at(&self, pages: PageCount) -> Option<(Self, Self)> {
        let rest = PageCount::new(self.pages.get().checked_sub(pages.get())?)?;
        let middle = self.page(pages.get())?;
        Some((
            Self {
                start: self.start,
                pages,
            },
            Self {
                start: middle,
                pages: rest,
            },
        ))
    }

    /// The smallest range that covers both.
    pub fn hull(&self, other: &Self) -> Self {
        let start = self.start.min(other.start);
        let last = self.last().max(other.last());
        let bytes = last.to_u64() - start.to_u64();
        // INVARIANT: both ends are those of ranges, so the count is that of whole pages below the end of
        // the space.
        let pages = PageCount::new(bytes / PageSize::Size4K.bytes() + 1);
        Self {
            start,
            pages: pages.unwrap_or(PageCount::ONE),
        }
    }

    /// One range of both, when `next` starts right behind this one.
    pub fn join(&self, next: &Self) -> Option<Self> {
        let end = self.last().to_u64().checked_add(1)?;
        if end != next.start.to_u64() {
            return None;
        }
        Some(Self {
            start: self.start,
            pages: PageCount::new(self.pages.get() + next.pages.get())?,
        })
    }
}

impl<A: Address> fmt::Display for PageRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start, self.last())
    }
}

impl<A: Address> fmt::Debug for PageRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{}", self.start, self.pages.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> IovaRange {
        PageRange::new(Iova::new(start), PageCount::new(pages).unwrap()).unwrap()
    }

    #[test]
    fn edges_of_the_address_space() {
        let last_page = u64::MAX - 0xfff;
        assert_eq!(range(last_page, 1).last(), Iova::new(u64::MAX));
        assert!(matches!(
            IovaRange::new(Iova::new(last_page), PageCount::new(2).unwrap()),
            Err(RangeError::Overflow { pages: 2, .. })
        ));
        assert!(matches!(
            IovaRange::new(Iova::new(0x800), PageCount::ONE),
            Err(RangeError::Unaligned { start: 0x800 })
        ));
        assert_eq!(range(0, 1 << 52).last(), Iova::new(u64::MAX));
    }

    #[test]
    fn split_and_join_are_inverse() {
        let whole = range(0x1000, 5);
        let (left, right) = whole.split_at(PageCount::new(2).unwrap()).unwrap();
        assert_eq!(right.start(), Iova::new(0x3000));
        assert_eq!(left.join(&right), Some(whole));
        assert_eq!(left.hull(&right), whole);
        assert_eq!(right.hull(&range(0x9000, 1)), range(0x3000, 7));
        let all = range(0, 1 << 52);
        assert_eq!(range(0, 1).hull(&range(u64::MAX - 0xfff, 1)), all);
        assert_eq!(right.join(&left), None);
        assert!(whole.split_at(PageCount::new(5).unwrap()).is_none());
    }

    #[test]
    fn overlap_and_cover() {
        assert!(range(0x1000, 2).overlaps(&range(0x2000, 2)));
        assert!(!range(0x1000, 1).overlaps(&range(0x2000, 2)));
        assert!(range(0x1000, 4).covers(&range(0x2000, 2)));
        assert!(!range(0x2000, 2).covers(&range(0x1000, 4)));
    }
}
