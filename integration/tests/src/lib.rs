//! What the cross-crate tests share: a host platform, a fake backend, an independent walker.

#[cfg(not(hv_loom))]
pub mod arena;
#[cfg(not(hv_loom))]
pub mod dmar_build;
#[cfg(not(hv_loom))]
pub mod failing;
#[cfg(not(hv_loom))]
pub mod fake;
#[cfg(not(hv_loom))]
pub mod heap;
#[cfg(not(hv_loom))]
pub mod host;
#[cfg(not(hv_loom))]
pub mod iort_build;
#[cfg(not(hv_loom))]
pub mod pool;
#[cfg(not(hv_loom))]
pub mod slab;
#[cfg(not(hv_loom))]
pub mod tree_build;
#[cfg(not(hv_loom))]
pub mod vmsa_walker;
#[cfg(not(hv_loom))]
pub mod walker;
