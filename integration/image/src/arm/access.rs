//! Single accesses to registers and to memory that devices change.
//!
//! Assembly: the width is certain, an access may race with a device, and a block without `nomem` keeps the compiler from
//! moving other memory accesses across it. The barriers order accesses to memory and registers of any device against one
//! another (Arm ARM, B2.7): the type of device memory alone orders accesses to one device only.
#![expect(unsafe_code, reason = "raw loads and stores")]

use core::arch::asm;

/// Reads a register.
///
/// # Safety
/// `register` is a mapped, aligned register whose reading breaks nothing.
pub unsafe fn read32(register: *const u32) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("dmb osh", "ldr {0:w}, [{1}]", "dmb oshld", out(reg) value, in(reg) register, options(nostack, preserves_flags))
    };
    value
}

/// Writes a register, after all earlier stores.
///
/// # Safety
/// `register` is a mapped, aligned register whose writing breaks nothing.
pub unsafe fn write32(register: *mut u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("dmb osh", "str {0:w}, [{1}]", in(reg) value, in(reg) register, options(nostack, preserves_flags))
    };
}

/// Reads a register.
///
/// # Safety
/// As for [`read32`].
pub unsafe fn read64(register: *const u64) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("dmb osh", "ldr {0}, [{1}]", "dmb oshld", out(reg) value, in(reg) register, options(nostack, preserves_flags))
    };
    value
}

/// Writes a register, after all earlier stores.
///
/// # Safety
/// As for [`write32`].
pub unsafe fn write64(register: *mut u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("dmb osh", "str {0}, [{1}]", in(reg) value, in(reg) register, options(nostack, preserves_flags))
    };
}

/// Reads an aligned 32-bit word in one access that later reads and writes of this CPU stay behind.
///
/// # Safety
/// The four bytes at `from` are mapped RAM, and `from` is a multiple of four.
pub unsafe fn read_word(from: *const u32) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise; a read of RAM breaks nothing.
    unsafe {
        asm!("ldr {0:w}, [{1}]", "dmb oshld", out(reg) value, in(reg) from, options(nostack, preserves_flags))
    };
    value
}

/// Copies bytes between memory of which one side may be changed by a device meanwhile.
///
/// # Safety
/// `bytes` bytes are readable at `from` and writable at `to`, both in ordinary memory, and the two do not overlap.
pub unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    let (words, rest) = (bytes / 8, bytes % 8);
    // SAFETY: the caller promises both runs of bytes; loads and stores of ordinary memory need no alignment, and each
    // loop runs as often as there are words and bytes.
    unsafe {
        asm!(
            "cbz {words}, 3f",
            "2: ldr {word}, [{from}], #8",
            "str {word}, [{to}], #8",
            "sub {words}, {words}, #1",
            "cbnz {words}, 2b",
            "3: cbz {rest}, 5f",
            "4: ldrb {word:w}, [{from}], #1",
            "strb {word:w}, [{to}], #1",
            "sub {rest}, {rest}, #1",
            "cbnz {rest}, 4b",
            "5:",
            words = inout(reg) words => _,
            rest = inout(reg) rest => _,
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            word = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
}
