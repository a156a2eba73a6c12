//! How the unit reads tables: one code in entries, descriptors and their table walks.
//!
//! Source: Linux `arm-smmu-v3.h` (`STRTAB_STE_1_S1C_*`, `CTXDESC_*`) and `io-pgtable-arm.c` (`ARM_LPAE_TCR_*`). That reads
//! of non-coherent units are outer shareable is recalled.

use super::registers::Shareability;

/// Whether the unit snoops the CPU's caches when it reads tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// It does: write back, inner shareable.
    Coherent,
    /// It does not, so software writes back what it changes: not cached, outer shareable.
    NonCoherent,
}

impl Walk {
    /// Not cached.
    const NON_CACHEABLE: u8 = 0;
    /// Write back, allocate on reads and writes.
    const WRITE_BACK: u8 = 1;

    /// Inner and outer cacheability. CR1 has another code.
    pub(super) const fn cacheability(self) -> u8 {
        match self {
            Self::Coherent => Self::WRITE_BACK,
            Self::NonCoherent => Self::NON_CACHEABLE,
        }
    }

    pub(super) const fn shareability(self) -> Shareability {
        match self {
            Self::Coherent => Shareability::Inner,
            Self::NonCoherent => Shareability::Outer,
        }
    }
}
