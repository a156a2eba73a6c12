//! Single accesses to registers and to memory that devices change.
//!
//! Assembly: the width is certain, an access may race with a device, and a block without `nomem` keeps the compiler from
//! moving other memory accesses across it. The CPU keeps an uncached store behind all earlier stores, and loads in
//! order.
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
        asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) register, options(nostack, preserves_flags))
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
        asm!("mov [{1}], {0:e}", in(reg) value, in(reg) register, options(nostack, preserves_flags))
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
        asm!("mov {0}, [{1}]", out(reg) value, in(reg) register, options(nostack, preserves_flags))
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
        asm!("mov [{1}], {0}", in(reg) value, in(reg) register, options(nostack, preserves_flags))
    };
}

/// Reads an aligned 32-bit word in one access that later reads of this CPU stay behind.
///
/// # Safety
/// The four bytes at `from` are mapped RAM, and `from` is a multiple of four.
pub unsafe fn read_word(from: *const u32) -> u32 {
    // SAFETY: the caller's promise; a read of RAM breaks nothing, and the CPU keeps loads in order.
    unsafe { read32(from) }
}

/// Copies bytes between memory of which one side may be changed by a device meanwhile.
///
/// # Safety
/// `bytes` bytes are readable at `from` and writable at `to`, and the two do not overlap.
pub unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    let (words, rest) = (bytes / 8, bytes % 8);
    // SAFETY: the caller promises both runs of bytes; the string instructions need no alignment
    // and, with the direction flag clear as the ABI has it, touch just these bytes.
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
