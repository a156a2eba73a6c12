//! A polled NVMe driver, the engine of DMA in the scenarios.
//!
//! It takes all memory that the device sees from a [`DmaMemory`], so the same driver runs on the
//! hypervisor's DMA API and on guest memory; it never touches bus mastering, which belongs to
//! whoever attached the device to a domain. One command is outstanding at a time. Every wait has a
//! deadline, and running into it is an error of its own kind: behind an IOMMU that blocks a queue,
//! a time-out is how that shows.

mod coherent;
mod dma;
mod driver;
mod error;
mod identify;
mod queue;
mod spec;

#[cfg(test)]
mod model;

pub use coherent::DomainMemory;
pub use dma::{DmaBuffer, DmaMemory};
pub use driver::{Controller, Lba, Parts, StartFailure, StopFailure, disable};
pub use error::{NvmeError, Wait};
pub use identify::{ControllerInfo, Namespace};
pub use spec::Status;
