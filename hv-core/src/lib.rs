//! The vocabulary of the IOMMU subsystem and its contract with the hypervisor that embeds it.
//!
//! Here live the address, size, permission and identity types, frames with their owners, the
//! traits an embedder implements ([`platform`]), the atomics shim that loom can take over
//! ([`sync`]), and the deliberate faults of test builds ([`fault`]). Nothing here knows what an
//! IOMMU is.

#![cfg_attr(not(any(test, hv_loom)), no_std)]

extern crate alloc;

mod addr;
mod cell;
pub mod fault;
mod frame;
mod guest;
mod guest_index;
mod ids;
pub mod list;
mod mmio;
mod owner;
mod perms;
pub mod platform;
mod range;
mod shared;
pub mod sync;
mod try_lock;

pub use addr::{Gpa, Iova, PageCount, PageSize, PhysAddr};
pub use cell::EntryCell;
pub use frame::{FrameRun, OutOfBounds, SplitError};
pub use guest::{GuestMemory, GuestMemoryError, GuestSlot, Loan, SlotKind};
pub use guest_index::guest_index;
pub use ids::{CpuId, Pasid, PciAddress, PciAddressError, Segment, VmId};
pub use mmio::MmioRun;
pub use owner::{FrameOwner, Guest, Hypervisor, KernelPaging, Owner, OwnerId, UserManaged};
pub use perms::{Access, Perms};
pub use range::{Address, GpaRange, IovaRange, PageRange, PhysRange, RangeError};
pub use shared::{OutOfMemory, Shared};
pub use try_lock::TryLock;
