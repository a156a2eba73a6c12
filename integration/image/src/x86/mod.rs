//! The x86_64 machine: boot data, descriptor tables, traps, processors, clock, caches, ports.

pub mod boot_info;
pub mod cache;
pub mod clock;
pub mod cpu;
pub mod descriptors;
pub mod exit;
pub mod guard;
mod lapic;
mod pic;
pub mod smp;
pub mod traps;
