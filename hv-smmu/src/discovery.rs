//! From firmware's description to running units: look first, then touch.

use alloc::vec::Vec;
use core::marker::PhantomData;

use hv_core::OutOfMemory;
use hv_core::platform::Platform;
use hv_iommu::{PciFunction, UnitIndex, turn_off_bus_mastering};
use log::info;

use crate::SecondStage;
use crate::backend::Smmu;
use crate::coverage::Coverage;
use crate::error::BringUpError;
use crate::second_stage::StageTwo;
use crate::unit::{Discovered, Unit, UnitDescription, UnitInfo};

/// The units of a machine, looked at but not touched.
pub struct Discovery<P: Platform, F: StageTwo = SecondStage> {
    platform: P,
    units: Vec<Unit<P, Discovered>>,
    coverage: Coverage,
    functions: Vec<PciFunction>,
    format: PhantomData<F>,
}

impl<P: Platform, F: StageTwo> Discovery<P, F> {
    /// Reads every unit. Writes nothing.
    ///
    /// # Errors
    /// [`BringUpError`]: a unit that this version does not drive.
    pub fn new(
        platform: P,
        descriptions: &[UnitDescription],
        coverage: Coverage,
        functions: &[PciFunction],
    ) -> Result<Self, BringUpError> {
        let mut units = Vec::new();
        let found = descriptions.len();
        for (number, description) in descriptions.iter().enumerate() {
            let index = UnitIndex::new(number).ok_or(BringUpError::TooManyUnits { found })?;
            let unit = Unit::discover(&platform, index, description, F::GRANULE)?;
            info!("{}", unit.info());
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
            functions: kept,
            format: PhantomData,
        })
    }

    /// What each unit is, in the order of firmware's description.
    pub fn units(&self) -> impl Iterator<Item = &UnitInfo> {
        self.units.iter().map(Unit::info)
    }

    /// Which unit covers whom, as which stream.
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// The platform.
    pub const fn platform(&self) -> &P {
        &self.platform
    }

    /// Takes every function off the bus, then starts all units, each step on all of them before the next. When it
    /// returns, a requester that is not bound reaches no memory.
    ///
    /// Bus mastering is off everywhere then, of bridges too, until a group is attached and asks for it.
    ///
    /// # Errors
    /// [`BringUpError`] names the unit or function. Bus mastering may be off then, and units may abort everything.
    pub fn bring_up(self) -> Result<Smmu<P, F>, BringUpError> {
        let Self {
            platform,
            units,
            coverage,
            functions,
            format: PhantomData,
        } = self;
        turn_off_bus_mastering(&platform, &functions)?;
        let units = on_all(units, |unit| unit.close(&platform))?;
        let units = on_all(units, |unit| unit.start(&platform))?;
        let units = on_all(units, |unit| unit.flush(&platform))?;
        let units = on_all(units, |unit| unit.listen(&platform))?;
        let units = on_all(units, |unit| unit.enable(&platform))?;
        info!("SMMUv3: {} units translate", units.len());
        Ok(Smmu::new(platform, units, coverage))
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

/// Appends to a list, or says that there is no memory for that.
fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), OutOfMemory> {
    let bytes = size_of::<T>();
    list.try_reserve(1).map_err(|_| OutOfMemory { bytes })?;
    list.push(item);
    Ok(())
}
