//! The IOMMU subsystem on this machine: from the firmware's word to groups at rest.

use alloc::string::String;
use alloc::vec::Vec;

use arrayvec::ArrayVec;
use hv_core::{OutOfMemory, PhysAddr, Segment};
use hv_iommu::{Blocked, Config, Group, Iommu, PciFunction, SetupError};
use thiserror::Error;

pub use crate::arch::backend::Backend;
use crate::arch::backend::{self, AnnounceError, BackendError};
use crate::machine::Machine;
use crate::pci::{self, Function};

/// The subsystem, and what was found on the way.
pub struct Subsystem {
    /// The subsystem.
    pub iommu: Iommu<Backend>,
    /// Every group of devices that nobody holds.
    pub groups: Vec<Group<Backend, Blocked>>,
    /// The units as their registers describe them.
    pub units: Vec<UnitFacts>,
}

/// A unit as its registers describe it, for people.
#[derive(Clone, Debug)]
pub struct UnitFacts {
    /// Where its registers are.
    pub base: PhysAddr,
    /// The PCI segment that it serves, where it is one.
    pub segment: Option<Segment>,
    /// Version of its architecture.
    pub version: String,
    /// Its registers of capabilities, by name.
    pub registers: ArrayVec<(&'static str, u64), 8>,
    /// How many faults it can hold.
    pub fault_records: u32,
    /// What else it can do.
    pub features: Vec<&'static str>,
}

/// Why the machine has no IOMMU subsystem.
#[derive(Debug, Error)]
pub enum SubsystemError {
    /// No unit is up.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The subsystem over the units cannot be set up.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The units do not tell of faults by themselves.
    #[error("no interrupt can tell of faults: {0}")]
    Announce(#[from] AnnounceError),
    /// The heap is exhausted.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Takes all units over that firmware names, turns translation on, and has each unit tell of faults by an interrupt. No
/// device can do DMA from then on until it is attached to a domain.
///
/// # Errors
/// [`SubsystemError`].
pub fn bring_up(machine: &Machine) -> Result<Subsystem, SubsystemError> {
    let mut functions = Vec::new();
    functions
        .try_reserve(machine.functions.len())
        .map_err(|_| OutOfMemory {
            bytes: machine.functions.len() * size_of::<PciFunction>(),
        })?;
    pci::isolate(machine.platform, &machine.functions);
    let facts = |function: &Function| function.topology(machine.platform);
    functions.extend(machine.functions.iter().map(facts));
    let (units_up, units) = backend::bring_up(machine, &functions)?;
    let config = Config {
        faults: backend::fault_budget(),
        ..Config::default()
    };
    let (iommu, groups) = Iommu::new(units_up, &functions, config)?;
    backend::announce(&iommu, units.len())?;
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
