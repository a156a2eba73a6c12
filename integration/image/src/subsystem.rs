//! The IOMMU subsystem on this machine: from the firmware's table to groups at rest.

use alloc::vec::Vec;

use hv_core::OutOfMemory;
use hv_iommu::{Blocked, Config, Group, Iommu, PciFunction, SetupError};
use hv_vtd::dmar::{self, DmarError};
use hv_vtd::{BringUpError, CoveragePolicy, UnitInfo, Vtd};
use thiserror::Error;

use crate::machine::Machine;
use crate::pci::{self, Function};
use crate::platform::BareMetal;

/// The backend of this image.
pub type Backend = Vtd<&'static BareMetal>;

/// The subsystem, and what was found on the way.
pub struct Subsystem {
    /// The subsystem.
    pub iommu: Iommu<Backend>,
    /// Every group of devices that nobody holds.
    pub groups: Vec<Group<Backend, Blocked>>,
    /// The units as their registers describe them.
    pub units: Vec<UnitInfo>,
}

/// Why the machine has no IOMMU subsystem.
#[derive(Debug, Error)]
pub enum SubsystemError {
    /// Firmware describes no IOMMU.
    #[error("firmware has no DMAR table: the machine has no VT-d, or it is switched off")]
    NoDmar,
    /// The firmware's table is damaged.
    #[error("DMAR table: {0}")]
    Dmar(#[from] DmarError),
    /// A unit cannot be used, or does not come up.
    #[error(transparent)]
    BringUp(#[from] BringUpError),
    /// The subsystem over the units cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Reads the firmware's table, takes all units over, and turns translation on. No device can do DMA
/// from then on until it is attached to a domain.
///
/// # Errors
/// [`SubsystemError`].
pub fn bring_up(machine: &Machine) -> Result<Subsystem, SubsystemError> {
    let table = machine.dmar.ok_or(SubsystemError::NoDmar)?;
    let dmar = dmar::parse(table)?;
    let mut functions = Vec::new();
    functions
        .try_reserve(machine.functions.len())
        .map_err(|_| OutOfMemory {
            bytes: machine.functions.len() * size_of::<PciFunction>(),
        })?;
    pci::isolate(machine.platform, &machine.functions);
    let facts = |function: &Function| function.topology(machine.platform);
    functions.extend(machine.functions.iter().map(facts));
    let discovery = Vtd::discover(machine.platform, &dmar, &functions, CoveragePolicy::Strict)?;
    let units = discovery.units().copied().collect();
    let backend = discovery.bring_up()?;
    let (iommu, groups) = Iommu::new(backend, &functions, Config::default())?;
    // Those that firmware goes on using, which a strict policy would have refused, stay blocked.
    let groups = groups
        .into_iter()
        .filter_map(|group| group.claimable().ok());
    Ok(Subsystem {
        iommu,
        groups: groups.collect(),
        units,
    })
}
