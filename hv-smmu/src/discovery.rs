//! From firmware's description to running units: look first, then touch.

#![expect(unsafe_code, reason = "promises what units that are asleep do")]

use alloc::vec::Vec;
use core::marker::PhantomData;

use hv_core::PciAddress;
use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::platform::Platform;
use hv_iommu::{
    Dormant, FirmwareKept, Keeping, PciFunction, UnitError, UnitIndex, turn_off_bus_mastering,
};
use log::{info, warn};

use crate::backend::Smmu;
use crate::coverage::{Coverage, CoveragePolicy};
use crate::error::BringUpError;
use crate::firmware::{Firmware, PciHost, RequestTarget};
use crate::pinned::{
    PinnedFunctions, look_at_nobodys_regions, look_at_platform_devices, look_at_regions, refuse,
};
use crate::regions::Regions;
use crate::spec::user_unit::UserUnit;
use crate::unit::{Discovered, Enabled, HandOver, Listening, Unit, UnitInfo};
use crate::vmsa::Tables;
use crate::{StreamId, Vmsa};

/// The units of a machine, looked at but not touched.
pub struct Discovery<P: Platform, F: Tables = Vmsa> {
    platform: P,
    units: Vec<Unit<P, Discovered>>,
    coverage: Coverage,
    regions: Regions,
    functions: Vec<PciFunction>,
    pinned: PinnedFunctions,
    format: PhantomData<F>,
}

impl<P: Platform, F: Tables> Discovery<P, F> {
    /// Reads every unit and decides which covers each of `functions`. Writes nothing. With `kept`, what firmware goes on
    /// using is to run on.
    pub(crate) fn new(
        platform: P,
        firmware: Firmware,
        functions: &[PciFunction],
        policy: CoveragePolicy,
        kept: Option<&FirmwareKept>,
    ) -> Result<Self, BringUpError> {
        let regions = Regions::new(&firmware)?;
        let coverage = Coverage::new(firmware, functions)?;
        coverage.check(policy)?;
        let keeps = kept.is_some();
        let pinned = PinnedFunctions::new(&coverage, &regions, functions)?;
        look_at_regions(&platform, &coverage, &regions, functions, (policy, keeps))?;
        look_at_platform_devices(&coverage, &regions, policy)?;
        look_at_nobodys_regions(&coverage, &regions, policy)?;
        for services in coverage.firmware().services_without_place() {
            warn!("SMMUv3: {services}");
        }
        let listed = &coverage.firmware().units;
        let mut units = Vec::new();
        for (number, described) in listed.iter().enumerate() {
            let found = listed.len();
            let index = UnitIndex::new(number).ok_or(BringUpError::TooManyUnits { found })?;
            let last = last_stream(&coverage, index);
            let moot = no_snoop_is_moot(coverage.firmware(), index);
            let unit = Unit::discover::<F>(&platform, index, described, last, moot)?;
            info!("{}", unit.info());
            look_at_streams(&coverage, unit.info(), policy)?;
            let unit = match kept {
                Some(kept) => keep_running(unit, &coverage, &pinned, kept)?,
                None => unit,
            };
            push(&mut units, unit)?;
        }
        let mut known = Vec::new();
        for &function in functions {
            push(&mut known, function)?;
        }
        Ok(Self {
            platform,
            units,
            coverage,
            regions,
            functions: known,
            pinned,
            format: PhantomData,
        })
    }

    /// What each unit is, in the order of firmware's description.
    pub fn units(&self) -> impl Iterator<Item = &UnitInfo> {
        self.units.iter().map(Unit::info)
    }

    /// The most that a guest may be shown as an SMMU of its own, as [`Iommu::user_unit`](hv_iommu::Iommu::user_unit) says it
    /// later.
    pub fn user_unit(&self) -> Option<UserUnit> {
        crate::nested::user_unit::<F>(self.units())
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
        let prepared = self.prepare(false)?;
        let smmu = prepared.into_backend(|unit, platform| unit.enable(platform))?;
        info!("SMMUv3: {} units translate", smmu.units().count());
        Ok(smmu)
    }

    /// All but turning translation on; with `keeps`, also but for devices that firmware goes on using.
    fn prepare(self, keeps: bool) -> Result<Prepared<P, F>, BringUpError> {
        let Self {
            platform,
            units,
            coverage,
            regions,
            functions,
            pinned,
            format,
        } = self;
        let leads_to = |port: &PciFunction, at: PciAddress| {
            let buses = port.kind.buses();
            let behind = buses.is_some_and(|buses| buses.contains(at.bus()));
            behind && at.segment() == port.address.segment()
        };
        turn_off_bus_mastering(&platform, &functions, |function| {
            let is_kept = |at: PciAddress| at == function.address || leads_to(function, at);
            keeps && pinned.iter().any(is_kept)
        })?;
        let units = on_all(units, |unit| unit.close(&platform))?;
        let units = on_all(units, |unit| unit.start(&platform))?;
        let units = on_all(units, |unit| unit.flush(&platform))?;
        let units = on_all(units, |unit| unit.listen(&platform))?;
        Ok(Prepared {
            platform,
            units,
            coverage,
            regions,
            format,
        })
    }
}

/// All that a backend is made of, with units that translate next.
struct Prepared<P: Platform, F: Tables> {
    platform: P,
    units: Vec<Unit<P, Listening>>,
    coverage: Coverage,
    regions: Regions,
    format: PhantomData<F>,
}

impl<P: Platform, F: Tables> Prepared<P, F> {
    /// The backend, after this last step on each unit.
    fn into_backend(
        self,
        step: impl Fn(Unit<P, Listening>, &P) -> Result<Unit<P, Enabled>, BringUpError>,
    ) -> Result<Smmu<P, F>, BringUpError> {
        let units = on_all(self.units, |unit| step(unit, &self.platform))?;
        Ok(Smmu::new(self.platform, units, self.coverage, self.regions))
    }
}

/// The units of a machine, looked at, for a bring-up that keeps devices running which firmware goes on using.
pub struct KeepingDiscovery<P: Platform, F: Tables = Vmsa>(pub(crate) Discovery<P, F>);

impl<P: Platform, F: Tables> KeepingDiscovery<P, F> {
    /// What each unit is, in the order of firmware's description.
    pub fn units(&self) -> impl Iterator<Item = &UnitInfo> {
        self.0.units()
    }

    /// What each unit does with requests until it translates, in the same order.
    pub fn hand_overs(&self) -> impl Iterator<Item = HandOver> {
        self.0.units.iter().map(Unit::hand_over)
    }

    /// Takes every function off the bus but those that firmware goes on using, and bridges on their way; then starts all
    /// units but for translation. [`Iommu::new_keeping`](hv_iommu::Iommu::new_keeping) does the rest.
    ///
    /// # Errors
    /// [`BringUpError`] names the unit or function. Bus mastering may be off then, and units behind which nobody is kept
    /// running may abort everything.
    pub fn bring_up(self) -> Result<DormantSmmu<P, F>, BringUpError> {
        let prepared = self.0.prepare(true)?;
        let smmu = prepared.into_backend(|unit, platform| unit.ready(platform))?;
        Ok(DormantSmmu(smmu))
    }
}

/// All SMMUs of a machine, up but for translation by their own tables.
pub struct DormantSmmu<P: Platform, F: Tables = Vmsa>(Smmu<P, F>);

// SAFETY: the command queue runs, so bindings and invalidations work as ever: they change a stream table that the unit
// does not read yet, and count from the moment that it takes SMMUEN, between two transactions, which `wake` waits for on
// every unit. Nothing of before is cached then: a unit that is off caches nothing (IHI 0070, 6.3.9.6), and one that went by
// firmware's tables forgets all while it is off. That is the one gap, on units that translated before, and `discover_keeping`
// refuses those without a policy that accepts it.
unsafe impl<P: Platform, F: Tables> Dormant for DormantSmmu<P, F> {
    type Backend = Smmu<P, F>;

    fn into_backend(self, _: Keeping) -> Smmu<P, F> {
        self.0
    }

    fn wake(backend: &Smmu<P, F>) -> Result<(), UnitError> {
        backend.translate()
    }
}

/// The unit, told to keep running what firmware goes on using behind it, if there is anything. Says how.
fn keep_running<P: Platform>(
    unit: Unit<P, Discovered>,
    coverage: &Coverage,
    pinned: &PinnedFunctions,
    kept: &FirmwareKept,
) -> Result<Unit<P, Discovered>, BringUpError> {
    let index = unit.info().unit;
    let behind = |device: PciAddress| {
        coverage
            .unit_of(device)
            .is_some_and(|(own, _)| own == index)
    };
    let device = pinned.iter().find(|device| behind(*device));
    let Some(device) = device else {
        return Ok(match Fault::KeepsEveryGate.is_on() {
            true => unit.keep_running(),
            false => unit,
        });
    };
    let unit = unit.keep_running();
    let how = unit.hand_over();
    if how == HandOver::WithGap && !kept.accepts_gap() {
        return Err(BringUpError::Gap {
            unit: index,
            device,
        });
    }
    warn!("KEPT: {device} is behind {index}: {how}");
    Ok(unit)
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

/// The highest stream that a function behind a unit may be bound to.
fn last_stream(coverage: &Coverage, unit: UnitIndex) -> StreamId {
    let streams = coverage.listed_behind(unit).map(|(_, stream)| stream);
    streams.max().unwrap_or(StreamId::new(0))
}

/// Refuses a machine with a function whose stream the unit's table has no room for, or says so.
fn look_at_streams(
    coverage: &Coverage,
    info: &UnitInfo,
    policy: CoveragePolicy,
) -> Result<(), BringUpError> {
    let (unit, bits) = (info.unit, info.stream_bits());
    for (device, stream) in coverage.listed_behind(unit) {
        if stream.get().checked_shr(bits.into()).unwrap_or(0) != 0 {
            let beyond = BringUpError::StreamBeyondTable {
                device,
                unit,
                stream,
                bits,
            };
            refuse(policy, beyond)?;
        }
    }
    Ok(())
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
