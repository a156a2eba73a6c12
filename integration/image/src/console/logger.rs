//! The `log` facade on the console: warnings and errors carry their level, the rest are plain
//! lines.

use log::{Level, LevelFilter, Log, Metadata, Record};

struct ConsoleLogger;

static LOGGER: ConsoleLogger = ConsoleLogger;

/// Routes the `log` macros to the console, from `info` up. A second call changes nothing.
pub fn init() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for ConsoleLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match record.level() {
            Level::Error => crate::println!("[error] {}", record.args()),
            Level::Warn => crate::println!("[warn] {}", record.args()),
            Level::Info => crate::println!("{}", record.args()),
            Level::Debug => crate::println!("[debug] {}", record.args()),
            Level::Trace => crate::println!("[trace] {}", record.args()),
        }
    }

    fn flush(&self) {}
}
