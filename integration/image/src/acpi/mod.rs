//! ACPI: from the RSDP to checked tables, and the two that the image itself decodes (MADT, MCFG).
//!
//! Tables are firmware input: every length is checked against what is mapped, every checksum is
//! verified, and damage is a typed error. The walk reads memory through [`TableMemory`], so that
//! tests feed it bytes.

mod error;
mod madt;
mod mcfg;
mod spec;
mod tables;

pub use error::AcpiError;
pub use madt::{LapicId, Madt, Processor};
pub use mcfg::Mcfg;
pub use tables::{IdentityTables, Signature, TableMemory, Tables};
