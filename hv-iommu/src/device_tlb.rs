//! Device TLBs: functions that keep translations of their domain themselves (PCI ATS), by name and for trusted devices.
//!
//! Off until somebody asks for it, and off again by itself before an entry of the group comes down: at a detach, a park, a
//! replacement with a gap, and where a unit or a group is cut off. On: the unit's entry first, then the function's own
//! setting; off: the other way round, and in between what the function keeps is forgotten.

#![expect(
    unsafe_code,
    reason = "lets devices send requests that no unit translates"
)]

use hv_core::fault::Fault;
use hv_core::platform::PciConfig;
use hv_core::{KernelPaging, PciAddress};

use crate::attach::AttachError;
use crate::backend::{Backend, FlushTicket, HwDomainId, UnitError};
use crate::capability::DeviceTlbBackend;
use crate::group::{Attached, Group, Inner};
use crate::identity::TrustedDevice;
use crate::shape::Pages;
use crate::spec::{ATS_CONTROL_ENABLE, ATS_CONTROL_UNIT, ATS_REGISTERS, EXTENDED_ATS};
use crate::system::Bound;
use crate::topology::extended;

/// Where in a function's configuration space its ATS registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtsPlace(u16);

impl AtsPlace {
    /// Those of a function, if it has any.
    fn of(config: &impl PciConfig, function: PciAddress) -> Option<Self> {
        let mut capabilities = extended(config, function);
        let (_, place) = capabilities.find(|(id, _)| *id == EXTENDED_ATS)?;
        place.checked_add(ATS_REGISTERS).map(Self)
    }

    fn control(self, config: &impl PciConfig, function: PciAddress) -> u16 {
        (config.config_read32(function, self.0) >> 16) as u16
    }

    /// Turns the function's setting on, for translations of single pages, or off; gives the register as it reads then.
    fn set(self, config: &impl PciConfig, function: PciAddress, on: bool) -> u16 {
        let control = if on { ATS_CONTROL_ENABLE } else { 0 };
        // The lower half is read-only.
        config.config_write32(function, self.0, u32::from(control) << 16);
        self.control(config, function)
    }
}

/// Stops a function from asking for translations that firmware, or whoever had it before, let ask. Says whether it does
/// not ask now.
pub(crate) fn stop_leftover(config: &impl PciConfig, function: PciAddress) -> bool {
    let place = AtsPlace::of(config, function);
    let is_on = |place: &AtsPlace| place.control(config, function) & ATS_CONTROL_ENABLE != 0;
    match place.filter(is_on) {
        Some(_) if Fault::LeaveAtsOn.is_on() => true,
        Some(place) => place.set(config, function, false) & ATS_CONTROL_ENABLE == 0,
        None => true,
    }
}

impl Bound {
    /// Stops the requester from asking for translations, if it was let, and before that from using those that no unit looks
    /// at.
    pub(crate) fn stop_asking(&mut self, config: &impl PciConfig) {
        if let Some(cache) = self.cxl_cache
            && let Err(control) = cache.turn_off(config)
        {
            log::error!(
                "{} goes on reaching memory past its unit (CXL control {control:#06x})",
                self.requester
            );
        }
        if let Some(place) = self.ats.take() {
            place.set(config, self.requester, false);
        }
    }
}

impl<B: Backend> Inner<B> {
    /// Stops all members from asking for translations.
    pub(crate) fn stop_asking(&self) {
        if !self.has_asked {
            return;
        }
        let mut registry = self.system.registry.lock();
        let ours = registry.bound.iter_mut();
        for bound in ours.filter(|bound| bound.group == self.id) {
            bound.stop_asking(self.system.backend.platform());
        }
    }

    /// A member that may ask for translations.
    pub(crate) fn asking(&self) -> Option<PciAddress> {
        if !self.has_asked {
            return None;
        }
        let registry = self.system.registry.lock();
        let mut ours = registry.bound.iter();
        let asks = |bound: &&Bound| bound.group == self.id && bound.ats.is_some();
        ours.find(asks).map(|bound| bound.requester)
    }

    /// Notes that a member may ask, or may not.
    fn note_asking(&self, member: PciAddress, ats: Option<AtsPlace>) {
        let mut registry = self.system.registry.lock();
        let ours = |bound: &&mut Bound| bound.group == self.id && bound.requester == member;
        if let Some(bound) = registry.bound.iter_mut().find(ours) {
            bound.ats = ats;
        }
    }

    /// The function that says how large the translations of a member are: of a virtual function, its physical one.
    fn sizes_of(&self, member: PciAddress) -> PciAddress {
        self.system.topology.lock().sender(member)
    }
}

impl<B: DeviceTlbBackend> Inner<B> {
    /// Waits for what was asked of the unit, which fails like any other request.
    fn wait_for(
        &self,
        asked: Result<FlushTicket, UnitError>,
        resets: u64,
        what: &'static str,
    ) -> Result<(), UnitError> {
        match asked {
            Ok(ticket) => self.system.wait(self.unit, ticket, what),
            Err(error) => {
                if matches!(error, UnitError::Timeout { .. } | UnitError::Wedged { .. }) {
                    self.system.request_failed(self.unit, error, resets);
                }
                Err(error)
            }
        }
    }

    fn close(&self, member: PciAddress, domain: HwDomainId) -> Result<(), UnitError> {
        let resets = self.system.wedged.resets(self.unit);
        let (system, unit) = (&self.system, self.unit);
        let asked = system.away(|| system.backend.close_device_tlb(unit, member, domain));
        self.wait_for(asked, resets, "the closing of a device's TLB")
    }

    /// As [`close`](Self::close), where something failed already: a unit that does not do that either is cut off.
    fn close_or_cut_off(&self, member: PciAddress, domain: HwDomainId) {
        match self.close(member, domain) {
            Ok(()) | Err(UnitError::NotBound { .. }) => {}
            // Open, for all that is known.
            Err(_) => self.system.cut_off(self.unit),
        }
    }
}

impl<B: DeviceTlbBackend, S: Pages<KernelPaging, B>> Group<B, Attached<KernelPaging, B, S>> {
    /// Lets `member` keep translations of its domain in a TLB of its own (ATS). Each flush of the domain waits for the
    /// function too then, and whatever else is asked of its unit behind that waits as well, for as long as the bus gives a
    /// device. One that does not answer by then is cut off with its group: the unit lets nothing of it through, so the
    /// flush is done and its receipt made, nobody else behind the unit is harmed, and
    /// [`take_faults`](crate::Iommu::take_faults) tells of it ([`FaultNotice::CutOff`](crate::FaultNotice::CutOff)). After
    /// a detach it can be attached anew. One that answers late by less than
    /// [`Config::device_wait`](crate::Config::device_wait) costs time and nothing else. A unit that never says that
    /// a device did not answer is wedged after that time, like one that hangs. Of several functions that are dead each is
    /// found, one after the other, and all behind the unit wait that much longer: the bus's time once, and once more for each.
    ///
    /// The unit does not look at where the function's requests go any more, so it takes the word of who
    /// [vouches](TrustedDevice::vouch_for) for the device. A guest's device never gets it. Ports on the way have to let
    /// translated requests pass (ACS).
    ///
    /// # Errors
    /// [`AttachError::NotAMember`], [`AttachError::NotVouchedFor`]; [`AttachError::Incompatible`] where the unit, or what
    /// firmware says is on the way to it, cannot; [`AttachError::NoTranslationRequests`], [`AttachError::KeepsAts`] where
    /// the function cannot or does not; [`AttachError::CutOff`], [`AttachError::Unit`], of which
    /// [`UnitError::NoAnswer`] is the function's own. It is off then.
    pub fn enable_ats(
        &mut self,
        member: PciAddress,
        trusted: &TrustedDevice<B>,
    ) -> Result<(), AttachError> {
        let domain = self.device_tlb_of(member)?;
        trusted.counts_for(self)?;
        self.inner.has_asked = true;
        let inner = &self.inner;
        let (unit, system) = (inner.unit, &inner.system);
        if system.wedged.has(unit) {
            return Err(UnitError::Wedged { unit }.into());
        }
        inner.check_not_cut_off()?;
        let served = system.backend.serves_device_tlb(unit, member);
        served.map_err(|unmet| AttachError::Incompatible { unit, unmet })?;
        let config = system.backend.platform();
        let refused = |found| AttachError::NoTranslationRequests {
            function: member,
            found,
        };
        let place = AtsPlace::of(config, member).ok_or(refused("no ATS capability"))?;
        let physical = inner.sizes_of(member);
        if physical != member
            && let Some(sizes) = AtsPlace::of(config, physical)
            && sizes.control(config, physical) & ATS_CONTROL_UNIT != 0
        {
            return Err(refused("a physical function set to larger translations"));
        }
        // Whoever had the function before may have left it on.
        let control = place.set(config, member, false);
        if control & ATS_CONTROL_ENABLE != 0 {
            return Err(AttachError::KeepsAts {
                function: member,
                control,
            });
        }
        log::warn!(
            "BYPASS: {member} keeps translations itself, and its requests by them pass unchecked: {}",
            trusted.reason()
        );
        if Fault::AskBeforeEntry.is_on() {
            place.set(config, member, true);
        }
        let resets = system.wedged.resets(unit);
        let opened = system.away(|| {
            // SAFETY: who holds the group vouches for its devices with all memory.
            unsafe { system.backend.open_device_tlb(unit, member, domain) }
        });
        if let Err(error) = inner.wait_for(opened, resets, "the opening of a device's TLB") {
            inner.close_or_cut_off(member, domain);
            // Of an earlier time, if there is a note.
            inner.note_asking(member, None);
            return Err(error.into());
        }
        // Before the setting, so that whoever cuts the function off finds it.
        inner.note_asking(member, Some(place));
        let control = place.set(config, member, true);
        let taken = match control & (ATS_CONTROL_ENABLE | ATS_CONTROL_UNIT) {
            ATS_CONTROL_ENABLE => Ok(()),
            _ => Err(AttachError::KeepsAts {
                function: member,
                control,
            }),
        };
        // Once more after the setting, as for bus mastering: who cuts the function off now finds the note.
        // A reset has closed what was opened before it, without a note to find.
        let was_reset = system.wedged.resets(unit) != resets;
        let here = match was_reset || system.wedged.has(unit) {
            true => Err(UnitError::Wedged { unit }.into()),
            false => inner.check_not_cut_off(),
        };
        taken.and(here).inspect_err(|_| {
            place.set(config, member, false);
            inner.note_asking(member, None);
            inner.close_or_cut_off(member, domain);
        })
    }

    /// Stops `member` from keeping translations, and waits until it has none.
    ///
    /// # Errors
    /// [`AttachError::NotAMember`], [`AttachError::Unit`].
    pub fn disable_ats(&mut self, member: PciAddress) -> Result<(), AttachError> {
        let domain = self.device_tlb_of(member)?;
        let inner = &self.inner;
        let config = inner.system.backend.platform();
        if let Some(place) = AtsPlace::of(config, member) {
            place.set(config, member, false);
        }
        // Noted until it is closed: meanwhile the group is not moved, nor are its PASIDs opened.
        match inner.close(member, domain) {
            // Where it was cut off meanwhile, nothing of it passes any more.
            Ok(()) | Err(UnitError::NotBound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        inner.note_asking(member, None);
        Ok(())
    }

    /// The id of the domain that a member's translations are of.
    fn device_tlb_of(&self, member: PciAddress) -> Result<HwDomainId, AttachError> {
        let (members, core) = (&self.inner.members, &self.state.core);
        match members.contains(&member) {
            true => Ok(core.id),
            false => Err(AttachError::NotAMember {
                member,
                group: self.inner.id,
            }),
        }
    }
}
