//! Which CPU runs: a per-CPU block behind the GS base.
#![expect(
    unsafe_code,
    reason = "the GS base of each CPU points to its own block"
)]

use core::arch::asm;

use hv_core::CpuId;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// The block that the GS base of a CPU points to.
///
/// # Invariants
/// Lives for ever, and is named by the GS base of one CPU only.
#[repr(C)]
pub(super) struct CpuBlock {
    /// The CPU's number; read at offset 0 by [`current`].
    number: u32,
}

impl CpuBlock {
    pub(super) const fn new(cpu: CpuId) -> Self {
        Self {
            number: cpu.index() as u32,
        }
    }

    /// Makes this the block of the CPU that calls.
    ///
    /// # Safety
    /// No other CPU was or will be given this block or its number.
    pub(super) unsafe fn install(&'static self) {
        let address = VirtAddr::from_ptr(self);
        // INVARIANT: 'static, and the caller promises that no other CPU has it.
        GsBase::write(address);
    }
}

/// The CPU that executes this call.
///
/// One load. Only valid after the CPU's descriptor tables were loaded, which is before any code of
/// the library but boot runs on it.
#[inline]
pub fn current() -> CpuId {
    let number: u32;
    // SAFETY: the GS base points to the CPU's block, whose first four bytes are the number and
    // never change.
    unsafe {
        asm!("mov {0:e}, gs:[0]", out(reg) number, options(nostack, preserves_flags, readonly, pure));
    }
    CpuId::new(number)
}
