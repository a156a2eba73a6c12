//! The serial console: `print!`, `println!`, and the backend of the `log` facade.
//!
//! One spin lock guards the UART, taken per formatted call, so lines of different CPUs do not mix.
//! A panic or trap may interrupt a CPU that holds the lock; [`print_last_words`] gets out all the
//! same.

mod logger;

use core::fmt::{self, Write};

use spin::Mutex;

use crate::arch::uart::Uart;

pub use logger::init as init_logger;

static UART: Mutex<Uart> = Mutex::new(Uart::new());

/// Programs the UART. Call once, before any other CPU runs.
///
/// A machine without a UART leaves the console silent, which is all that can be done about it.
pub fn init() {
    UART.lock().init();
}

/// Writes formatted text to the console as one unit.
pub fn print(args: fmt::Arguments<'_>) {
    // Uart::write_str never fails; a Display implementation may, and half a line is then what there
    // is to show.
    let _ = UART.lock().write_fmt(args);
}

/// Writes formatted text even if the lock is held by the CPU that calls, or by one that will never
/// run again.
///
/// For panics and traps only: waits for the lock for a bounded number of tries, then writes
/// regardless, at the price of mixed output.
pub fn print_last_words(args: fmt::Arguments<'_>) {
    // A few tenths of a second even under emulation.
    const TRIES: u32 = 300_000;
    for _ in 0..TRIES {
        if let Some(mut uart) = UART.try_lock() {
            let _ = uart.write_fmt(args);
            return;
        }
        core::hint::spin_loop();
    }
    let _ = Uart::new().write_fmt(format_args!("\n{args}"));
}

/// Prints to the console without ending the line.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(::core::format_args!($($arg)*)) };
}

/// Prints one line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(::core::format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::print(::core::format_args!("{}\n", ::core::format_args!($($arg)*))) };
}
