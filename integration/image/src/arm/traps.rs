//! Exceptions: one table of vectors for all CPUs, every exception on a trap stack.
//!
//! Nothing here expects an exception, so any of them ends the run with a report, except the breakpoint of
//! [`self_check`]. Interrupts are masked for good; see `gic.rs`. System errors are let through once a report can be made.
#![expect(unsafe_code, reason = "takes a breakpoint")]

use core::arch::asm;
use core::fmt;

use hv_core::sync::{AtomicU64, Ordering};
use thiserror::Error;

use super::exit::{exit, leaving};
use super::{cpu, firmware};
use crate::console::print_last_words;
use crate::outcome::Outcome;
use crate::report;

/// Vector of a synchronous exception of code that runs on the stack of EL0, as all code but traps does.
const SYNCHRONOUS: u64 = 0;
/// First vector of code that runs on the trap stack.
const FIRST_OF_TRAPS: u64 = 4;
/// First vector of lower exception levels.
const FIRST_OF_LOWER: u64 = 8;

// Exception classes (Arm ARM, D19.2 ESR_EL2, bits 31:26).
const UNKNOWN: u64 = 0x00;
const INSTRUCTION_ABORT: u64 = 0x21;
const DATA_ABORT: u64 = 0x25;
const BREAKPOINT: u64 = 0x3c;

/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// What `boot/traps.s` stores, lowest address first.
#[derive(Debug)]
#[repr(C)]
pub struct TrapFrame {
    /// General registers x0 to x30.
    pub registers: [u64; 31],
    /// Where execution was.
    pub elr: u64,
    /// Processor state there.
    pub spsr: u64,
    /// What happened.
    pub esr: u64,
    /// The address that it happened with.
    pub far: u64,
    /// Stack pointer of what was interrupted.
    pub sp: u64,
    /// The vector.
    pub vector: u64,
}

impl TrapFrame {
    /// The exception class.
    fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// What an exception of this class is, for people.
    fn name(&self) -> &'static str {
        match self.vector % 4 {
            1 => return "interrupt",
            2 => return "fast interrupt",
            3 => return "system error",
            _ => {}
        }
        match self.class() {
            UNKNOWN => "undefined instruction",
            0x07 => "floating point access",
            0x0e => "illegal execution state",
            0x16 => "hypervisor call",
            0x17 => "secure monitor call",
            0x18 => "system register access",
            0x20 => "instruction abort of a lower level",
            INSTRUCTION_ABORT => "instruction abort",
            0x22 => "misaligned program counter",
            0x24 => "data abort of a lower level",
            DATA_ABORT => "data abort",
            0x26 => "misaligned stack pointer",
            0x2c => "floating point exception",
            BREAKPOINT => "breakpoint",
            _ => "exception",
        }
    }
}

/// Breakpoints taken by [`self_check`].
static BREAKPOINTS: AtomicU64 = AtomicU64::new(0);
/// Whether a breakpoint is expected now: 1 during [`self_check`], otherwise 0.
static BREAKPOINT_EXPECTED: AtomicU64 = AtomicU64::new(0);

/// Breakpoint traps do not work as they should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("trap self-check: {taken} breakpoints taken and resumed, expected {expected}")]
pub struct SelfCheckError {
    /// Breakpoints executed.
    pub expected: u64,
    /// Breakpoints counted.
    pub taken: u64,
}

/// What a vector calls, on a trap stack with interrupts off. Returns to go on where the frame says.
pub fn handle(frame: &mut TrapFrame) {
    match (frame.vector, frame.class()) {
        // ORDERING: Relaxed, the flag is set and read on one CPU, in program order.
        (SYNCHRONOUS, BREAKPOINT) if BREAKPOINT_EXPECTED.load(Ordering::Relaxed) != 0 => {
            // ORDERING: Relaxed, counted and read on one CPU, in program order.
            BREAKPOINTS.fetch_add(1, Ordering::Relaxed);
            frame.elr = frame.elr.wrapping_add(INSTRUCTION);
        }
        (_, UNKNOWN) if leaving() => firmware::power_off(),
        _ => die(frame),
    }
}

/// A trap as the reason why the run ends.
struct Report<'a>(&'a TrapFrame);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(frame) = self;
        let of = match frame.vector {
            FIRST_OF_TRAPS..FIRST_OF_LOWER => " in a trap handler",
            FIRST_OF_LOWER.. => " of a lower level",
            _ => "",
        };
        write!(
            f,
            "{}{of} (vector {}, esr {:#x}) at pc {:#x}, sp {:#x}",
            frame.name(),
            frame.vector,
            frame.esr,
            frame.elr,
            frame.sp
        )?;
        if matches!(frame.class(), INSTRUCTION_ABORT | DATA_ABORT) {
            write!(f, ", address {:#x}", frame.far)?;
        }
        write!(f, " on {}", cpu::current())
    }
}

fn die(frame: &TrapFrame) -> ! {
    let report = Report(frame);
    print_last_words(format_args!("[trap] {report}\n"));
    let mut number = 0;
    for row in frame.registers.chunks(4) {
        for register in row {
            print_last_words(format_args!("  x{number:<2} {register:016x}"));
            number += 1;
        }
        print_last_words(format_args!("\n"));
    }
    print_last_words(format_args!("  spsr {:x}\n", frame.spsr));
    report::emit_panic(&report);
    exit(Outcome::Refused)
}

/// Lets system errors through on the CPU that calls, so that one ends the run with a report: boot code masks all exceptions
/// that can be, and until a report can be made a system error waits.
pub(super) fn accept_system_errors() {
    // SAFETY: the vectors and their stack are in place, so this changes what happens after a system error alone.
    unsafe { asm!("msr daifclr, #4", "isb", options(nostack, preserves_flags)) };
}

/// Takes a breakpoint on the CPU that calls and sees that execution goes on behind it.
///
/// # Errors
/// [`SelfCheckError`] when the handler did not run exactly once.
pub fn self_check() -> Result<(), SelfCheckError> {
    // ORDERING: Relaxed for all accesses here: one CPU, and the breakpoint is a barrier to the compiler.
    let before = BREAKPOINTS.load(Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    BREAKPOINT_EXPECTED.store(1, Ordering::Relaxed);
    // SAFETY: the handler returns behind the instruction; what it does not keep is given up here.
    unsafe { asm!("brk #0", clobber_abi("C")) };
    // ORDERING: Relaxed, as above.
    BREAKPOINT_EXPECTED.store(0, Ordering::Relaxed);
    // ORDERING: Relaxed, as above.
    let taken = BREAKPOINTS.load(Ordering::Relaxed) - before;
    match taken {
        1 => Ok(()),
        _ => Err(SelfCheckError { expected: 1, taken }),
    }
}
