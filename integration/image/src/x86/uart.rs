//! The UART of the console: COM1.
#![expect(unsafe_code, reason = "claims the I/O ports of COM1")]

use core::fmt;

use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

/// First I/O port of COM1.
const COM1_PORT: u16 = 0x3f8;

/// The console's UART, behind COM1. Bytes go out as they are: the other end is a program that reads lines.
pub struct Uart(Uart16550<PioBackend>);

impl Uart {
    /// The UART as it is.
    pub const fn new() -> Self {
        // SAFETY: ports 0x3f8..=0x3ff are COM1 on every PC. Writing them touches no memory, and the
        // console's lock (or the panic path, after it gave up on that lock) is the only
        // user.
        match unsafe { Uart16550::new_port(COM1_PORT) } {
            Ok(uart) => Self(uart),
            Err(_) => panic!("0x3f8 leaves room for eight ports"),
        }
    }

    /// Programs it.
    pub fn init(&mut self) {
        // Without a UART there is no place to report its absence.
        let _ = self.0.init(Config::DEFAULT);
    }
}

impl Default for Uart {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.send_bytes_exact(text.as_bytes());
        Ok(())
    }
}
