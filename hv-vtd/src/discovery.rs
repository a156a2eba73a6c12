//! From firmware table to running units: look first, then touch.

#![expect(unsafe_code, reason = "promises what units that are asleep do")]

use alloc::vec::Vec;

use hv_core::list::push;
use hv_core::platform::Platform;
use hv_iommu::{
    Dormant, Keeping, PciFunction, ReservedKind, UnitError, UnitIndex, turn_off_bus_mastering,
};
use log::{info, warn};

use crate::backend::Vtd;
use crate::coverage::{Coverage, CoverageError, CoveragePolicy};
use crate::dmar::Dmar;
use crate::error::BringUpError;
use crate::quirks;
use crate::regions::Regions;
use crate::unit::{Discovered, Enabled, Flushed, Unit, UnitInfo};

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
        keeps: bool,
    ) -> Result<Self, BringUpError> {
        for warning in &dmar.warnings {
            warn!("VT-d: {warning}");
        }
        let coverage = Coverage::new(&platform, dmar, functions)?;
        coverage.check(policy)?;
        if policy == CoveragePolicy::Strict {
            refuse_doubtful(dmar, &coverage, functions)?;
        }
        let regions = Regions::new(&platform, dmar, policy, keeps)?;
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
        let prepared = self.prepare(false)?;
        let vtd = prepared.into_backend(|unit, platform| unit.enable(platform))?;
        info!("VT-d: {} units translate", vtd.units().count());
        Ok(vtd)
    }

    /// All but turning translation on; with `keeps`, also but for devices that firmware goes on using.
    fn prepare(self, keeps: bool) -> Result<Prepared<P>, BringUpError> {
        let Self {
            platform,
            units,
            coverage,
            regions,
            functions,
        } = self;
        let is_pinned = |function: &PciFunction| {
            let mut regions = regions.of(&coverage, function.address);
            regions.any(|region| region.kind == ReservedKind::Pinned)
        };
        let leads_to = |port: &PciFunction, function: &PciFunction| {
            let (at, buses) = (function.address, port.kind.buses());
            let behind = buses.is_some_and(|buses| buses.contains(at.bus()));
            behind && at.segment() == port.address.segment()
        };
        turn_off_bus_mastering(&platform, &functions, |function| {
            let mut pinned = functions.iter().filter(|other| is_pinned(other));
            keeps && (is_pinned(function) || pinned.any(|other| leads_to(function, other)))
        })?;
        let units = on_all(units, |unit| unit.start_queue(&platform))?;
        let units = on_all(units, |unit| unit.set_root(&platform))?;
        let units = on_all(units, |unit| unit.flush(&platform))?;
        Ok(Prepared {
            platform,
            units,
            coverage,
            regions,
        })
    }
}

/// All that a backend is made of, with units that translate next.
struct Prepared<P: Platform> {
    platform: P,
    units: Vec<Unit<P, Flushed>>,
    coverage: Coverage,
    regions: Regions,
}

impl<P: Platform> Prepared<P> {
    /// The backend, after this last step on each unit.
    fn into_backend(
        self,
        step: impl Fn(Unit<P, Flushed>, &P) -> Result<Unit<P, Enabled>, BringUpError>,
    ) -> Result<Vtd<P>, BringUpError> {
        let units = on_all(self.units, |unit| step(unit, &self.platform))?;
        Ok(Vtd::new(self.platform, units, self.coverage, self.regions)?)
    }
}

/// The units of a machine, looked at, for a bring-up that keeps devices running which firmware goes on using.
pub struct KeepingDiscovery<P: Platform>(pub(crate) Discovery<P>);

impl<P: Platform> KeepingDiscovery<P> {
    /// What each unit is, in the order of the table.
    pub fn units(&self) -> impl Iterator<Item = &UnitInfo> {
        self.0.units()
    }

    /// Takes every function off the bus but those that firmware goes on using, and bridges on their way; then starts all
    /// units but for translation. [`Iommu::new_keeping`](hv_iommu::Iommu::new_keeping) does the rest.
    ///
    /// # Errors
    /// [`BringUpError`] names the unit or function. Bus mastering may be off then.
    pub fn bring_up(self) -> Result<DormantVtd<P>, BringUpError> {
        let prepared = self.0.prepare(true)?;
        let vtd = prepared.into_backend(|unit, _| Ok(unit.ready()))?;
        Ok(DormantVtd(vtd))
    }
}

/// All VT-d units of a machine, up but for translation.
pub struct DormantVtd<P: Platform>(Vtd<P>);

// SAFETY: the queue runs and the root table is set, so entries and invalidations work as ever, and count from the moment
// that the unit sets its translation on: it does so between two requests. `wake` waits for that on every unit.
unsafe impl<P: Platform> Dormant for DormantVtd<P> {
    type Backend = Vtd<P>;

    fn into_backend(self, _: Keeping) -> Vtd<P> {
        self.0
    }

    fn wake(backend: &Vtd<P>) -> Result<(), UnitError> {
        backend.translate()
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
