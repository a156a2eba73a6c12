//! The AArch64 machine at EL2: identity map, traps, processors, interrupt controller, firmware, clock, caches.

pub mod access;
pub mod backend;
pub mod cache;
pub mod clock;
pub mod cpu;
pub mod exit;
mod firmware;
mod gic;
pub mod machine;
pub mod paging;
pub mod smp;
pub mod traps;
pub mod uart;
