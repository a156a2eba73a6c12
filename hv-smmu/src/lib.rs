//! Arm SMMUv3: firmware tables, bring-up, second-stage format, commands and events.
//!
//! Numbers stand in [`spec`] with their sources.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod ids;
pub mod spec;

pub use ids::{Asid, DeviceId, StallTag, StreamId, SubstreamId, Vmid};
