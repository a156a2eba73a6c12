//! PCI: configuration space, enumeration, and what a function says about itself.

mod assign;
mod bar;
mod ecam;
mod function;
mod kind;
mod scan;
mod spec;
mod topology;

#[cfg(test)]
mod fake;

pub use assign::{AssignError, Window, assign};
pub use bar::{Bar, BarError, memory_bar};
pub use ecam::{Ecam, EcamRegion};
pub use function::{Class, Function, Header, Identity, PortType};
pub use scan::{clear_bus_mastering, scan};
pub use topology::isolate;
