//! The logic of the Type-1 hypervisor image.
//!
//! The thin binary `hv-image` brings assembly and linker symbols; everything else is here, so that
//! what does not touch hardware is also compiled, linted and tested on the host. Boot goes through
//! [`arch::machine::boot`], which brings up memory, traps, clock, firmware's tables, PCI and the
//! other CPUs, and leaves a [`platform::BareMetal`] that the IOMMU crates run on.
//!
//! What differs between architectures is in `x86/` and `arm/`, which have the same inner interface; the rest of the
//! library calls it [`arch`].
#![cfg_attr(not(test), no_std)]

extern crate alloc;

#[cfg(target_arch = "aarch64")]
#[path = "arm/mod.rs"]
pub mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86/mod.rs"]
pub mod arch;

pub mod acpi;
pub mod command_line;
pub mod console;
pub mod cpus;
pub mod device_tree;
pub mod last_words;
pub mod machine;
pub mod memory;
pub mod mmio;
pub mod nvme;
pub mod outcome;
pub mod pci;
pub mod platform;
pub mod report;
pub mod scenario;
pub mod subsystem;

/// Most CPUs that the image uses; a machine with more is refused.
pub const MAX_CPUS: usize = 64;

/// The version that the log starts with.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
