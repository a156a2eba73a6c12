//! Why a machine's VT-d units are not brought up.

use hv_core::platform::RegistersError;
use hv_core::{OutOfMemory, PciAddress, PhysAddr, PhysRange, RangeError};
use hv_iommu::{StaysOn, UnitError, UnitIndex};
use thiserror::Error;

use crate::coverage::CoverageError;
use crate::dmar::{Finding, ScopeKind};
use crate::unit::UnitRefusal;

/// Why discovery or bring-up stopped. Bus mastering may be off everywhere then, and units may be
/// partly set up; the frames that they were given are not given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BringUpError {
    /// Some device would go round every unit.
    #[error(transparent)]
    Coverage(#[from] CoverageError),
    /// A unit's registers cannot be mapped.
    #[error("{unit}: {why}")]
    Registers {
        /// The unit.
        unit: UnitIndex,
        /// Why not.
        why: RegistersError,
    },
    /// A unit is not one that this version drives.
    #[error("{unit} at {base} is refused: {why}")]
    Refused {
        /// The unit.
        unit: UnitIndex,
        /// Where its registers are.
        base: PhysAddr,
        /// Why.
        why: UnitRefusal,
    },
    /// A unit did not do what was asked, or there was no frame for it.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// Firmware wants a region mapped for a device that is on this machine.
    #[error(
        "firmware goes on using {region} with {device} (RMRR), and bring-up would stop that: expected no such \
         device, found one; turn it off in the firmware setup, keep it running (`discover_keeping`; the rig's example \
         `keeping` goes that way), or accept by a lenient policy that it stands still until the hypervisor claims it"
    )]
    ReservedRegion {
        /// The region.
        region: PhysRange,
        /// The device.
        device: PciAddress,
    },
    /// Firmware wants a region mapped that the platform does not say is firmware's.
    #[error(
        "firmware wants {region} mapped for {device} (RMRR): expected memory that the memory map reserves, found \
         some that may be the hypervisor's or a guest's; a lenient policy would keep the device from every domain"
    )]
    RegionNotFirmwares {
        /// The region.
        region: PhysRange,
        /// The device.
        device: PciAddress,
    },
    /// Firmware wants a region mapped for something that is no PCI function.
    #[error(
        "firmware reserves {region} for a scope of kind {kind:?} (RMRR), which bring-up would stop: expected PCI \
         functions only"
    )]
    ReservedRegionOfOther {
        /// The region.
        region: PhysRange,
        /// What it is for.
        kind: ScopeKind,
    },
    /// The firmware's table is damaged in a way that may hide a unit or a region.
    #[error(
        "the DMAR table may hide a unit: {what}; a lenient policy would take the table as it reads"
    )]
    Doubtful {
        /// What is wrong with the table.
        what: Finding,
    },
    /// A unit cannot be made to let requests in flight reach memory before a flush completes.
    #[error(
        "{unit} drains neither reads nor writes (CAP {cap:#x}): a device could still write memory \
         after it was given back; a lenient policy would accept that"
    )]
    NoDrain {
        /// The unit.
        unit: UnitIndex,
        /// Its capability register.
        cap: u64,
    },
    /// A function goes on mastering the bus, or reaching memory past it.
    #[error(transparent)]
    BusMaster(#[from] StaysOn),
    /// A register range cannot be formed.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// There was no memory for the list of units.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}
