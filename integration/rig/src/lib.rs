//! The rig: IOMMU hardware at its worst, in software, behind the traits that an embedder implements.
//!
//! A [`Rig`] plays a [`Machine`]. Its walkers keep every entry that they ever read and forget only what an
//! invalidation names; they fetch wide entries in halves and see memory late; its queues work late and in any
//! order that the manual allows; its devices send whenever they like. All of it follows a seed. A watcher
//! knows who owns what, and says which [`Rule`] was broken at the moment it is broken.
//!
//! # The whole subsystem with no hardware at all
//!
#![doc = "```"]
#![doc = include_str!("../examples/embed.rs")]
#![doc = "```"]

mod absent;
mod acpi;
mod bits;
mod bus;
mod cell;
mod core;
pub mod cpus;
mod devices;
mod dma;
mod drill;
mod driver;
mod firmware;
mod frontend;
pub mod hunt;
mod interrupt;
mod interrupt_drill;
mod ledger;
pub mod life;
mod machine;
mod memory;
pub mod nest;
mod notes;
mod pci;
pub mod planted;
mod platform;
mod refusing;
mod request;
mod rig;
mod rng;
mod rule;
mod services;
mod smmu;
mod trace;
mod vtd;
mod waking;

pub use absent::NoRegisters;
pub use bus::{Counts, Gap};
pub use cell::RigCell;
pub use devices::Answering;
pub use dma::Blocked;
pub use driver::{Driver, Policy, Vendor};
pub use firmware::NoTable;
pub use interrupt::{Cause, DOORBELL, Interrupt, Log, Signal, Trouble};
pub use ledger::Tenant;
pub use machine::{
    Capabilities, CxlCacheModel, FunctionModel, Impossible, Machine, RegionModel, ServicesModel,
    Temper, UnitModel, UnitRegisters,
};
pub use platform::RigRegisters;
pub use refusing::Refusing;
pub use request::Outcome;
pub use rig::{Failure, Rig};
pub use rng::Rng;
pub use rule::{Rule, Violation};
pub use services::Message;
pub use smmu::{GuestStage, Identity};
pub use vtd::{Cap, Ecap};
