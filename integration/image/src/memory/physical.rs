//! Access to physical memory through the identity map.
//!
//! The boot code maps the first 4 TiB onto themselves (4 GiB on CPUs without 1 GiB pages), so a
//! physical address is a pointer. Devices change the same memory behind the compiler's back; copies
//! that may race with them are assembly.
#![expect(unsafe_code, reason = "turns physical addresses into pointers")]

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::ptr;

use hv_core::{PhysAddr, PhysRange};

/// CPUID leaf and EDX bit: 1 GiB pages.
const LARGE_PAGES: (u32, u32) = (0x8000_0001, 1 << 26);
/// CPUID leaf whose EAX 7:0 is the number of physical address bits.
const ADDRESS_SIZES: u32 = 0x8000_0008;

/// The end of the identity map that `boot/entry.s` builds, as far as the CPU can address it.
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

/// The pointer under which the identity map shows `address`.
///
/// Making it is safe; using it needs the usual proof that the memory is there and whose it is.
pub fn pointer(address: PhysAddr) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address.as_u64() as usize)
}

/// Fills a run of frames with zeroes.
///
/// # Safety
/// The range is mapped RAM that the caller owns alone, device included.
pub unsafe fn zero(range: PhysRange) {
    let bytes = range.pages().bytes() as usize;
    // SAFETY: the caller owns the mapped range alone, and bytes need no alignment.
    unsafe { ptr::write_bytes(pointer(range.start()), 0, bytes) };
}

/// A view of `length` bytes at `address` that lives as long as the machine.
///
/// # Safety
/// The bytes are mapped, readable without side effects, and nobody ever writes them again.
pub unsafe fn bytes(address: PhysAddr, length: usize) -> &'static [u8] {
    let start = pointer(address).cast_const();
    // SAFETY: the caller promises mapped bytes that never change; u8 has no alignment or validity
    // condition, and an identity-mapped run cannot wrap.
    unsafe { core::slice::from_raw_parts(start, length) }
}

/// Copies bytes between memory of which one side may be changed by a device meanwhile.
///
/// # Safety
/// `bytes` bytes are readable at `from` and writable at `to`, and the two do not overlap.
pub unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    let (words, rest) = (bytes / 8, bytes % 8);
    // SAFETY: the caller promises both runs of bytes; the string instructions need no alignment
    // and, with the direction flag clear as the ABI has it, touch just these bytes. Assembly,
    // unlike a Rust copy, may race with a device.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) rest,
            inout("rcx") words => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Reads an aligned 32-bit word in one access that later reads of this CPU stay behind.
///
/// # Safety
/// The four bytes at `from` are mapped RAM, and `from` is a multiple of four.
pub unsafe fn read_u32(from: PhysAddr) -> u32 {
    let word = pointer(from);
    let value: u32;
    // SAFETY: the caller promises four aligned, mapped bytes. Assembly without `nomem` keeps the
    // compiler from moving later reads before it, and the CPU keeps loads in order.
    unsafe {
        asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) word, options(nostack, preserves_flags))
    };
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_touch_just_the_bytes_they_name() {
        let from: Vec<u8> = (0..64).collect();
        for bytes in 0..40 {
            for offset in 0..9 {
                let mut to = vec![0xff; 64];
                // SAFETY: both vectors are longer than offset + bytes, and distinct.
                unsafe { copy(to.as_mut_ptr().wrapping_add(offset), from.as_ptr(), bytes) };
                assert_eq!(to[offset..offset + bytes], from[..bytes]);
                assert!(
                    to[..offset]
                        .iter()
                        .chain(&to[offset + bytes..])
                        .all(|byte| *byte == 0xff)
                );
            }
        }
    }

    #[test]
    fn words_are_read_whole() {
        let words = [0x1122_3344u32, 0x5566_7788];
        let address = (&raw const words).expose_provenance() as u64;
        // SAFETY: the array is there and aligned.
        let word = unsafe { read_u32(PhysAddr::new(address + 4)) };
        assert_eq!(word, 0x5566_7788);
    }
}
