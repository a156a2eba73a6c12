//! From capability bits to what domains ask about.

use hv_core::fault::Fault;
use hv_core::{PageSize, PhysAddr};
use hv_iommu::{Level, LevelSet, RootTables, UnitCaps};

use crate::spec::capability::{
    Cap, Ecap, SAGAW_3_LEVELS, SAGAW_4_LEVELS, SAGAW_5_LEVELS, SSLPS_1G, SSLPS_2M,
};
use crate::spec::root_context::{AW_3_LEVELS, AW_4_LEVELS, AW_5_LEVELS};

/// The most significant bits that a table entry can hold of an address (51:12).
const ENTRY_ADDRESS_BITS: u8 = 52;

/// SAGAW bit, number of levels and AW value of each depth.
const DEPTHS: [(u8, u8, u8); 3] = [
    (SAGAW_3_LEVELS, 3, AW_3_LEVELS),
    (SAGAW_4_LEVELS, 4, AW_4_LEVELS),
    (SAGAW_5_LEVELS, 5, AW_5_LEVELS),
];

/// What a unit with these registers can do, or `None` for the reserved number of domains.
pub(crate) fn unit_caps(cap: Cap, ecap: Ecap, host_address_bits: u8) -> Option<UnitCaps> {
    let largest_page = match cap.sslps() & (SSLPS_2M | SSLPS_1G) {
        0 => PageSize::Size4K,
        // A unit with 1 GiB pages but no 2 MiB ones is not known; it gets the smaller promise.
        SSLPS_2M => PageSize::Size2M,
        SSLPS_1G => PageSize::Size4K,
        _ => PageSize::Size1G,
    };
    Some(UnitCaps {
        second_stage: true,
        levels: levels(cap),
        root_tables: RootTables::ONE,
        largest_page,
        coherent: ecap.c(),
        snoop_control: ecap.sc(),
        domain_ids: cap.domain_ids()?,
        iova_bits: if Fault::IgnoreGuestWidth.is_on() {
            64
        } else {
            cap.guest_address_bits()
        },
        phys_bits: host_address_bits.min(ENTRY_ADDRESS_BITS),
        sync_on_map: cap.cm() || cap.rwbf(),
        write_only: cap.zlr() || Fault::IgnoreZeroLengthReads.is_on(),
        // Until discovery has seen what machine this is.
        live_resize: false,
        // Scalable mode alone can.
        nested: false,
        dirty: false,
    })
}

/// The depths of second-stage tables that a unit walks.
pub(crate) fn levels(cap: Cap) -> LevelSet {
    DEPTHS
        .iter()
        .filter(|(bit, ..)| cap.sagaw() & bit != 0)
        .filter_map(|&(_, level, _)| Level::new(level))
        .fold(LevelSet::EMPTY, LevelSet::with)
}

/// The AW value of tables whose root is at `level`, if a context entry can say it.
pub(crate) fn address_width(level: Level) -> Option<u8> {
    DEPTHS
        .iter()
        .find(|&&(_, number, _)| number == level.number())
        .map(|&(.., aw)| aw)
}

/// A deliberate fault: the AW value of another depth, one of `levels` if it has another.
pub(crate) fn other_address_width(levels: LevelSet, level: Level) -> Option<u8> {
    let any = DEPTHS
        .iter()
        .filter_map(|&(_, number, _)| Level::new(number));
    let mut others = levels.iter().chain(any).filter(|other| *other != level);
    others.find_map(address_width)
}

/// The highest address of `bits` significant bits.
pub(crate) const fn last_address(bits: u8) -> u64 {
    match 1u64.checked_shl(bits as u32) {
        Some(end) => end - 1,
        None => u64::MAX,
    }
}

/// Whether `address` has no more than `bits` significant bits.
pub(crate) const fn fits(address: PhysAddr, bits: u8) -> bool {
    address.as_u64() <= last_address(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulators_registers_become_capabilities() {
        let cap = Cap::from_bits(0x00d2_008c_222f_0606);
        let caps = unit_caps(cap, Ecap::from_bits(0x00f0_0f4a), 39).unwrap();
        let (three, four) = (Level::new(3).unwrap(), Level::new(4).unwrap());
        assert_eq!(caps.levels, LevelSet::EMPTY.with(three).with(four));
        assert_eq!(caps.largest_page, PageSize::Size1G);
        assert_eq!(caps.domain_ids, 65536);
        assert_eq!((caps.iova_bits, caps.phys_bits), (48, 39));
        assert!(!caps.coherent && !caps.sync_on_map && !caps.write_only);
    }

    #[test]
    fn each_bit_moves_its_field() {
        let caps = |cap, ecap| unit_caps(cap, ecap, 64).unwrap();
        let none = caps(Cap::new(), Ecap::new());
        assert_eq!(none.levels, LevelSet::EMPTY);
        assert_eq!(none.largest_page, PageSize::Size4K);
        assert_eq!(none.phys_bits, 52);
        assert!(caps(Cap::new(), Ecap::new().with_c(true)).coherent);
        assert!(!none.snoop_control);
        assert!(caps(Cap::new(), Ecap::new().with_sc(true)).snoop_control);
        assert!(caps(Cap::new().with_cm(true), Ecap::new()).sync_on_map);
        assert!(caps(Cap::new().with_rwbf(true), Ecap::new()).sync_on_map);
        assert!(caps(Cap::new().with_zlr(true), Ecap::new()).write_only);
        let sizes = [
            PageSize::Size4K,
            PageSize::Size2M,
            PageSize::Size4K,
            PageSize::Size1G,
        ];
        for (bits, size) in (0u8..).zip(sizes) {
            assert_eq!(
                caps(Cap::new().with_sslps(bits), Ecap::new()).largest_page,
                size
            );
        }
        assert_eq!(unit_caps(Cap::new().with_nd(7), Ecap::new(), 39), None);
    }

    #[test]
    fn widths_and_depths_agree() {
        // Level of the root, bit of SAGAW, value of AW.
        for (level, sagaw, aw) in [(3, 0b10, 1), (4, 0b100, 2), (5, 0b1000, 3)] {
            let level = Level::new(level).unwrap();
            assert_eq!(
                levels(Cap::new().with_sagaw(sagaw)),
                LevelSet::EMPTY.with(level)
            );
            assert_eq!(address_width(level), Some(aw));
        }
        assert_eq!(levels(Cap::new().with_sagaw(0b10001)), LevelSet::EMPTY);
        assert_eq!(address_width(Level::LEAF), None);
        assert!(fits(PhysAddr::new(0xfff), 12) && !fits(PhysAddr::new(0x1000), 12));
        assert!(fits(PhysAddr::new(u64::MAX), 64));
    }
}
