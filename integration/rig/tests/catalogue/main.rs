//! The catalogue: each class of fault that IOMMU code in production has shipped, tried on the rig.
//!
//! A test is named after its class and the best-known instance. `integration/rig/CATALOGUE.md` is the table,
//! with the classes that wait for their feature.

#![cfg(not(hv_fault))]

mod entries;
mod faults;
mod flushes;
mod guests;
mod lending;
mod ownership;
mod regions;
mod sizes;
mod stand;
mod timeouts;
mod units;
