//! The UART of the console: a PL011.
#![expect(unsafe_code, reason = "claims the registers of the UART")]

use core::fmt;
use core::ptr::NonNull;

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, UniqueMmioPointer};
use hv_core::PhysAddr;
use hv_core::sync::{AtomicU64, Ordering};

use crate::memory::physical;

/// Where it is on QEMU's virt board: what is said before the device tree was read, or because it cannot be, goes there.
const BEFORE_THE_TREE: u64 = 0x0900_0000;
/// The clock of PL011s on Arm's boards and on QEMU's.
const CLOCK_HZ: u32 = 24_000_000;
const BAUD: u32 = 115_200;

/// Where the registers are.
static REGISTERS: AtomicU64 = AtomicU64::new(BEFORE_THE_TREE);

/// The console's UART. Bytes go out as they are: the other end is a program that reads lines.
#[derive(Default)]
pub struct Uart(());

impl Uart {
    /// The UART as it is.
    pub const fn new() -> Self {
        Self(())
    }

    /// Programs it.
    pub fn init(&mut self) {
        let line = LineConfig {
            data_bits: DataBits::Bits8,
            parity: Parity::None,
            stop_bits: StopBits::One,
        };
        // The one error is a rate that the clock cannot make, and this one it can.
        let _ = driver().enable(line, BAUD, CLOCK_HZ);
    }
}

/// Moves the console to the UART that the device tree names.
pub(super) fn place(registers: PhysAddr) {
    // ORDERING: Relaxed, told by the only CPU that runs; starting the others orders it for them.
    REGISTERS.store(registers.as_u64(), Ordering::Relaxed);
    crate::console::init();
}

fn driver() -> arm_pl011_uart::Uart<'static> {
    // ORDERING: Relaxed, as in `place`.
    let registers = PhysAddr::new(REGISTERS.load(Ordering::Relaxed));
    let registers = physical::pointer(registers).cast::<PL011Registers>();
    let registers = NonNull::new(registers).unwrap_or(NonNull::dangling());
    // SAFETY: the identity map shows the registers as device memory for as long as the machine runs; they touch no
    // memory, and the console's lock (or the panic path, after it gave up on that lock) is the only user.
    arm_pl011_uart::Uart::new(unsafe { UniqueMmioPointer::new(registers) })
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        driver().write_str(text)
    }
}
