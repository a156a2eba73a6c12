//! The IOMMU backend of this architecture: VT-d, from the firmware's DMAR table.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use hv_iommu::{
    FaultBudget, InterruptRoute, InterruptSource, Iommu, PciFunction, RouteError, UnitIndex,
};
use hv_vtd::dmar::{self, DmarError};
use hv_vtd::{BringUpError, CoveragePolicy, UnitInfo, Vtd};
use thiserror::Error;

use super::{lapic, traps};
use crate::machine::Machine;
use crate::platform::BareMetal;
use crate::subsystem::UnitFacts;

/// The backend of this image.
pub type Backend = Vtd<&'static BareMetal>;

/// Whether a unit that is off lets requests through: VT-d has nothing to keep them.
pub const PASSES_WHEN_OFF: bool = true;

/// Why no unit is up.
#[derive(Debug, Error)]
pub enum BackendError {
    /// Firmware describes no IOMMU.
    #[error("firmware has no DMAR table: the machine has no VT-d, or it is switched off")]
    NoDmar,
    /// The firmware's table is damaged.
    #[error("DMAR table: {0}")]
    Dmar(#[from] DmarError),
    /// A unit cannot be used, or does not come up.
    #[error(transparent)]
    BringUp(#[from] BringUpError),
}

/// How many faults a device may cause.
pub fn fault_budget() -> FaultBudget {
    FaultBudget::default()
}

/// What firmware told of the machine, for people.
pub fn told_by(machine: &Machine) -> String {
    match machine.firmware {
        Some(table) => format!("DMAR table of {} bytes", table.len()),
        None => String::from("no DMAR table"),
    }
}

/// Reads the firmware's table, takes all units over, and turns translation on.
///
/// # Errors
/// [`BackendError`].
pub fn bring_up(
    machine: &Machine,
    functions: &[PciFunction],
) -> Result<(Backend, Vec<UnitFacts>), BackendError> {
    let table = machine.firmware.ok_or(BackendError::NoDmar)?;
    let dmar = dmar::parse(table)?;
    let discovery = Vtd::discover(machine.platform, &dmar, functions, CoveragePolicy::Strict)?;
    let units = discovery.units().map(facts).collect();
    Ok((discovery.bring_up()?, units))
}

/// Why the units tell of nothing by themselves.
pub type AnnounceError = RouteError;

/// Has the units tell of faults, and of errors of their own, by a message to the CPU that calls.
///
/// # Errors
/// [`AnnounceError`].
pub fn announce(iommu: &Iommu<Backend>, units: usize) -> Result<(), AnnounceError> {
    let route = InterruptRoute::Message(lapic::message(traps::UNIT));
    for unit in (0..units).filter_map(UnitIndex::new) {
        // What was in the log before is nobody's: no device was let through yet.
        iommu.route_interrupt(unit, InterruptSource::Faults, route, |_| ())?;
    }
    Ok(())
}

/// The interrupts for faults that came so far. All units send the same one, and it is for nothing else.
pub fn announcements(_iommu: &Iommu<Backend>, _unit: UnitIndex) -> u64 {
    traps::of_units()
}

fn facts(unit: &UnitInfo) -> UnitFacts {
    UnitFacts {
        base: unit.base(),
        segment: Some(unit.segment),
        version: format!("{}.{}", unit.version.major(), unit.version.minor()),
        registers: [
            ("CAP", unit.cap.into_bits()),
            ("ECAP", unit.ecap.into_bits()),
        ]
        .into_iter()
        .collect(),
        fault_records: unit.cap.fault_record_count(),
        features: unit.features().collect(),
    }
}
