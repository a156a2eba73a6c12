//! The legacy 8259 interrupt controllers: all lines masked, for good.
#![expect(unsafe_code, reason = "port output to the interrupt controllers")]

use x86_64::instructions::port::Port;

/// Interrupt mask registers of the two controllers.
const MASK_PORTS: [u16; 2] = [0x21, 0xa1];

/// Masks every line. Firmware leaves the timer running, and its vector would look like a double
/// fault.
pub(super) fn mask_all() {
    for number in MASK_PORTS {
        let mut port = Port::<u8>::new(number);
        // SAFETY: the interrupt mask register only decides which legacy interrupts arrive; none is
        // used here.
        unsafe { port.write(0xff) };
    }
}
