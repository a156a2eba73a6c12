//! Arm SMMUv3: firmware tables, bring-up, second-stage format, commands and events.
//!
//! [`iort::parse`] or [`device_tree::parse`] read what firmware says, as [`Firmware`]; [`Coverage`] decides from it which
//! unit translates for which requester, and as which stream. Numbers stand in [`spec`] with their sources.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod change;
mod coverage;
pub mod device_tree;
pub mod firmware;
mod ids;
pub mod iort;
mod list;
mod regions;
mod root;
mod second_stage;
pub mod spec;
mod window;

pub use change::{BlockChanges, Change, change};
pub use coverage::{Coverage, CoverageError, CoveragePolicy, CoverageProblem, Requester, Way};
pub use firmware::Firmware;
pub use ids::{Asid, DeviceId, StallTag, StreamId, SubstreamId, Vmid};
pub use regions::{Regions, RegionsError};
pub use root::RootFields;
pub use second_stage::{MemoryType, SecondStage, SecondStage16K, SecondStage64K};
pub use window::IdWindow;
