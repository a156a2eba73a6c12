//! Intel VT-d: firmware tables, bring-up, second-stage format, invalidation and faults.
//!
//! [`dmar::parse`] reads the firmware table, [`Vtd::discover`] looks at the units that it lists,
//! [`Discovery::bring_up`] starts them, and [`Vtd`] is then the [`hv_iommu::Backend`]. Legacy mode
//! (root and context tables) with queued invalidation; numbers stand in [`spec`] with sources.
//!
//! A unit that is off lets everything through: see [`Iommu::shut_down`](hv_iommu::Iommu::shut_down).

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod backend;
mod caps;
mod context;
mod coverage;
mod descriptor;
mod discovery;
pub mod dmar;
mod error;
mod faults;
mod queue;
mod quirks;
mod regions;
mod second_stage;
pub mod spec;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unit;

pub use backend::Vtd;
pub use coverage::{Coverage, CoverageError, CoveragePolicy, CoverageProblem, Unresolved};
pub use discovery::{Discovery, DormantVtd, KeepingDiscovery};
pub use error::BringUpError;
pub use second_stage::SecondStage;
pub use unit::{UnitInfo, UnitRefusal};
