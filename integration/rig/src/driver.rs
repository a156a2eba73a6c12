//! From a machine to running units as an embedder gets there, for each vendor.

use std::fmt;

use hv_iommu::{Backend, Dormant, FirmwareKept};
use hv_smmu::{DormantSmmu, Firmware, Smmu, Tables, iort, madt};
use hv_vtd::{CoveragePolicy, DormantVtd, Vtd, dmar};

use crate::rig::Rig;
use crate::{smmu, vtd};

/// Whose units a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vendor {
    /// Intel VT-d.
    Vtd,
    /// Arm SMMUv3.
    Smmu,
}

impl Vendor {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Vtd, Self::Smmu];

    /// The vendor with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|vendor| vendor.to_string() == name)
    }

    /// Where the registers of a unit are.
    pub(crate) const fn registers_at(self, unit: usize) -> u64 {
        match self {
            Self::Vtd => vtd::registers_at(unit),
            Self::Smmu => smmu::registers_at(unit),
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vtd => "vtd",
            Self::Smmu => "smmu",
        })
    }
}

/// A backend that runs on the rig's machines.
pub trait Driver: Backend<Platform = Rig> {
    /// Whose units it drives.
    const VENDOR: Vendor;

    /// Reads firmware's description of the machine and brings all units up.
    ///
    /// # Errors
    /// Why not, in the driver's words.
    fn start(rig: &Rig) -> Result<Self, String> {
        Self::start_by(rig, Policy::Strict)
    }

    /// The same by this policy.
    ///
    /// # Errors
    /// Why not, in the driver's words.
    fn start_by(rig: &Rig, policy: Policy) -> Result<Self, String>;

    /// What it is before it translates, where firmware's devices run on.
    type Asleep: Dormant<Backend = Self>;

    /// The same by the strict policy, but for devices that firmware goes on using: they are kept running.
    ///
    /// # Errors
    /// Why not, in the driver's words.
    fn start_keeping(rig: &Rig, kept: &FirmwareKept) -> Result<Self::Asleep, String>;
}

/// What a driver does about a machine that firmware goes on using a device of, or that is not wholly covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It refuses the machine.
    Strict,
    /// It says so, stops what has to be, and goes on.
    Lenient,
}

impl Driver for Vtd<Rig> {
    const VENDOR: Vendor = Vendor::Vtd;

    fn start_by(rig: &Rig, policy: Policy) -> Result<Self, String> {
        let bytes = rig.dmar().map_err(|error| error.to_string())?;
        let table = dmar::parse(&bytes).map_err(|error| error.to_string())?;
        let functions = rig.functions();
        let policy = match policy {
            Policy::Strict => CoveragePolicy::Strict,
            Policy::Lenient => CoveragePolicy::Lenient,
        };
        let discovery = Self::discover(rig.clone(), &table, &functions, policy);
        let backend = discovery.and_then(hv_vtd::Discovery::bring_up);
        backend.map_err(|error| error.to_string())
    }

    type Asleep = DormantVtd<Rig>;

    fn start_keeping(rig: &Rig, kept: &FirmwareKept) -> Result<DormantVtd<Rig>, String> {
        let bytes = rig.dmar().map_err(|error| error.to_string())?;
        let table = dmar::parse(&bytes).map_err(|error| error.to_string())?;
        let (functions, strict) = (rig.functions(), CoveragePolicy::Strict);
        let discovery = Self::discover_keeping(rig.clone(), &table, &functions, strict, kept);
        let backend = discovery.and_then(hv_vtd::KeepingDiscovery::bring_up);
        backend.map_err(|error| error.to_string())
    }
}

/// With tables of any granule that all units have.
impl<F: Tables> Driver for Smmu<Rig, F> {
    const VENDOR: Vendor = Vendor::Smmu;

    fn start_by(rig: &Rig, policy: Policy) -> Result<Self, String> {
        let firmware = rig.smmu_firmware()?;
        let functions = rig.functions();
        let policy = match policy {
            Policy::Strict => hv_smmu::CoveragePolicy::Strict,
            Policy::Lenient => hv_smmu::CoveragePolicy::Lenient,
        };
        let discovery = Self::discover_with(rig.clone(), firmware, &functions, policy);
        let backend = discovery.and_then(hv_smmu::Discovery::bring_up);
        backend.map_err(|error| error.to_string())
    }

    type Asleep = DormantSmmu<Rig, F>;

    fn start_keeping(rig: &Rig, kept: &FirmwareKept) -> Result<DormantSmmu<Rig, F>, String> {
        let firmware = rig.smmu_firmware()?;
        let (functions, strict) = (rig.functions(), hv_smmu::CoveragePolicy::Strict);
        let discovery =
            Self::discover_keeping_with(rig.clone(), firmware, &functions, strict, kept);
        let backend = discovery.and_then(hv_smmu::KeepingDiscovery::bring_up);
        backend.map_err(|error| error.to_string())
    }
}

impl Rig {
    /// What a driver of SMMUs reads of firmware's tables: the IORT, and the MADT for where interrupt services are.
    ///
    /// # Errors
    /// Why not, in the driver's words.
    pub fn smmu_firmware(&self) -> Result<Firmware, String> {
        let bytes = self.iort().map_err(|error| error.to_string())?;
        let table = iort::parse(&bytes).map_err(|error| error.to_string())?;
        let mut firmware = table.describe().map_err(|error| error.to_string())?;
        let places = madt::parse(&self.madt()).map_err(|error| error.to_string())?;
        firmware.place_services(&places);
        Ok(firmware)
    }
}
