//! The running units of a machine as one backend.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::{Iova, IovaRange, PageCount, PciAddress, RangeError};
use hv_iommu::{
    Backend, Binding, FaultClass, FaultEvent, FirmwareKept, FlushRequest, FlushTicket, HwDomainId,
    InterruptId, InterruptRoute, InterruptSource, LeafNeeds, PciFunction, ReservedRegion,
    RouteError, RoutedInterrupts, Snoop, UnitCaps, UnitError, UnitIndex, UnitTroubles,
};

use crate::SecondStage;
use crate::coverage::{Coverage, CoveragePolicy};
use crate::discovery::{Discovery, KeepingDiscovery};
use crate::dmar::Dmar;
use crate::error::BringUpError;
use crate::regions::Regions;
use crate::spec::fault::class as fault_class;
use crate::spec::second_stage::{INTERRUPT_WINDOW, INTERRUPT_WINDOW_BYTES};
use crate::unit::{Enabled, Unit, UnitInfo};

/// All VT-d units of a machine, translating.
///
/// Dropping it changes nothing: the units go on with the tables that they have, whose memory is
/// never given back.
pub struct Vtd<P: Platform> {
    platform: P,
    units: Vec<Unit<P, Enabled>>,
    coverage: Coverage,
    regions: Regions,
    reserved: [IovaRange; 1],
}

impl<P: Platform> Vtd<P> {
    /// Looks at the units that `dmar` lists and at who covers `functions`, the PCI functions of
    /// the machine. Nothing is written until [`Discovery::bring_up`].
    ///
    /// # Errors
    /// [`BringUpError`]: a function that no unit covers (if the policy is strict), a unit that
    /// this version does not drive, a reserved region that firmware goes on using (likewise).
    pub fn discover(
        platform: P,
        dmar: &Dmar,
        functions: &[PciFunction],
        policy: CoveragePolicy,
    ) -> Result<Discovery<P>, BringUpError> {
        Discovery::new(platform, dmar, functions, policy, false)
    }

    /// As [`discover`](Self::discover), for a bring-up that keeps devices running which firmware goes on using: whatever
    /// the policy says, they are no reason to refuse the machine.
    ///
    /// # Errors
    /// [`BringUpError`].
    pub fn discover_keeping(
        platform: P,
        dmar: &Dmar,
        functions: &[PciFunction],
        policy: CoveragePolicy,
        kept: &FirmwareKept,
    ) -> Result<KeepingDiscovery<P>, BringUpError> {
        log::warn!(
            "VT-d: devices that firmware uses are kept running: {}",
            kept.reason()
        );
        Discovery::new(platform, dmar, functions, policy, true).map(KeepingDiscovery)
    }

    /// Turns translation on, on every unit: each is tried, since one that is not woken lets everything pass.
    pub(crate) fn translate(&self) -> Result<(), UnitError> {
        let woken = self.units.iter().map(|unit| unit.translate(&self.platform));
        if Fault::WakeStopsAtTheFirst.is_on() {
            return woken.collect();
        }
        woken.reduce(Result::and).unwrap_or(Ok(()))?;
        log::info!("VT-d: {} units translate", self.units.len());
        Ok(())
    }

    pub(crate) fn new(
        platform: P,
        units: Vec<Unit<P, Enabled>>,
        coverage: Coverage,
        regions: Regions,
    ) -> Result<Self, RangeError> {
        let start = Iova::new(INTERRUPT_WINDOW);
        let pages = PageCount::for_bytes(INTERRUPT_WINDOW_BYTES).unwrap_or(PageCount::ONE);
        Ok(Self {
            platform,
            units,
            coverage,
            regions,
            reserved: [IovaRange::new(start, pages)?],
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

    /// Plays a unit that has been at it for long.
    #[cfg(test)]
    pub(crate) fn skip_past(&self, unit: UnitIndex, ticket: FlushTicket) -> Result<(), UnitError> {
        self.unit(unit)?.skip_past(&self.platform, ticket)
    }

    fn unit(&self, unit: UnitIndex) -> Result<&Unit<P, Enabled>, UnitError> {
        self.units
            .get(unit.index())
            .ok_or(UnitError::NoSuchUnit { unit })
    }
}

// SAFETY: by the typestate of bring-up the units translate by tables that bind nobody at first. An entry
// goes live and comes down by one store (`context`), what is asked for goes in before its wait in the
// same batch, and a wait counts as completed only once its own sequence or a later one was written by
// the unit (`queue`), which drains requests in flight: units that cannot are refused or accepted by name.
// A reset leaves translation on, takes requests again only after it has waited for global flushes of
// context entries and translations, and until then no ticket counts as completed (`unit::reset`).
unsafe impl<P: Platform> Backend for Vtd<P> {
    type Platform = P;
    type Format = SecondStage;

    fn platform(&self) -> &P {
        &self.platform
    }

    fn unit_count(&self) -> usize {
        self.units.len()
    }

    fn unit_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.unit(unit).ok().map(Unit::caps)
    }

    fn unit_of(&self, requester: PciAddress) -> Option<UnitIndex> {
        self.coverage.unit_of(requester)
    }

    fn reserved(&self) -> &[IovaRange] {
        if Fault::WindowNotReserved.is_on() {
            return &[];
        }
        &self.reserved
    }

    fn reserved_for(&self, requester: PciAddress) -> impl Iterator<Item = ReservedRegion> {
        self.regions.of(&self.coverage, requester)
    }

    fn format(&self, caps: &UnitCaps, leaves: LeafNeeds) -> SecondStage {
        match leaves.snoop {
            Snoop::Forced if caps.snoop_control => SecondStage::that_snoops(),
            // A domain that needs more was refused.
            Snoop::Forced | Snoop::AsAsked => SecondStage::new(),
        }
    }

    unsafe fn bind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe { self.unit(unit)?.bind(&self.platform, requester, binding) }
    }

    fn unbind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        self.unit(unit)?.unbind(&self.platform, requester, domain)
    }

    fn submit(&self, unit: UnitIndex, request: FlushRequest) -> Result<FlushTicket, UnitError> {
        self.unit(unit)?.submit(&self.platform, request)
    }

    fn poll(&self, unit: UnitIndex, ticket: FlushTicket) -> Result<bool, UnitError> {
        self.unit(unit)?.poll(&self.platform, ticket)
    }

    fn wedge(&self, unit: UnitIndex) {
        if let Ok(unit) = self.unit(unit) {
            unit.wedge();
        }
    }

    fn is_wedged(&self, unit: UnitIndex) -> bool {
        self.unit(unit).is_ok_and(Unit::is_wedged)
    }

    fn reset(&self, unit: UnitIndex) -> Result<(), UnitError> {
        self.unit(unit)?.reset(&self.platform)
    }

    fn shut_down(&self, unit: UnitIndex) -> Result<(), UnitError> {
        self.unit(unit)?.shut_down(&self.platform)
    }

    fn quiet(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), UnitError> {
        self.unit(unit)?.quiet(&self.platform, requester)
    }

    fn reread(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), UnitError> {
        self.unit(unit)?.reread(&self.platform, requester)
    }

    fn is_of_gap(&self, code: u16) -> bool {
        u8::try_from(code).is_ok_and(|reason| fault_class(reason) == FaultClass::NotBound)
    }

    fn troubles(&self, unit: UnitIndex) -> UnitTroubles {
        self.unit(unit).map(Unit::troubles).unwrap_or_default()
    }

    fn take_fault(&self, unit: UnitIndex) -> Option<FaultEvent> {
        self.unit(unit).ok()?.take_fault(&self.platform)
    }
}

impl<P: Platform> RoutedInterrupts for Vtd<P> {
    /// None has one: units send messages.
    fn wired_interrupt(&self, _unit: UnitIndex, _source: InterruptSource) -> Option<InterruptId> {
        None
    }

    /// The one source is [`InterruptSource::Faults`], which tells of a queue that stopped as well. A message goes to
    /// `0xfee0_0000`, with the APIC id of the CPU in bits 19:12, and what such an id has above eight bits in bits 63:40, on
    /// units that take that; its data is the vector.
    fn route_interrupt(
        &self,
        unit: UnitIndex,
        source: InterruptSource,
        route: InterruptRoute,
    ) -> Result<(), RouteError> {
        self.unit(unit)?.route_interrupt(source, route)
    }
}
