//! Root and context entries in legacy mode: which tables a requester's addresses go through.
//!
//! The root table has one 16-byte entry per bus, each context table one per device and function.
//! Both are one 4 KiB page. Source: Linux `iommu.h` (`root_entry`, `context_entry`), VirtualBox
//! `iommu-intel.h`, QEMU `intel_iommu_internal.h`.

use bitfield_struct::bitfield;
use static_assertions::const_assert_eq;

/// Entries of a root or context table.
pub const ENTRIES: usize = 256;
/// 64-bit words of an entry of either kind.
pub const WORDS_PER_ENTRY: usize = 2;
const_assert_eq!(ENTRIES * WORDS_PER_ENTRY * size_of::<u64>(), 4096);

/// Address bits of a table pointer in either entry (63:12, and zero from the host address width).
pub const POINTER: u64 = 0xffff_ffff_ffff_f000;

/// The low word of a root entry. The high word is zero.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootLow {
    /// The bus has a context table (bit 0).
    pub p: bool,
    #[bits(11)]
    __: u16,
    /// Page number of the context table (bits 63:12).
    #[bits(52)]
    pub ctp: u64,
}

/// The low word of a context entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextLow {
    /// The device is bound (bit 0).
    pub p: bool,
    /// Its faults are not recorded (bit 1), also that the entry is not present. That a root entry is not is recorded always:
    /// QEMU `intel_iommu.c` (`vtd_qualified_faults`, and where it looks at the bit before it looks at P).
    pub fpd: bool,
    /// [`TT_TABLES`] and its neighbours (bits 3:2).
    #[bits(2)]
    pub tt: u8,
    #[bits(8)]
    __: u8,
    /// Page number of the second-stage root table (bits 63:12).
    #[bits(52)]
    pub ssptptr: u64,
}

/// The high word of a context entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextHigh {
    /// Depth of the tables, [`AW_3_LEVELS`] and its neighbours (bits 66:64 of the entry).
    #[bits(3)]
    pub aw: u8,
    /// Ignored by hardware (bits 70:67).
    #[bits(4)]
    __: u8,
    #[bits(1)]
    __: u8,
    /// Domain id (bits 87:72).
    pub did: u16,
    #[bits(40)]
    __: u64,
}

/// TT: untranslated requests go through the second-stage tables, others are blocked.
pub const TT_TABLES: u8 = 0;
/// Context entry TT: addresses go through as they are. Needs ECAP.PT, and the widest address width. Only a
/// deliberate fault uses it.
pub const TT_PASS_THROUGH: u8 = 2;
/// AW: 3 levels, 39 bits.
pub const AW_3_LEVELS: u8 = 1;
/// AW: 4 levels, 48 bits.
pub const AW_4_LEVELS: u8 = 2;
/// AW: 5 levels, 57 bits.
pub const AW_5_LEVELS: u8 = 3;

const_assert_eq!(size_of::<RootLow>(), 8);
const_assert_eq!(size_of::<ContextLow>() + size_of::<ContextHigh>(), 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_bits_match_an_independent_table() {
        assert_eq!(RootLow::new().with_p(true).into_bits(), 1);
        assert_eq!(RootLow::new().with_ctp(0x12345).into_bits(), 0x1234_5000);
        assert_eq!(ContextLow::new().with_p(true).into_bits(), 1);
        assert_eq!(ContextLow::new().with_fpd(true).into_bits(), 2);
        assert_eq!(ContextLow::new().with_tt(3).into_bits(), 0xc);
        assert_eq!(
            ContextLow::new().with_ssptptr(u64::MAX >> 12).into_bits(),
            POINTER
        );
        assert_eq!(ContextHigh::new().with_aw(7).into_bits(), 7);
        assert_eq!(ContextHigh::new().with_did(0xffff).into_bits(), 0xff_ff00);
    }

    #[test]
    fn an_entry_written_by_hand_decodes() {
        // 4-level tables at 0x1006000 for domain 0x2a.
        let low = ContextLow::from_bits(0x0100_6001);
        let high = ContextHigh::from_bits(0x2a02);
        assert!(low.p() && !low.fpd());
        assert_eq!((low.tt(), low.ssptptr()), (TT_TABLES, 0x1006));
        assert_eq!((high.aw(), high.did()), (AW_4_LEVELS, 0x2a));
    }
}
