//! The identity map that `boot/entry.s` builds.

use core::arch::x86_64::__cpuid;

use hv_core::PhysAddr;

/// CPUID leaf and EDX bit: 1 GiB pages.
const LARGE_PAGES: (u32, u32) = (0x8000_0001, 1 << 26);
/// CPUID leaf whose EAX 7:0 is the number of physical address bits.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// The end of the identity map, as far as the CPU can address it: 4 TiB, or 4 GiB on CPUs without 1 GiB pages.
pub fn identity_limit() -> PhysAddr {
    let (leaf, bit) = LARGE_PAGES;
    let mapped = if __cpuid(leaf).edx & bit != 0 {
        4 << 40
    } else {
        4 << 30
    };
    let address_bits = __cpuid(ADDRESS_SIZES).eax & 0xff;
    let addressable = 1u64.checked_shl(address_bits).unwrap_or(u64::MAX);
    PhysAddr::new(addressable.min(mapped))
}
