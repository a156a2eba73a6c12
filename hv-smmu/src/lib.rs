//! Arm SMMUv3: firmware tables, bring-up, second-stage format, commands and events.
//!
//! Numbers stand in [`spec`] with their sources.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod change;
mod root;
mod second_stage;
pub mod spec;

pub use change::{BlockChanges, Change, change};
pub use root::RootFields;
pub use second_stage::{MemoryType, SecondStage, SecondStage16K, SecondStage64K};
