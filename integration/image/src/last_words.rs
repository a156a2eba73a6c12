//! Ending the run early: panics and refusals, in words and as an event.

use core::fmt::{self, Display};
use core::panic::PanicInfo;

use hv_core::sync::{AtomicBool, Ordering};

use crate::arch::exit::exit;
use crate::console::print_last_words;
use crate::outcome::Outcome;
use crate::report;

/// Set by the first panic: a panic while one is reported only ends the run.
static PANICKING: AtomicBool = AtomicBool::new(false);

/// A panic without line breaks in front of its message.
struct Panic<'a>(&'a PanicInfo<'a>);

impl Display for Panic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message())?;
        match self.0.location() {
            Some(place) => write!(f, " ({}:{})", place.file(), place.line()),
            None => Ok(()),
        }
    }
}

/// What the binary's panic handler does: report and leave.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    // ORDERING: Relaxed, the flag guards nothing but the report itself.
    if !PANICKING.swap(true, Ordering::Relaxed) {
        let panic = Panic(info);
        print_last_words(format_args!("[panic] {panic}\n"));
        report::emit_panic(&panic);
    }
    exit(Outcome::Refused)
}

/// Ends the run because the machine or its configuration cannot be used.
pub fn refuse(reason: &dyn Display) -> ! {
    print_last_words(format_args!("[error] {reason}\n"));
    report::emit_panic(reason);
    exit(Outcome::Refused)
}
