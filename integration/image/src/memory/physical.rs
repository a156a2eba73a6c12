//! Access to physical memory through the identity map.
//!
//! The boot code maps memory and registers onto themselves, so a physical address is a pointer. Devices change the same
//! memory behind the compiler's back; copies that may race with them are assembly.
#![expect(unsafe_code, reason = "turns physical addresses into pointers")]

use core::ptr;

use hv_core::{PhysAddr, PhysRange};

pub use crate::arch::access::{copy, read_word};
pub use crate::arch::paging::identity_limit;

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
        // SAFETY: the array is there and aligned.
        let word = unsafe { read_word(&raw const words[1]) };
        assert_eq!(word, 0x5566_7788);
    }
}
