//! The logic of the Type-1 hypervisor image.
//!
//! The thin binary `hv-image` brings assembly and linker symbols; everything else is here, so that
//! what does not touch hardware is also compiled, linted and tested on the host. Boot goes through
//! [`machine::Machine::boot`], which brings up the console, memory, traps, clock, ACPI, PCI and the
//! other CPUs, and leaves a [`platform::BareMetal`] that the IOMMU crates run on.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod acpi;
pub mod command_line;
pub mod console;
pub mod last_words;
pub mod machine;
pub mod memory;
pub mod mmio;
pub mod nvme;
pub mod pci;
pub mod platform;
pub mod report;
pub mod scenario;
pub mod subsystem;
pub mod x86;

/// Most CPUs that the image uses; a machine with more is refused.
pub const MAX_CPUS: usize = 64;

/// The version that the log starts with.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
