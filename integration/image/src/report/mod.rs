//! The machine-readable side of the serial log: `@@ ` lines with one JSON object each.

mod event;
mod json;

pub use event::{Event, FaultEvent, FunctionEvent, UnitEvent};

/// Writes one event to the console as one line.
pub fn emit(event: &Event<'_>) {
    crate::println!("@@ {event}");
}

/// Writes the panic event even if the console's lock is held by a CPU that stopped.
pub fn emit_panic(text: &dyn core::fmt::Display) {
    crate::console::print_last_words(format_args!("@@ {}\n", Event::Panic { text }));
}
