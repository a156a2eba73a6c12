//! The IOMMU backend of this architecture: SMMUv3, from the device tree.

use alloc::vec::Vec;

use core::time::Duration;
use hv_iommu::{FaultBudget, PciFunction};
use thiserror::Error;

use crate::machine::Machine;
use crate::platform::BareMetal;
use crate::subsystem::UnitFacts;

/// The backend of this image. No unit of it is ever made until the SMMU's backend takes its place.
pub type Backend = hv_vtd::Vtd<&'static BareMetal>;

/// Why no unit is up.
#[derive(Debug, Error)]
pub enum BackendError {
    /// There is no driver for the units.
    #[error("this image has no driver for an SMMU yet")]
    NoDriver,
}

/// How many faults a device may cause: QEMU's SMMU records a page that is blocked as a thousand faults of four bytes, and
/// a scenario blocks several.
pub fn fault_budget() -> FaultBudget {
    FaultBudget {
        faults: 100_000,
        within: Duration::from_secs(1),
    }
}

/// Takes all units over that the device tree names, and turns translation on.
///
/// # Errors
/// [`BackendError`].
pub fn bring_up(
    _machine: &Machine,
    _functions: &[PciFunction],
) -> Result<(Backend, Vec<UnitFacts>), BackendError> {
    Err(BackendError::NoDriver)
}
