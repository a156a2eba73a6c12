//! The IOMMU backend of this architecture: SMMUv3, from the device tree.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use hv_iommu::{
    FaultBudget, InterruptRoute, InterruptSource, Iommu, PciFunction, RouteError, UnitIndex,
};
use hv_smmu::device_tree::{self, TreeError};
use hv_smmu::{BringUpError, CoveragePolicy, Smmu, UnitInfo};
use thiserror::Error;

use super::gic::{self, GicSetupError};
use super::smp::this_cpu;
use crate::machine::Machine;
use crate::platform::BareMetal;
use crate::subsystem::UnitFacts;

/// The backend of this image: tables of 4 KiB pages.
pub type Backend = Smmu<&'static BareMetal>;

/// Whether a unit that is off, and was shut down, lets requests through: an SMMU's gate is closed.
pub const PASSES_WHEN_OFF: bool = false;

/// Why no unit is up.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The tree lists no SMMU.
    #[error(
        "the device tree has no SMMUv3 (compatible \"arm,smmu-v3\"): QEMU's virt board has one with iommu=smmuv3"
    )]
    NoUnit,
    /// The tree is damaged.
    #[error("device tree: {0}")]
    Tree(#[from] TreeError),
    /// A unit cannot be used, or does not come up.
    #[error(transparent)]
    BringUp(#[from] BringUpError),
}

/// Why the units tell of nothing by themselves.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// The interrupt controller.
    #[error(transparent)]
    Gic(#[from] GicSetupError),
    /// A unit.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The tree names no wire.
    #[error(
        "the device tree names no wire for {interrupt_source} of {unit}: expected one in the node's \"interrupts\", by \
         \"interrupt-names\""
    )]
    NoWire {
        /// The unit.
        unit: UnitIndex,
        /// What the unit would have told. Not called `source`, which would be this error's cause.
        interrupt_source: InterruptSource,
    },
}

/// How many faults a device may cause: QEMU's SMMU records a page that is blocked as a thousand faults of four bytes, and
/// a scenario blocks several.
pub fn fault_budget() -> FaultBudget {
    FaultBudget {
        faults: 100_000,
        within: Duration::from_secs(1),
    }
}

/// What firmware told of the machine, and where, for people.
pub fn told_by(machine: &Machine) -> String {
    format!("{}", machine.firmware)
}

/// Takes all units over that the device tree names, and turns translation on.
///
/// # Errors
/// [`BackendError`].
pub fn bring_up(
    machine: &Machine,
    functions: &[PciFunction],
) -> Result<(Backend, Vec<UnitFacts>), BackendError> {
    let firmware = device_tree::parse(machine.firmware.tree)?;
    if firmware.units.is_empty() {
        return Err(BackendError::NoUnit);
    }
    let policy = CoveragePolicy::Strict;
    let discovery = Backend::discover(machine.platform, firmware, functions, policy)?;
    let units = discovery.units().map(facts).collect();
    Ok((discovery.bring_up()?, units))
}

/// Has the units tell of faults and of their own errors by interrupts, each by its wire, at the CPU that calls.
///
/// # Errors
/// [`AnnounceError`].
pub fn announce(iommu: &Iommu<Backend>, units: usize) -> Result<(), AnnounceError> {
    for unit in (0..units).filter_map(UnitIndex::new) {
        for source in [InterruptSource::Faults, InterruptSource::Errors] {
            let wire = iommu.wired_interrupt(unit, source);
            let wire = wire.ok_or(AnnounceError::NoWire {
                unit,
                interrupt_source: source,
            })?;
            // The controller first: an edge that nobody takes is lost.
            gic::listen(wire, this_cpu())?;
            // What was in the logs before is nobody's: no device was let through yet.
            iommu.route_interrupt(unit, source, InterruptRoute::Wired, |_| ())?;
        }
    }
    Ok(())
}

/// The interrupts that came so far on the unit's wire for faults. That for its errors is none of them: it tells of an
/// event queue that is full, so a thousand faults would be told by it alone.
pub fn announcements(iommu: &Iommu<Backend>, unit: UnitIndex) -> u64 {
    let wire = iommu.wired_interrupt(unit, InterruptSource::Faults);
    wire.map_or(0, gic::taken)
}

fn facts(unit: &UnitInfo) -> UnitFacts {
    UnitFacts {
        base: unit.base(),
        segment: None,
        version: format!("3.{}", unit.aidr.minor()),
        registers: [
            ("IDR0", u64::from(unit.idr0.into_bits())),
            ("IDR1", u64::from(unit.idr1.into_bits())),
            ("IDR3", u64::from(unit.idr3.into_bits())),
            ("IDR5", u64::from(unit.idr5.into_bits())),
        ]
        .into_iter()
        .collect(),
        fault_records: unit.event_records(),
        features: unit.features().collect(),
    }
}
