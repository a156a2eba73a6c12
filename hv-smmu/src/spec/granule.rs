//! Codes that registers, entries and commands share: granules and address sizes.
//!
//! Source: Linux `arm-smmu-v3.h` and `io-pgtable-arm.c`, QEMU `smmuv3-internal.h`.

/// The size of a table and of the smallest page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Granule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl Granule {
    /// Log2 of its bytes.
    pub const fn shift(self) -> u8 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// Its bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The code in TG0 of a context descriptor and S2TG of a stream table entry.
    pub const fn tg0(self) -> u8 {
        match self {
            Self::Size4K => 0,
            Self::Size64K => 1,
            Self::Size16K => 2,
        }
    }

    /// The granule with this TG0 code, or `None` for the reserved one.
    pub const fn from_tg0(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Size4K),
            1 => Some(Self::Size64K),
            2 => Some(Self::Size16K),
            _ => None,
        }
    }

    /// The code in TG1 of a context descriptor.
    pub const fn tg1(self) -> u8 {
        match self {
            Self::Size16K => 1,
            Self::Size4K => 2,
            Self::Size64K => 3,
        }
    }

    /// The code in TG of a range invalidation, where 0 means that there is no range.
    pub const fn command(self) -> u8 {
        match self {
            Self::Size4K => 1,
            Self::Size16K => 2,
            Self::Size64K => 3,
        }
    }

    /// Significant bits of the longest address that descriptors of its tables tell, and that they translate. Those of 64 KiB
    /// have 52 bits. The others have 48: 52 take other descriptors, with IDR5.DS (FEAT_LPA2: address bits 51:50 in 9:8, where
    /// SH is), which are not used (IHI 0070, 3.4, 5.2 S2PS and S2TTB, 5.4 IPS and TTB0; Linux `io-pgtable-arm.c`, which has
    /// 48 bits for both too).
    pub const fn address_bits(self) -> u8 {
        match self {
            Self::Size4K | Self::Size16K => 48,
            Self::Size64K => 52,
        }
    }

    /// Log2 of the bytes that a leaf at `level` (1, 2 or 3) maps; `None` where that level has none. 64 KiB has leaves
    /// at level 1 with 52-bit addresses only (Linux `io-pgtable-arm.c`), which is left to the caller.
    pub const fn leaf_shift(self, level: u8) -> Option<u8> {
        match (self, level) {
            (Self::Size4K | Self::Size16K | Self::Size64K, 3) => Some(self.shift()),
            (Self::Size4K, 2) => Some(21),
            (Self::Size4K, 1) => Some(30),
            (Self::Size16K, 2) => Some(25),
            (Self::Size64K, 2) => Some(29),
            (Self::Size64K, 1) => Some(42),
            _ => None,
        }
    }
}

/// The size of physical addresses: IDR5.OAS, S2PS and IPS have one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum OutputSize {
    /// 32 bits.
    Bits32 = 0,
    /// 36 bits.
    Bits36 = 1,
    /// 40 bits.
    Bits40 = 2,
    /// 42 bits.
    Bits42 = 3,
    /// 44 bits.
    Bits44 = 4,
    /// 48 bits.
    Bits48 = 5,
    /// 52 bits.
    Bits52 = 6,
}

impl OutputSize {
    /// The size with this code, or `None` for the reserved one.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Bits32,
            1 => Self::Bits36,
            2 => Self::Bits40,
            3 => Self::Bits42,
            4 => Self::Bits44,
            5 => Self::Bits48,
            6 => Self::Bits52,
            _ => return None,
        })
    }

    /// Its code.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Significant bits of an address.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits32 => 32,
            Self::Bits36 => 36,
            Self::Bits40 => 40,
            Self::Bits42 => 42,
            Self::Bits44 => 44,
            Self::Bits48 => 48,
            Self::Bits52 => 52,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_match_an_independent_table() {
        let table = [
            (Granule::Size4K, 12, 0, 2, 1),
            (Granule::Size16K, 14, 2, 1, 2),
            (Granule::Size64K, 16, 1, 3, 3),
        ];
        for (granule, shift, tg0, tg1, command) in table {
            assert_eq!(granule.shift(), shift);
            assert_eq!(
                (granule.tg0(), granule.tg1(), granule.command()),
                (tg0, tg1, command)
            );
            assert_eq!(Granule::from_tg0(tg0), Some(granule));
            assert_eq!(granule.leaf_shift(3), Some(shift));
        }
        assert_eq!(Granule::from_tg0(3), None);
        let leaves = |granule: Granule| [0, 1, 2].map(|level| granule.leaf_shift(level));
        assert_eq!(leaves(Granule::Size4K), [None, Some(30), Some(21)]);
        assert_eq!(leaves(Granule::Size16K), [None, None, Some(25)]);
        assert_eq!(leaves(Granule::Size64K), [None, Some(42), Some(29)]);
        let sizes = [32, 36, 40, 42, 44, 48, 52];
        for (code, bits) in (0..).zip(sizes) {
            let size = OutputSize::from_code(code).unwrap();
            assert_eq!((size.code(), size.bits()), (code, bits));
        }
        assert_eq!(OutputSize::from_code(7), None);
    }
}
