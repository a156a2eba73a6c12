//! The running units of a machine as one backend.

#![expect(unsafe_code, reason = "binding a device hands it memory")]

use alloc::vec::Vec;
use core::marker::PhantomData;

use hv_core::fault::Fault;
use hv_core::platform::Platform;
use hv_core::{IovaRange, PciAddress};
use hv_iommu::{
    Backend, Binding, Coherency, DeviceTlbBackend, FaultEvent, FirmwareKept, FlushRequest,
    FlushTicket, HwDomainId, InterruptId, InterruptRoute, InterruptSource, LeafNeeds,
    MessageSource, NotIsolated, PciFunction, ReservedRegion, RouteError, RoutedInterrupts,
    UnitCaps, UnitError, UnitIndex, UnitTroubles, Unmet,
};

use crate::Vmsa;
use crate::coverage::{Coverage, CoveragePolicy};
use crate::discovery::{Discovery, KeepingDiscovery};
use crate::error::BringUpError;
use crate::firmware::Firmware;
use crate::regions::Regions;
use crate::spec::event::EventKind;
use crate::unit::{Enabled, Stream, Unit, UnitInfo};
use crate::vmsa::{Stage, Tables};

/// All SMMUs of a machine, translating by tables of format `F`.
///
/// Dropping it changes nothing: the units go on with the tables that they have, whose memory is never given back.
pub struct Smmu<P: Platform, F: Tables = Vmsa> {
    platform: P,
    units: Vec<Unit<P, Enabled>>,
    coverage: Coverage,
    regions: Regions,
    format: PhantomData<F>,
}

impl<P: Platform> Smmu<P> {
    /// Looks at the units that firmware lists, for tables of 4 KiB pages. See [`discover_with`](Self::discover_with).
    ///
    /// # Errors
    /// As there.
    pub fn discover(
        platform: P,
        firmware: Firmware,
        functions: &[PciFunction],
        policy: CoveragePolicy,
    ) -> Result<Discovery<P>, BringUpError> {
        Self::discover_with(platform, firmware, functions, policy)
    }

    /// The same for a bring-up that keeps devices running which firmware goes on using. See
    /// [`discover_keeping_with`](Self::discover_keeping_with).
    ///
    /// # Errors
    /// As there.
    pub fn discover_keeping(
        platform: P,
        firmware: Firmware,
        functions: &[PciFunction],
        policy: CoveragePolicy,
        kept: &FirmwareKept,
    ) -> Result<KeepingDiscovery<P>, BringUpError> {
        Self::discover_keeping_with(platform, firmware, functions, policy, kept)
    }
}

impl<P: Platform, F: Tables> Smmu<P, F> {
    /// Looks at the units that firmware lists, and at who covers `functions`, the PCI functions of the machine. Nothing
    /// is written until [`Discovery::bring_up`]. For another size of pages than 4 KiB: `Smmu::<P, Vmsa64K>::discover_with`.
    ///
    /// # Errors
    /// [`BringUpError`]: a function that no unit covers (if the policy is strict), a unit that this version does not
    /// drive, memory that firmware goes on using (likewise).
    pub fn discover_with(
        platform: P,
        firmware: Firmware,
        functions: &[PciFunction],
        policy: CoveragePolicy,
    ) -> Result<Discovery<P, F>, BringUpError> {
        Discovery::new(platform, firmware, functions, policy, None)
    }

    /// As [`discover_with`](Self::discover_with), for a bring-up that keeps devices running which firmware goes on using
    /// (RMRs of the IORT): whatever the policy says, those that are PCI functions are no reason to refuse the machine.
    /// [`KeepingDiscovery::hand_overs`] tells what each unit does with their requests until it translates.
    ///
    /// # Errors
    /// [`BringUpError`]: as there; [`BringUpError::Gap`] where firmware left such a device's unit translating and `kept`
    /// does not accept that the device is aborted for a moment.
    pub fn discover_keeping_with(
        platform: P,
        firmware: Firmware,
        functions: &[PciFunction],
        policy: CoveragePolicy,
        kept: &FirmwareKept,
    ) -> Result<KeepingDiscovery<P, F>, BringUpError> {
        log::warn!(
            "SMMUv3: devices that firmware uses are kept running: {}",
            kept.reason()
        );
        Discovery::new(platform, firmware, functions, policy, Some(kept)).map(KeepingDiscovery)
    }

    /// Turns translation on, on every unit: each is tried, since one that is not woken may let everything pass.
    pub(crate) fn translate(&self) -> Result<(), UnitError> {
        let woken = self.units.iter().map(|unit| unit.translate(&self.platform));
        if Fault::WakeStopsAtTheFirst.is_on() {
            return woken.collect();
        }
        woken.reduce(Result::and).unwrap_or(Ok(()))?;
        log::info!("SMMUv3: {} units translate", self.units.len());
        Ok(())
    }

    pub(crate) fn new(
        platform: P,
        units: Vec<Unit<P, Enabled>>,
        coverage: Coverage,
        regions: Regions,
    ) -> Self {
        Self {
            platform,
            units,
            coverage,
            regions,
            format: PhantomData,
        }
    }

    /// What each unit is, in the order of firmware's description.
    pub fn units(&self) -> impl Iterator<Item = &UnitInfo> {
        self.units.iter().map(Unit::info)
    }

    /// Which unit covers whom, as which stream.
    pub const fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    pub(crate) const fn platform_of(&self) -> &P {
        &self.platform
    }

    pub(crate) fn unit(&self, unit: UnitIndex) -> Result<&Unit<P, Enabled>, UnitError> {
        self.units
            .get(unit.index())
            .ok_or(UnitError::NoSuchUnit { unit })
    }

    /// The stream of a requester that is behind a unit.
    pub(crate) fn stream(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<Stream, UnitError> {
        match self.coverage.requester(requester) {
            Some(found) if found.unit == unit => {
                let is_shared = self.coverage.aliases_of(requester).count() > 1;
                // What two requesters send with one substream of one stream cannot be told apart.
                let substream_bits = match is_shared {
                    true => 0,
                    false => self.unit(unit)?.substream_bits(found.limits),
                };
                Ok(Stream {
                    id: found.stream,
                    requester,
                    is_shared,
                    substream_bits,
                })
            }
            _ => Err(UnitError::NotBound { requester, domain }),
        }
    }
}

// SAFETY: by the typestate of bring-up the units translate by stream tables that abort every stream at first. An entry
// goes live by the steps of `entry_update`, the last of which is one store, and comes down by one store of its first
// word. A first stage's entry leads to a descriptor of its own, which is written and forgotten while the entry aborts
// (`unit::first_stage`). What is asked for goes in before its sync, and a sync counts as completed only once the unit's index is past
// it (`hv_iommu::queue`), which it is only when all before it has had its effect. A reset leaves translation on, or turns it off
// for a moment behind a gate that aborts everything and was acknowledged, takes requests again only after it has waited for CFGI_ALL and TLBI_NSNH_ALL, and until then no ticket counts as
// completed (`unit::reset`).
unsafe impl<P: Platform, F: Tables> Backend for Smmu<P, F> {
    type Platform = P;
    type Format = F;

    fn platform(&self) -> &P {
        &self.platform
    }

    fn unit_count(&self) -> usize {
        self.units.len()
    }

    fn unit_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.unit(unit).ok().map(Unit::caps)
    }

    fn pasid_caps(&self, unit: UnitIndex) -> Option<UnitCaps> {
        self.unit(unit).ok()?.pasid_caps()
    }

    fn unit_of(&self, requester: PciAddress) -> Option<UnitIndex> {
        let (unit, stream) = self.coverage.unit_of(requester)?;
        // A stream that the table has no room for is a bad one: nobody can claim it.
        self.units
            .get(unit.index())?
            .has_stream(stream)
            .then_some(unit)
    }

    fn reserved(&self) -> &[IovaRange] {
        &[]
    }

    fn reserved_for(&self, requester: PciAddress) -> impl Iterator<Item = ReservedRegion> {
        let place = self.coverage.unit_of(requester);
        place
            .into_iter()
            .flat_map(|(unit, stream)| self.regions.of(unit, stream))
            .chain(self.coverage.doorbell(requester, F::GRANULE))
    }

    fn message_source(&self, requester: PciAddress) -> Result<MessageSource, NotIsolated> {
        self.coverage.message_source(requester)
    }

    fn may_send_as(&self, requester: PciAddress, source: MessageSource) -> bool {
        self.coverage.may_be_source(requester, source)
    }

    fn format(&self, caps: &UnitCaps, leaves: LeafNeeds) -> F {
        let stage = match caps.second_stage {
            true => Stage::Second,
            false => Stage::First,
        };
        F::for_unit(stage, caps.coherent, leaves)
    }

    unsafe fn bind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        binding: Binding,
    ) -> Result<Option<FlushTicket>, UnitError> {
        let stream = self.stream(unit, requester, binding.domain)?;
        let unit = self.unit(unit)?;
        // SAFETY: the caller's promise, handed on unchanged.
        unsafe { unit.bind::<F>(&self.platform, stream, binding) }
    }

    fn unbind(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let stream = self.stream(unit, requester, domain)?;
        self.unit(unit)?.unbind(&self.platform, stream, domain)
    }

    fn submit(&self, unit: UnitIndex, request: FlushRequest) -> Result<FlushTicket, UnitError> {
        self.unit(unit)?.submit(&self.platform, F::GRANULE, request)
    }

    fn poll(&self, unit: UnitIndex, ticket: FlushTicket) -> Result<bool, UnitError> {
        self.unit(unit)?.poll(&self.platform, ticket)
    }

    fn pause(&self, unit: UnitIndex) {
        if let Ok(unit) = self.unit(unit) {
            unit.pause(&self.platform);
        }
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
        let stream = self.stream(unit, requester, HwDomainId::new(0))?;
        self.unit(unit)?.quiet(&self.platform, stream)
    }

    fn reread(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), UnitError> {
        let stream = self.stream(unit, requester, HwDomainId::new(0))?;
        self.unit(unit)?.reread(&self.platform, stream.id)
    }

    fn coherency(&self, requester: PciAddress) -> Coherency {
        match self.coverage.requester(requester) {
            Some(found) => found.limits.coherency,
            None => Coherency::NotCoherent {
                said: "nothing about it",
            },
        }
    }

    fn heeds_quiet(&self, code: u16) -> bool {
        let number = u8::try_from(code);
        !number.is_ok_and(|number| EventKind::from_number(number).precedes_entry())
    }

    fn waits_for_devices(&self, unit: UnitIndex) -> bool {
        self.unit(unit).is_ok_and(Unit::waits_for_devices)
    }

    fn mending_steps(&self, unit: UnitIndex) -> u64 {
        self.unit(unit).map_or(0, Unit::mending_steps)
    }

    fn troubles(&self, unit: UnitIndex) -> UnitTroubles {
        self.unit(unit).map(Unit::troubles).unwrap_or_default()
    }

    fn has_silent(&self, unit: UnitIndex) -> bool {
        self.unit(unit).is_ok_and(Unit::has_silent)
    }

    fn take_silent(&self, unit: UnitIndex) -> Option<PciAddress> {
        self.unit(unit).ok()?.take_silent()
    }

    fn take_fault(&self, unit: UnitIndex) -> Option<FaultEvent> {
        let requester_of = |stream| self.coverage.requester_of(unit, stream);
        self.unit(unit)
            .ok()?
            .take_fault(&self.platform, requester_of)
    }
}

impl<P: Platform, F: Tables> RoutedInterrupts for Smmu<P, F> {
    fn wired_interrupt(&self, unit: UnitIndex, source: InterruptSource) -> Option<InterruptId> {
        self.unit(unit).ok()?.wire(source)
    }

    fn route_interrupt(
        &self,
        unit: UnitIndex,
        source: InterruptSource,
        route: InterruptRoute,
    ) -> Result<(), RouteError> {
        self.unit(unit)?
            .route_interrupt(&self.platform, source, route)
    }
}

// SAFETY: an entry lets its device ask only between `Unit::open_device_tlb` and what closes it, by ATSCHK no translated
// request passes an entry that does not, and what a device held before is forgotten, with a sync, before its entry opens. A
// stream is noted for flushes before that, and until what closes it stands in the queue; ATC_INV stands behind a sync of
// the unit's own. Behind a device that does not answer the queue stops (CERROR 3), and no ticket counts until it was mended:
// each device that is noted has forgotten everything since then, or its stream aborts, with a sync behind that
// (`hv_iommu::queue`, `unit::silent`). A reset closes all before it has configuration forgotten.
unsafe impl<P: Platform, F: Tables> DeviceTlbBackend for Smmu<P, F> {
    fn serves_device_tlb(&self, unit: UnitIndex, requester: PciAddress) -> Result<(), Unmet> {
        let known = self.coverage.requester(requester);
        if !known.is_some_and(|known| known.limits.translation_requests) {
            return Err(Unmet::absent("translation requests, by firmware's word"));
        }
        if self.coverage.aliases_of(requester).count() > 1 {
            return Err(Unmet::absent("a stream of the function's own"));
        }
        match self.unit(unit) {
            Ok(unit) => unit.serves_device_tlb(),
            Err(_) => Err(Unmet::absent("the unit")),
        }
    }

    unsafe fn open_device_tlb(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let stream = self.stream(unit, requester, domain)?;
        let unit = self.unit(unit)?;
        unit.open_device_tlb(&self.platform, stream, domain)
    }

    fn close_device_tlb(
        &self,
        unit: UnitIndex,
        requester: PciAddress,
        domain: HwDomainId,
    ) -> Result<FlushTicket, UnitError> {
        let stream = self.stream(unit, requester, domain)?;
        let unit = self.unit(unit)?;
        unit.close_device_tlb(&self.platform, stream, domain)
    }
}
