//! The bits of SMMUv3 as hardware sees them: registers, stream table, context descriptors, commands, events, tables.
//!
//! Written from what Linux, QEMU and TF-A agree on, and apart from the driver's own bits: what both have in
//! common is the hardware. Where sources leave something open, the stricter reading stands here.
//! "Linux" is `arm-smmu-v3.{h,c}` and `io-pgtable-arm.c`, "QEMU" is `smmuv3-internal.h` and `smmuv3.c`.

pub(crate) mod command;
pub(crate) mod context;
pub(crate) mod event;
pub(crate) mod guest;
pub(crate) mod identity;
pub(crate) mod iort;
pub(crate) mod registers;
pub(crate) mod services;
pub(crate) mod stage_one;
pub(crate) mod stage_two;
pub(crate) mod stream;
