//! Leaving the machine: QEMU's `isa-debug-exit` device, or a halt where it is absent.
#![expect(unsafe_code, reason = "port output and hlt end the run")]

use x86_64::instructions::{hlt, interrupts, port::Port};

use crate::outcome::Outcome;

/// I/O port of `isa-debug-exit` (`iobase=0xf4,iosize=4`).
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// Ends the run. Where no exit device answers, the CPU halts with interrupts off.
pub fn exit(outcome: Outcome) -> ! {
    let mut port = Port::<u32>::new(DEBUG_EXIT_PORT);
    // QEMU doubles what it is given and adds one: the codes are odd.
    let value = outcome as u32 >> 1;
    // SAFETY: the port belongs to the debug-exit device, whose only effect is to end the virtual
    // machine; on a machine without it the write is not decoded by anything.
    unsafe { port.write(value) };
    loop {
        interrupts::disable();
        hlt();
    }
}
