//! Which CPU runs: its number is in the software thread register of EL2.
#![expect(unsafe_code, reason = "each CPU keeps its number in a register")]

use core::arch::asm;

use hv_core::CpuId;

/// Gives the CPU that calls its number.
///
/// # Safety
/// No other CPU was or will be given this number.
pub(super) unsafe fn install(cpu: CpuId) {
    let number = cpu.index() as u64;
    // SAFETY: nothing else uses the register, and the caller promises that the number is this CPU's own.
    unsafe { asm!("msr tpidr_el2, {}", in(reg) number, options(nomem, nostack, preserves_flags)) };
}

/// The CPU that executes this call.
///
/// Only valid after [`install`] ran on it, which is before any code of the library but boot runs there.
#[inline]
pub fn current() -> CpuId {
    let number: u64;
    // SAFETY: reading the register has no effect; it was written once, before.
    unsafe {
        asm!("mrs {}, tpidr_el2", out(reg) number, options(nomem, nostack, preserves_flags, pure));
    }
    CpuId::new(number as u32)
}
