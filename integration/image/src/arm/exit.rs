//! Leaving the machine: by semihosting with a code, and without one by turning the machine off.
#![expect(unsafe_code, reason = "a debugger's call ends the run")]

use core::arch::asm;

use hv_core::sync::{AtomicBool, Ordering};

use super::firmware;
use crate::outcome::Outcome;

/// Semihosting operation that ends the run with a code (Arm semihosting specification, SYS_EXIT_EXTENDED).
const SYS_EXIT_EXTENDED: u64 = 0x20;
/// Its reason: the application ended by itself.
const APPLICATION_EXIT: u64 = 0x2_0026;

/// Whether the call of the debugger was made: where none answers, it is an undefined instruction.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// Whether the run is over, and an undefined instruction only means that no debugger is there.
pub(super) fn leaving() -> bool {
    // ORDERING: Relaxed, set and read on one CPU, in program order.
    LEAVING.load(Ordering::Relaxed)
}

/// Ends the run. Where no debugger takes the code, the machine is turned off without one.
pub fn exit(outcome: Outcome) -> ! {
    let block = [APPLICATION_EXIT, u64::from(outcome as u32)];
    // ORDERING: Relaxed, set and read on one CPU, in program order.
    LEAVING.store(true, Ordering::Relaxed);
    // SAFETY: the call ends the virtual machine; where nobody answers it, the trap handler goes on to turn the machine
    // off. The block is two words, as the operation wants.
    unsafe {
        asm!("hlt #0xf000", in("x0") SYS_EXIT_EXTENDED, in("x1") block.as_ptr(), options(nostack));
    }
    firmware::power_off()
}
