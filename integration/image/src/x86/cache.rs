//! Write-back of cache lines, for table walkers that do not snoop.
#![expect(unsafe_code, reason = "cache-line instructions take raw addresses")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};

use hv_core::PhysAddr;
use spin::Once;

use crate::memory::{line_starts, physical};

/// The instruction that writes a line back, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// Writes back and may keep the line.
    WriteBack,
    /// Writes back and drops the line, lines in any order.
    FlushOptimised,
    /// Writes back and drops the line, one after the other.
    Flush,
}

/// CPUID leaf 7 EBX bit: `clwb`.
const HAS_CLWB: u32 = 1 << 24;
/// CPUID leaf 7 EBX bit: `clflushopt`.
const HAS_CLFLUSHOPT: u32 = 1 << 23;
/// Line size where CPUID does not say; no x86_64 CPU has less.
const DEFAULT_LINE: u64 = 64;

struct Lines {
    bytes: u64,
    instruction: Instruction,
}

static LINES: Once<Lines> = Once::new();

fn lines() -> &'static Lines {
    LINES.call_once(|| {
        // Leaf 1 EBX 15:8 counts the line in units of 8 bytes.
        let bytes = u64::from(__cpuid(1).ebx >> 8 & 0xff) * 8;
        let features = if __cpuid(0).eax >= 7 {
            __cpuid_count(7, 0).ebx
        } else {
            0
        };
        let instruction = if features & HAS_CLWB != 0 {
            Instruction::WriteBack
        } else if features & HAS_CLFLUSHOPT != 0 {
            Instruction::FlushOptimised
        } else {
            Instruction::Flush
        };
        Lines {
            bytes: if bytes.is_power_of_two() {
                bytes
            } else {
                DEFAULT_LINE
            },
            instruction,
        }
    })
}

/// Writes back every line that holds one of the `bytes` bytes at `from`, and waits until that is
/// done.
pub fn write_back(from: PhysAddr, bytes: u64) {
    each_line(from, bytes, lines().instruction);
    walker_fence();
}

/// As [`write_back`], and drops the lines: what is read afterwards comes from memory.
pub fn write_back_and_drop(from: PhysAddr, bytes: u64) {
    // `clflush` is ordered with stores and with itself, on every x86_64 CPU; loads wait for the fence.
    each_line(from, bytes, Instruction::Flush);
    // SAFETY: every x86_64 CPU has `mfence`; it changes nothing but order.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
}

fn each_line(from: PhysAddr, bytes: u64, instruction: Instruction) {
    for start in line_starts(from.as_u64(), bytes, lines().bytes) {
        let line = physical::pointer(PhysAddr::new(start));
        match instruction {
            // SAFETY: CPUID says that the instruction exists; it changes no memory content and does
            // not need the address to be writable, and an identity-mapped address
            // cannot fault.
            Instruction::WriteBack => unsafe {
                asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags));
            },
            // SAFETY: as above.
            Instruction::FlushOptimised => unsafe {
                asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags));
            },
            // SAFETY: as above; every x86_64 CPU has `clflush`.
            Instruction::Flush => unsafe {
                asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
            },
        }
    }
}

/// Orders earlier stores and write-backs of this CPU before its later stores, for every observer.
pub fn walker_fence() {
    // SAFETY: every x86_64 CPU has `sfence`; it changes nothing but order.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_back_runs_on_this_machine_and_changes_nothing() {
        let words = [7u64; 100];
        let address = (&raw const words).expose_provenance() as u64;
        write_back(PhysAddr::new(address), 800);
        write_back_and_drop(PhysAddr::new(address), 800);
        assert_eq!(words, [7; 100]);
    }
}
