//! Bits and only bits: what the hardware and the firmware tables look like, with sources.
//!
//! No copy of the Arm SMMUv3 specification (IHI 0070) was at hand. Numbers come from its closest
//! transcriptions, which agree unless an item says otherwise: Linux `drivers/iommu/arm/arm-smmu-v3` and
//! `io-pgtable-arm.c`, Xen `drivers/passthrough/arm/smmu-v3`, QEMU `hw/arm/smmuv3-internal.h`,
//! TF-A `smmu_v3.h`, ACPICA `actbl2.h`, and the device-tree binding `arm,smmu-v3`.

pub mod command;
pub mod context;
pub mod device_tree;
pub mod event;
pub mod first_stage;
pub mod granule;
pub mod id_registers;
pub mod iort;
pub mod madt;
pub mod message;
pub mod page_request;
pub mod queue;
pub mod quirks;
pub mod registers;
pub mod second_stage;
pub mod stream_entry;
pub mod stream_table;
pub mod user_unit;
pub mod walk;
