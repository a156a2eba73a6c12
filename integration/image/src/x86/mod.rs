//! The x86_64 machine: boot data, descriptor tables, traps, processors, clock, caches, ports.

pub mod access;
pub mod backend;
pub mod boot_info;
pub mod cache;
pub mod clock;
pub mod cpu;
pub mod descriptors;
pub mod exit;
pub mod guard;
mod lapic;
pub mod machine;
pub mod paging;
mod pic;
pub mod smp;
pub mod traps;
pub mod uart;
