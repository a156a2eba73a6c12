//! Arm SMMUv3: firmware tables, bring-up, table format of both stages, commands and events.
//!
//! [`iort::parse`] (with [`madt::parse`], for where interrupt services are) or [`device_tree::parse`] read what firmware says, as
//! [`Firmware`]; [`Coverage`] decides from it which
//! unit translates for which requester, and as which stream. [`Smmu::discover`] looks at the units,
//! [`Discovery::bring_up`] starts them, and [`Smmu`] is then the [`hv_iommu::Backend`]. Numbers stand in [`spec`] with
//! their sources.
//!
//! A unit that is off lets nothing through until somebody opens its gate (GBPA.ABORT), which
//! [`Iommu::shut_down`](hv_iommu::Iommu::shut_down) leaves closed.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod backend;
mod caps;
mod change;
mod command_queue;
mod contexts;
mod coverage;
mod device_tlbs;
pub mod device_tree;
mod discovery;
pub mod entry_update;
mod error;
mod event_queue;
pub mod firmware;
mod frames;
mod ids;
mod invalidate;
pub mod iort;
pub mod madt;
mod nested;
mod owed;
mod page_queue;
mod pasid;
mod pinned;
mod record_queue;
mod regions;
mod root;
pub mod spec;
mod stream_table;
mod unit;
mod vmsa;
mod window;

pub use backend::Smmu;
pub use change::{BlockChanges, Change, change};
pub use coverage::{Coverage, CoverageError, CoveragePolicy, CoverageProblem, Requester, Way};
pub use discovery::{Discovery, DormantSmmu, KeepingDiscovery};
pub use error::BringUpError;
pub use firmware::Firmware;
pub use ids::{Asid, DeviceId, StallTag, StreamId, SubstreamId, Vmid};
pub use nested::{UserCommandWords, UserEntryWords, UserEventWords, UserStage, user_event};
pub use regions::{Regions, RegionsError};
pub use root::RootFields;
pub use spec::user_unit::UserUnit;
pub use unit::{HandOver, Telling, UnitInfo, UnitRefusal};
pub use vmsa::{MemoryType, Stage, Tables, Vmsa, Vmsa16K, Vmsa64K};
pub use window::IdWindow;
