//! CXL.cache: functions that keep memory in caches of their own, and reach it past their unit.
//!
//! Such a function asks its unit for a translation, like one with a [device TLB](crate::Group::enable_ats), and reads and
//! writes by what it was told in a protocol of its own. A unit need not look at that, whatever its entries say, and bus
//! mastering is about another protocol: what there is against it is the function's own switch. So that is off from bring-up
//! on, and a group with such a function is attached for nobody but a driver of the hypervisor that somebody gave their word
//! for: the word that it may reach all memory.

use alloc::vec::Vec;

use hv_core::fault::Fault;
use hv_core::list::push;
use hv_core::platform::PciConfig;
use hv_core::{KernelPaging, OutOfMemory, PciAddress};

use crate::attach::{AttachError, AttachFailed};
use crate::backend::Backend;
use crate::group::{Claimed, Group, GroupId, Inner};
use crate::identity::TrustedDevice;
use crate::spec::{
    CXL_CACHE_CAPABLE, CXL_CACHE_ENABLE, CXL_CONTROL, CXL_DEVICE, CXL_VENDOR, DVSEC_ID,
    DVSEC_VENDOR, EXTENDED_DVSEC,
};
use crate::system::System;
use crate::topology::{extended, halves};

/// The switch of CXL.cache of a function that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CxlCache {
    function: PciAddress,
    control: u16,
}

impl CxlCache {
    /// That of a function, if it has one.
    fn of(config: &impl PciConfig, function: PciAddress) -> Option<Self> {
        let read = |offset| halves(config.config_read32(function, offset));
        let mut capabilities = extended(config, function).filter(|(id, _)| *id == EXTENDED_DVSEC);
        let (_, place) = capabilities.find(|(_, place)| {
            let (vendor, _) = read(place + DVSEC_VENDOR);
            let (id, capability) = read(place + DVSEC_ID);
            vendor == CXL_VENDOR && id == CXL_DEVICE && capability & CXL_CACHE_CAPABLE != 0
        })?;
        let control = place + CXL_CONTROL;
        Some(Self { function, control })
    }

    /// Turns it off.
    ///
    /// # Errors
    /// The control register, if it stays on.
    pub(crate) fn turn_off(self, config: &impl PciConfig) -> Result<(), u16> {
        let read = || halves(config.config_read32(self.function, self.control)).0;
        let control = read();
        // One that is gone reads as all ones, and nothing is written to it.
        let is_on = control & CXL_CACHE_ENABLE != 0 && control != u16::MAX;
        if !is_on || Fault::LeaveCxlCacheOn.is_on() {
            return Ok(());
        }
        // The upper half is the status register, whose bits are cleared by writing 1: write 0 there.
        let off = control & !CXL_CACHE_ENABLE;
        config.config_write32(self.function, self.control, off.into());
        match read() {
            // Gone meanwhile.
            u16::MAX => Ok(()),
            control if control & CXL_CACHE_ENABLE == 0 => Ok(()),
            control => Err(control),
        }
    }
}

/// Turns off the CXL.cache of a function, if it has one that whoever had it before left on.
///
/// # Errors
/// Its control register, if it stays on.
pub(crate) fn stop_caching(config: &impl PciConfig, function: PciAddress) -> Result<(), u16> {
    CxlCache::of(config, function).map_or(Ok(()), |cache| cache.turn_off(config))
}

impl<B: Backend> Inner<B> {
    /// The switch of CXL.cache of each requester, where somebody gave their word for those; none otherwise.
    pub(crate) fn cxl_caches(&self) -> Result<Vec<Option<CxlCache>>, OutOfMemory> {
        let mut caches = Vec::new();
        let with_word = self.requesters.iter().filter(|_| self.has_cxl_word);
        for requester in with_word {
            push(&mut caches, self.cxl_cache_of(*requester))?;
        }
        Ok(caches)
    }

    /// The switch of CXL.cache that a requester goes by: its own, or that of the function that speaks for its device.
    fn cxl_cache_of(&self, requester: PciAddress) -> Option<CxlCache> {
        let topology = self.system.topology.lock();
        let sender = topology.sender(requester);
        let speaks = topology.first_of_device(sender);
        drop(topology);
        let config = self.system.backend.platform();
        let mut all = [requester, sender, speaks].into_iter();
        all.find_map(|function| CxlCache::of(config, function))
    }

    /// Refuses a group with a function that reaches memory past its unit, unless somebody gave their word for that.
    pub(crate) fn look_at_cxl_caches(&self) -> Result<(), AttachError> {
        if self.has_cxl_word || Fault::CxlCacheNotAsked.is_on() {
            return Ok(());
        }
        let caches = self
            .members
            .iter()
            .filter_map(|member| self.cxl_cache_of(*member));
        let mut refused = Ok(());
        for cache in caches {
            let function = cache.function;
            if self.system.caches_for_others(self.id, function) {
                // Turned off it would lose what another group's device has written.
                refused = refused.and(Err(AttachError::ReachesPastUnit { function }));
                continue;
            }
            let off = cache.turn_off(self.system.backend.platform());
            refused = refused.and(Err(match off {
                Ok(()) => AttachError::ReachesPastUnit { function },
                Err(control) => AttachError::KeepsCxlCache { function, control },
            }));
        }
        refused
    }

    /// A function of the group that may keep memory in a cache of its own.
    pub(crate) fn caching(&self) -> Option<PciAddress> {
        let registry = self.system.registry.lock();
        let mut ours = registry.bound.iter().filter(|bound| bound.group == self.id);
        ours.find_map(|bound| Some(bound.cxl_cache?.function))
    }
}

impl<B: Backend> System<B> {
    /// Whether a device of another group that is bound keeps memory by this function's word.
    fn caches_for_others(&self, group: GroupId, function: PciAddress) -> bool {
        let registry = self.registry.lock();
        let mut others = registry.bound.iter().filter(|bound| bound.group != group);
        others.any(|bound| {
            let cache = bound.cxl_cache;
            cache.is_some_and(|cache| cache.function == function)
        })
    }
}

impl<B: Backend> Group<B, Claimed<KernelPaging>> {
    /// Lets the group be attached although functions of it reach memory past their unit (CXL.cache), by the word of who
    /// vouches for them. It counts for this claim. Their driver turns their caches on (Cache_Enable), and has them written
    /// back before it gives the group up; they are off again before an entry of the group comes down, and when it is cut
    /// off.
    ///
    /// # Errors
    /// [`AttachFailed::Refused`], with the group: [`AttachError::NotVouchedFor`] when `trusted` is of another one.
    pub fn let_cxl_cache(
        mut self,
        trusted: &TrustedDevice<B>,
    ) -> Result<Self, AttachFailed<KernelPaging, B>> {
        if let Err(error) = trusted.counts_for(&self) {
            return Err(AttachFailed::Refused { group: self, error });
        }
        log::warn!(
            "BYPASS: {} {:?} may reach memory past its unit (CXL.cache): {}",
            self.id(),
            self.members(),
            trusted.reason()
        );
        self.inner.has_cxl_word = true;
        self.inner.has_asked = true;
        Ok(self)
    }
}
