//! Write-back of cache lines to the point of coherency, for table walkers that do not snoop.
#![expect(unsafe_code, reason = "cache-line instructions take raw addresses")]

use core::arch::asm;

use arm_sysregs::el0::accessors::read_ctr_el0;
use hv_core::PhysAddr;

use crate::memory::{line_starts, physical};

/// CTR_EL0 bits 19:16: log2 of the words of the smallest line of any data cache (Arm ARM, D19.2 CTR_EL0).
const SMALLEST_LINE_SHIFT: u32 = 16;
/// Width of the same.
const SMALLEST_LINE_MASK: u64 = 0xf;
/// Bytes of a word there.
const WORD: u64 = 4;

fn line_bytes() -> u64 {
    WORD << (read_ctr_el0().bits() >> SMALLEST_LINE_SHIFT & SMALLEST_LINE_MASK)
}

/// Writes back every line that holds one of the `bytes` bytes at `from`, and waits until that is
/// done.
pub fn write_back(from: PhysAddr, bytes: u64) {
    for start in line_starts(from.as_u64(), bytes, line_bytes()) {
        let line = physical::pointer(PhysAddr::new(start));
        // SAFETY: the instruction changes no memory content, and an identity-mapped address cannot fault.
        unsafe { asm!("dc cvac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    wait();
}

/// As [`write_back`], and drops the lines: what is read afterwards comes from memory.
pub fn write_back_and_drop(from: PhysAddr, bytes: u64) {
    for start in line_starts(from.as_u64(), bytes, line_bytes()) {
        let line = physical::pointer(PhysAddr::new(start));
        // SAFETY: as in `write_back`.
        unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
    }
    wait();
}

/// Waits until all earlier stores and cache maintenance of this CPU are done, for every observer of the system.
fn wait() {
    // SAFETY: a barrier changes nothing but order.
    unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Orders earlier stores of this CPU before its later ones, as walkers of devices see them: those are outside of the
/// inner shareable domain that a release store orders for.
pub fn walker_fence() {
    // SAFETY: a barrier changes nothing but order.
    unsafe { asm!("dmb oshst", options(nostack, preserves_flags)) };
}

/// Waits until all earlier stores of this CPU are seen by all CPUs.
pub(super) fn write_barrier() {
    // SAFETY: a barrier changes nothing but order.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
}
