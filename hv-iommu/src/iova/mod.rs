//! Which addresses of a domain are free, and who gets them.

mod space;

use core::fmt;

use hv_core::{Iova, IovaRange, OutOfMemory, PageCount, PageSize};
use thiserror::Error;

pub(crate) use space::IovaSpace;

/// A power of two that the first address of a range is a multiple of: 4 KiB to 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IovaAlign(u8);

impl IovaAlign {
    /// Any page.
    pub const PAGE: Self = Self(0);
    /// 1 GiB, the largest page of any table.
    pub const LARGEST: Self = Self(18);

    /// The largest power of two that divides the length, up to [`LARGEST`](Self::LARGEST): whoever asks for a whole
    /// number of large pages can map with them.
    pub const fn natural(pages: PageCount) -> Self {
        match pages.get().trailing_zeros() {
            order @ 0..18 => Self(order as u8),
            _ => Self::LARGEST,
        }
    }

    /// Log2 of the number of 4 KiB pages.
    pub const fn order(self) -> u8 {
        self.0
    }

    /// The alignment in bytes.
    pub const fn bytes(self) -> u64 {
        PageSize::Size4K.bytes() << self.0
    }
}

impl From<PageSize> for IovaAlign {
    fn from(size: PageSize) -> Self {
        Self::natural(PageCount::of(size))
    }
}

impl fmt::Display for IovaAlign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes", self.bytes())
    }
}

impl fmt::Debug for IovaAlign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IovaAlign({:#x})", self.bytes())
    }
}

/// Why a range could not be had, or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpaceError {
    /// Part of the range is taken, reserved, or outside the domain's address space.
    #[error("{wanted} is not free in this domain")]
    NotFree {
        /// The range that was asked for.
        wanted: IovaRange,
    },
    /// No free range is long enough.
    #[error("no free range of {pages} aligned to {align} up to {limit}")]
    Full {
        /// The length that was asked for.
        pages: PageCount,
        /// The alignment that was asked for.
        align: IovaAlign,
        /// The last address that would have served.
        limit: Iova,
    },
    /// The list of free ranges cannot grow.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}
