//! Leaving the machine: QEMU's `isa-debug-exit` device, or a halt where it is absent.
#![expect(unsafe_code, reason = "port output and hlt end the run")]

use x86_64::instructions::{hlt, interrupts, port::Port};

/// I/O port of `isa-debug-exit` (`iobase=0xf4,iosize=4`).
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// How a run of the image ended. The discriminant is what the exit device gets; QEMU's own exit
/// status is twice that plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Every scenario passed; QEMU exits with 33.
    Passed = 0x10,
    /// At least one scenario failed; QEMU exits with 35.
    Failed = 0x11,
    /// A panic, a trap, or a platform that the image refuses; QEMU exits with 37.
    Refused = 0x12,
}

/// Ends the run. Where no exit device answers, the CPU halts with interrupts off.
pub fn exit(outcome: Outcome) -> ! {
    let mut port = Port::<u32>::new(DEBUG_EXIT_PORT);
    // SAFETY: the port belongs to the debug-exit device, whose only effect is to end the virtual
    // machine; on a machine without it the write is not decoded by anything.
    unsafe { port.write(outcome as u32) };
    loop {
        interrupts::disable();
        hlt();
    }
}
