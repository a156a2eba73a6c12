//! From firmware table to running units: look first, then touch.

use alloc::vec::Vec;

use hv_core::platform::Platform;
use hv_iommu::{PciFunction, UnitIndex};
use log::{info, warn};

use crate::backend::Vtd;
use crate::bus_master;
use crate::coverage::{Coverage, CoverageError, CoveragePolicy};
use crate::dmar::{Dmar, push};
use crate::error::BringUpError;
use crate::quirks;
use crate::regions::Regions;
use crate::unit::{Discovered, Unit, UnitInfo};

/// The units of a machine, looked at but not touched.
pub struct Discovery<P: Platform> {
    platform: P,
    units: Vec<Unit<P, Discovered>>,
    coverage: Coverage,
    regions: Regions,
    functions: Vec<PciFunction>,
}

impl<P: Platform> Discovery<P> {
    /// Reads every unit of `dmar` and decides which covers each of `functions`.
    pub(crate) fn new(
        platform: P,
        dmar: &Dmar,
        functions: &[PciFunction],
        policy: CoveragePolicy,
    ) -> Result<Self, BringUpError> {
        for warning in &dmar.warnings {
            warn!("VT-d: {warning}");
        }
        let coverage = Coverage::new(&platform, dmar, functions)?;
        coverage.check(policy)?;
        if policy == CoveragePolicy::Strict {
            refuse_doubtful(dmar, &coverage, functions)?;
        }
        let regions = Regions::new(&platform, dmar, policy)?;
        let live_resize = quirks::live_resize(&platform, functions);
        if !live_resize {
            warn!("VT-d: page sizes of this machine's mappings change with a gap only");
        }
        let mut units = Vec::new();
        for (number, drhd) in dmar.units.iter().enumerate() {
            let found = dmar.units.len();
            let index = UnitIndex::new(number).ok_or(CoverageError::TooManyUnits { found })?;
            let unit = Unit::discover(&platform, index, &dmar.header, drhd)?;
            let unit = unit.with_live_resize(live_resize);
            info!("VT-d: {}", unit.info());
            let cap = unit.info().cap;
            if !(cap.drd() && cap.dwd()) {
                let cap = cap.into_bits();
                let problem = BringUpError::NoDrain { unit: index, cap };
                match policy {
                    CoveragePolicy::Strict => return Err(problem),
                    CoveragePolicy::Lenient => warn!("VT-d: {problem}"),
                }
            }
            push(&mut units, unit)?;
        }
        let mut kept = Vec::new();
        for &function in functions {
            push(&mut kept, function)?;
        }
        Ok(Self {
            platform,
            units,
            coverage,
            regions,
            functions: kept,
        })
    }

    /// What each unit is, in the order of the table.
    pub fn units(&self) -> impl Iterator<Item = &UnitInfo> {
        self.units.iter().map(Unit::info)
    }

    /// Which unit covers whom.
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The platform.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Takes every function off the bus, then starts all units, each step on all of them before
    /// the next. When it returns, a requester that is not bound reaches no memory.
    ///
    /// Bus mastering is off everywhere then, of bridges too, until a group is attached and asks for
    /// it.
    ///
    /// # Errors
    /// [`BringUpError`] names the unit or function. Bus mastering may be off then.
    pub fn bring_up(self) -> Result<Vtd<P>, BringUpError> {
        let Self {
            platform,
            units,
            coverage,
            regions,
            functions,
        } = self;
        bus_master::turn_off(&platform, &functions)?;
        let units = on_all(units, |unit| unit.start_queue(&platform))?;
        let units = on_all(units, |unit| unit.set_root(&platform))?;
        let units = on_all(units, |unit| unit.flush(&platform))?;
        let units = on_all(units, |unit| unit.enable(&platform))?;
        info!("VT-d: {} units translate", units.len());
        Ok(Vtd::new(platform, units, coverage, regions)?)
    }
}

/// Does one step on every unit.
fn on_all<P: Platform, S, T>(
    units: Vec<Unit<P, S>>,
    step: impl Fn(Unit<P, S>) -> Result<Unit<P, T>, BringUpError>,
) -> Result<Vec<Unit<P, T>>, BringUpError> {
    let mut done = Vec::new();
    for unit in units {
        push(&mut done, step(unit)?)?;
    }
    Ok(done)
}

/// Refuses a table in which a unit may have been lost: a structure may be damaged into one of
/// another kind, of which only the checksum, or that it makes no sense as that kind, tells.
fn refuse_doubtful(
    dmar: &Dmar,
    coverage: &Coverage,
    functions: &[PciFunction],
) -> Result<(), BringUpError> {
    let garbled = dmar.warnings.iter().find(|finding| finding.is_garbled());
    if let Some(what) = garbled {
        return Err(BringUpError::Doubtful { what: *what });
    }
    let sum = dmar.warnings.iter().find(|finding| finding.is_checksum());
    let Some(what) = sum else { return Ok(()) };
    // Shipped tables have wrong checksums. One is believed if it says something about every function,
    // not only that some unit takes the rest, among which a lost unit's devices would be.
    let named = |function: &PciFunction| coverage.is_named(function.address);
    if dmar.warnings.len() > 1 || !functions.iter().all(named) {
        return Err(BringUpError::Doubtful { what: *what });
    }
    Ok(())
}
