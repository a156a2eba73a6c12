//! Bits and only bits: what the hardware and the firmware tables look like, with sources.
//!
//! No copy of the VT-d specification was at hand. Numbers come from its closest transcriptions,
//! which agree unless an item says otherwise: Linux `drivers/iommu/intel/iommu.h` and `dmar.c`,
//! Xen `drivers/passthrough/vtd`, QEMU `intel_iommu_internal.h`, VirtualBox `iommu-intel.h`,
//! edk2-platforms `Vtd.h`, ACPICA `actbl1.h` and public Intel datasheets.

pub mod capability;
pub mod dmar;
pub mod fault;
pub mod invalidation;
pub mod pci;
pub mod quirks;
pub mod registers;
pub mod root_context;
pub mod second_stage;
