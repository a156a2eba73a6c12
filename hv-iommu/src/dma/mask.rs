//! The addresses that a device can say.

use core::fmt;

use hv_core::{Iova, PageSize};

/// How many address bits a device can put on the bus: its DMA mask.
///
/// # Invariants
/// At least one page is within reach: 12 to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmaMask(u8);

impl DmaMask {
    /// All 64 bits: what the domain's tables translate is the only limit.
    pub const ALL: Self = Self(64);
    /// 32 bits: devices that know nothing of addresses above 4 GiB.
    pub const LOW_4G: Self = Self(32);

    /// A mask of this many bits; `None` below 12, where no page is, and above 64.
    pub const fn new(bits: u8) -> Option<Self> {
        match bits {
            // INVARIANT: checked here.
            12..=64 => Some(Self(bits)),
            _ => None,
        }
    }

    /// The number of bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The highest byte that the device can name.
    pub const fn last(self) -> Iova {
        Iova::new(u64::MAX >> (64 - self.0 as u32))
    }
}

impl Default for DmaMask {
    /// [`ALL`](Self::ALL).
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for DmaMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} address bits", self.0)
    }
}

const _: () = assert!(DmaMask(12).last().as_u64() == PageSize::Size4K.bytes() - 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_ends_where_its_bits_do() {
        assert_eq!(DmaMask::new(11), None);
        assert_eq!(DmaMask::new(65), None);
        assert_eq!(DmaMask::LOW_4G.last(), Iova::new(0xffff_ffff));
        assert_eq!(DmaMask::ALL.last(), Iova::new(u64::MAX));
    }
}
