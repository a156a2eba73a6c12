//! Arm SMMUv3: firmware tables, bring-up, second-stage format, commands and events.
//!
//! [`iort::parse`] or [`device_tree::parse`] read what firmware says, as [`Firmware`]. Numbers stand in [`spec`] with their sources.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod device_tree;
pub mod firmware;
mod ids;
pub mod iort;
mod list;
pub mod spec;
mod window;

pub use firmware::Firmware;
pub use ids::{Asid, DeviceId, StallTag, StreamId, SubstreamId, Vmid};
pub use window::IdWindow;
