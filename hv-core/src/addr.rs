//! Addresses of the three spaces that an IOMMU joins, page sizes and page counts.

use core::fmt;
use core::num::NonZeroU64;

use crate::range::Address;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this byte value.
            pub const fn new(bytes: u64) -> Self {
                Self(bytes)
            }

            /// The byte value.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// Whether the address is a multiple of `size`.
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.0 & (size.bytes() - 1) == 0
            }

            /// The address rounded down to a multiple of `size`.
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }

            /// The address `bytes` further on, or `None` past 2^64.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }
        }

        impl Address for $name {
            fn from_u64(bytes: u64) -> Self {
                Self(bytes)
            }
            fn to_u64(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A host-physical byte address: what the memory bus sees.
    PhysAddr, "PhysAddr"
}
address! {
    /// An I/O virtual byte address: what a device puts on the bus and the IOMMU translates.
    Iova, "Iova"
}
address! {
    /// A guest-physical byte address. For a passed-through device it is the [`Iova`] too.
    Gpa, "Gpa"
}

impl From<Gpa> for Iova {
    /// A guest drives its device with guest-physical addresses.
    fn from(gpa: Gpa) -> Self {
        Self(gpa.0)
    }
}

/// The sizes of pages that table formats map: those of a granule of 4 KiB (4 KiB, 2 MiB, 1 GiB), which both supported
/// architectures have, of 16 KiB (16 KiB, 32 MiB) and of 64 KiB (64 KiB, 512 MiB, 4 TiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageSize {
    /// 4 KiB.
    Size4K = 12,
    /// 16 KiB.
    Size16K = 14,
    /// 64 KiB.
    Size64K = 16,
    /// 2 MiB.
    Size2M = 21,
    /// 32 MiB.
    Size32M = 25,
    /// 512 MiB.
    Size512M = 29,
    /// 1 GiB.
    Size1G = 30,
    /// 4 TiB.
    Size4T = 42,
}

impl PageSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 8] = [
        Self::Size4K,
        Self::Size16K,
        Self::Size64K,
        Self::Size2M,
        Self::Size32M,
        Self::Size512M,
        Self::Size1G,
        Self::Size4T,
    ];

    /// The largest.
    pub const LARGEST: Self = Self::Size4T;

    /// The size of 2^`shift` bytes, if that is one.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        Some(match shift {
            12 => Self::Size4K,
            14 => Self::Size16K,
            16 => Self::Size64K,
            21 => Self::Size2M,
            25 => Self::Size32M,
            29 => Self::Size512M,
            30 => Self::Size1G,
            42 => Self::Size4T,
            _ => return None,
        })
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Log2 of the size in bytes.
    pub const fn shift(self) -> u32 {
        self as u32
    }

    /// How many 4 KiB pages it holds.
    pub const fn pages(self) -> u64 {
        self.bytes() >> Self::Size4K.shift()
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4K",
            Self::Size16K => "16K",
            Self::Size64K => "64K",
            Self::Size2M => "2M",
            Self::Size32M => "32M",
            Self::Size512M => "512M",
            Self::Size1G => "1G",
            Self::Size4T => "4T",
        })
    }
}

/// A number of 4 KiB pages, at least one and at most 2^52.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(NonZeroU64);

impl PageCount {
    /// One page.
    pub const ONE: Self = Self(NonZeroU64::MIN);

    /// `pages` 4 KiB pages; `None` for zero or more than 2^52, whose bytes no 64-bit space holds.
    pub const fn new(pages: u64) -> Option<Self> {
        if pages > 1 << 52 {
            return None;
        }
        match NonZeroU64::new(pages) {
            Some(pages) => Some(Self(pages)),
            None => None,
        }
    }

    /// The pages that `bytes` bytes need; `None` for zero bytes.
    pub const fn for_bytes(bytes: u64) -> Option<Self> {
        Self::new(bytes.div_ceil(PageSize::Size4K.bytes()))
    }

    /// The pages of one page of `size`.
    pub const fn of(size: PageSize) -> Self {
        match NonZeroU64::new(size.pages()) {
            Some(pages) => Self(pages),
            None => Self::ONE,
        }
    }

    /// The number of 4 KiB pages.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The number of bytes; saturates at 2^64 - 1 for the one count whose bytes are 2^64.
    pub const fn bytes(self) -> u64 {
        self.0.get().saturating_mul(PageSize::Size4K.bytes())
    }
}

impl fmt::Debug for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageCount({})", self.0)
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_counts_refuse_what_no_space_holds() {
        assert_eq!(PageCount::new(0), None);
        assert_eq!(PageCount::new((1 << 52) + 1), None);
        assert_eq!(
            PageCount::new(1 << 52).map(PageCount::bytes),
            Some(u64::MAX)
        );
        assert_eq!(PageCount::for_bytes(4097), PageCount::new(2));
        assert_eq!(PageCount::of(PageSize::Size2M).get(), 512);
    }

    #[test]
    fn sizes_are_what_they_are_called() {
        let table = [
            ("4K", 0x1000),
            ("16K", 0x4000),
            ("64K", 0x1_0000),
            ("2M", 0x20_0000),
            ("32M", 0x200_0000),
            ("512M", 0x2000_0000),
            ("1G", 0x4000_0000),
            ("4T", 0x400_0000_0000),
        ];
        assert_eq!(
            PageSize::ALL.map(|size| (std::format!("{size}"), size.bytes())),
            table.map(|(name, bytes)| (name.into(), bytes))
        );
        assert!(PageSize::ALL.is_sorted());
        for shift in 0..64 {
            let known = PageSize::ALL
                .into_iter()
                .find(|size| size.bytes() == 1 << shift);
            assert_eq!(PageSize::from_shift(shift), known);
        }
    }

    #[test]
    fn alignment_is_by_page_size() {
        let address = Iova::new(0x4020_1000);
        assert!(address.is_aligned(PageSize::Size4K));
        assert!(!address.is_aligned(PageSize::Size2M));
        assert_eq!(address.align_down(PageSize::Size1G), Iova::new(0x4000_0000));
        assert_eq!(Iova::new(u64::MAX).checked_add(1), None);
    }
}
