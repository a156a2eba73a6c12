//! From firmware's description to running units: look first, then touch.

use alloc::vec::Vec;
use core::marker::PhantomData;

use hv_core::list::push;
use hv_core::platform::Platform;
use hv_core::{PhysAddr, PhysRange};
use hv_iommu::{PciFunction, ReservedKind, ReservedRegion, UnitIndex, turn_off_bus_mastering};
use log::{info, warn};

use crate::backend::Smmu;
use crate::coverage::{Coverage, CoveragePolicy};
use crate::error::BringUpError;
use crate::firmware::{Firmware, PciHost, RequestTarget};
use crate::regions::Regions;
use crate::unit::{Discovered, Unit, UnitInfo};
use crate::vmsa::Tables;
use crate::{StreamId, Vmsa};

/// The units of a machine, looked at but not touched.
pub struct Discovery<P: Platform, F: Tables = Vmsa> {
    platform: P,
    units: Vec<Unit<P, Discovered>>,
    coverage: Coverage,
    regions: Regions,
    functions: Vec<PciFunction>,
    format: PhantomData<F>,
}

impl<P: Platform, F: Tables> Discovery<P, F> {
    /// Reads every unit and decides which covers each of `functions`. Writes nothing.
    pub(crate) fn new(
        platform: P,
        firmware: Firmware,
        functions: &[PciFunction],
        policy: CoveragePolicy,
    ) -> Result<Self, BringUpError> {
        let regions = Regions::new(&firmware)?;
        let coverage = Coverage::new(firmware, functions)?;
        coverage.check(policy)?;
        look_at_regions(&platform, &coverage, &regions, functions, policy)?;
        look_at_platform_devices(&coverage, &regions, policy)?;
        let listed = &coverage.firmware().units;
        let mut units = Vec::new();
        for (number, described) in listed.iter().enumerate() {
            let found = listed.len();
            let index = UnitIndex::new(number).ok_or(BringUpError::TooManyUnits { found })?;
            let last = last_stream(&coverage, functions, index);
            let moot = no_snoop_is_moot(coverage.firmware(), index);
            let unit = Unit::discover::<F>(&platform, index, described, last, moot)?;
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
            regions,
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
            regions,
            functions,
            format: PhantomData,
        } = self;
        turn_off_bus_mastering(&platform, &functions, |_| false)?;
        let units = on_all(units, |unit| unit.close(&platform))?;
        let units = on_all(units, |unit| unit.start(&platform))?;
        let units = on_all(units, |unit| unit.flush(&platform))?;
        let units = on_all(units, |unit| unit.listen(&platform))?;
        let units = on_all(units, |unit| unit.enable(&platform))?;
        info!("SMMUv3: {} units translate", units.len());
        Ok(Smmu::new(platform, units, coverage, regions))
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

/// The highest stream of a function behind a unit.
fn last_stream(coverage: &Coverage, functions: &[PciFunction], unit: UnitIndex) -> StreamId {
    let streams = functions
        .iter()
        .filter_map(|function| coverage.unit_of(function.address))
        .filter(|(covers, _)| *covers == unit)
        .map(|(_, stream)| stream);
    streams.max().unwrap_or(StreamId::new(0))
}

/// Whether all host bridges with a way to a unit reach memory coherently, whatever their devices ask for.
fn no_snoop_is_moot(firmware: &Firmware, unit: UnitIndex) -> bool {
    let leads = |host: &&PciHost| {
        let mut streams = host.streams.iter();
        streams.any(|route| route.to == RequestTarget::Unit(unit))
    };
    let mut hosts = firmware.hosts.iter().filter(leads);
    hosts.all(|host| host.limits.no_snoop_is_moot)
}

/// Refuses a machine that firmware goes on using a device of, which bring-up would stop, or whose word about memory the
/// memory map contradicts; or says why it might be.
fn look_at_regions<P: Platform>(
    platform: &P,
    coverage: &Coverage,
    regions: &Regions,
    functions: &[PciFunction],
    policy: CoveragePolicy,
) -> Result<(), BringUpError> {
    for device in functions.iter().map(|function| function.address) {
        let Some((unit, stream)) = coverage.unit_of(device) else {
            continue;
        };
        for ReservedRegion { range, kind } in regions.of(unit, stream) {
            let memory = PhysRange::new(PhysAddr::new(range.start().as_u64()), range.pages())?;
            if !platform.firmware_may_use(memory) {
                refuse(policy, BringUpError::RegionNotFirmwares { memory, device })?;
            }
            match kind {
                ReservedKind::Pinned => {
                    refuse(policy, BringUpError::ReservedRegion { memory, device })?;
                }
                _ => info!("SMMUv3: {device} is stopped, which firmware used {memory} with"),
            }
        }
    }
    Ok(())
}

/// The same for devices that are no PCI functions: nobody claims them here, so what firmware does with them stands still.
fn look_at_platform_devices(
    coverage: &Coverage,
    regions: &Regions,
    policy: CoveragePolicy,
) -> Result<(), BringUpError> {
    for device in &coverage.firmware().devices {
        for &(unit, first, last) in &device.streams {
            for region in regions.between(unit, first, last) {
                if region.kind == ReservedKind::Pinned {
                    let memory = region.range;
                    refuse(
                        policy,
                        BringUpError::ReservedForOther {
                            memory,
                            unit,
                            stream: first,
                        },
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// Refuses the machine, or only says why it might be.
fn refuse(policy: CoveragePolicy, problem: BringUpError) -> Result<(), BringUpError> {
    match policy {
        CoveragePolicy::Strict => Err(problem),
        CoveragePolicy::Lenient => {
            warn!("SMMUv3: {problem}");
            Ok(())
        }
    }
}
