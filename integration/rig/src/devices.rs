//! Functions that keep translations themselves: how they ask for them and use them, by a test's wish or their own.

use std::time::Duration;

use hv_core::{Access, Iova, PciAddress};

use crate::core::State;
use crate::machine::CxlCacheModel;
use crate::memory::frame_of;
use crate::pci::CxlCache;
use crate::request::{Outcome, Says};
use crate::rig::Rig;

/// How a device answers when it is told to forget what it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answering {
    /// As soon as it is told.
    AtOnce,
    /// After this time. It has forgotten only then.
    Late(Duration),
    /// Not at all: the unit finds that out, and stops.
    Not,
    /// The same, after this time.
    NotWithin(Duration),
    /// Not at all, and the unit waits for ever.
    NotEvenInTime,
    /// As soon as it is told to forget everything, which drivers do when they ask one alone; not when it is told to forget some
    /// pages.
    NotForPages,
}

impl State {
    /// A function's request with its own id that says that.
    fn with_says(
        &mut self,
        device: usize,
        address: u64,
        access: Access,
        says: impl FnOnce(&Self, &crate::request::Request) -> Option<Says>,
    ) -> Outcome {
        self.bus.tick += 1;
        let Some(function) = self.bus.functions.get(device) else {
            return Outcome::Lost;
        };
        let own = function.address.requester();
        if !self.bus.may_send(device) {
            return Outcome::Lost;
        }
        let Some(mut request) = self.bus.request(device, None, address, access) else {
            return Outcome::Lost;
        };
        request.requester = own;
        match says(self, &request) {
            Some(says) => {
                request.says = says;
                self.finish(&mut request)
            }
            None => Outcome::Lost,
        }
    }

    /// A function asks for a translation, and keeps it.
    pub(crate) fn ask(&mut self, device: usize, address: u64, access: Access) -> Outcome {
        self.with_says(device, address, access, |_, _| Some(Says::Asks))
    }

    /// A function sends a request by a translation that it kept.
    pub(crate) fn send_kept(&mut self, device: usize, address: u64, access: Access) -> Outcome {
        self.with_says(device, address, access, |state, request| {
            let unit = state.units.get(request.unit)?;
            let to = unit.kept_in_device(request)?;
            Some(Says::Translated { to })
        })
    }

    /// Functions that were told to ask do so, above all for what they were just told to forget, and use what they have.
    pub(crate) fn devices_ask(&mut self) {
        if !self.bus.watching {
            return;
        }
        if let Some((requester, page)) = self.bus.wanted.take() {
            let mut functions = self.bus.functions.iter();
            let found = functions
                .position(|function| function.address.requester() == requester && function.asks());
            if let Some(device) = found {
                self.ask(device, page << 12, Access::Read);
                self.ask(device, page << 12, Access::Write);
            }
        }
        for device in 0..self.bus.functions.len() {
            let asks = self
                .bus
                .functions
                .get(device)
                .is_some_and(|function| function.asks());
            if asks && self.bus.rng.one_in(2) {
                let address = self.bus.somewhere(device, None);
                let access = if self.bus.rng.one_in(2) {
                    Access::Read
                } else {
                    Access::Write
                };
                self.ask(device, address, access);
                self.send_kept(device, address, access);
            }
        }
    }
}

impl Rig {
    fn index_of(&self, function: PciAddress) -> Option<usize> {
        let state = self.core.quiet();
        let mut functions = state.bus.functions.iter();
        functions.position(|known| known.address == function)
    }

    /// A device asks for a translation, whether it was told to or not, and keeps what it gets.
    pub fn ask(&self, function: PciAddress, at: Iova, access: Access) -> Outcome {
        let index = self.index_of(function);
        let mut state = self.core.quiet();
        index.map_or(Outcome::Lost, |index| state.ask(index, at.as_u64(), access))
    }

    /// A device sends a request by a translation that it kept; [`Outcome::Lost`] if it has none.
    pub fn access_kept(&self, function: PciAddress, at: Iova, access: Access) -> Outcome {
        let index = self.index_of(function);
        let mut state = self.core.quiet();
        index.map_or(Outcome::Lost, |index| {
            state.send_kept(index, at.as_u64(), access)
        })
    }

    /// A device makes up a translation, to memory at `to`.
    pub fn forge(&self, function: PciAddress, at: Iova, to: u64) {
        let mut state = self.core.quiet();
        let mut functions = state.bus.functions.iter();
        let found = functions.find(|known| known.address == function);
        let unit = found.map(|known| known.unit);
        if let Some(unit) = unit.and_then(|unit| state.units.get_mut(unit)) {
            let (page, frame) = (frame_of(at.as_u64()), frame_of(to));
            unit.forge_in_device(function.requester(), page, frame);
        }
    }

    /// A device asks for a page, in a group of which this is the last or is not.
    pub fn ask_for_page(&self, function: PciAddress, at: Iova, group: u16, last: bool) {
        let mut state = self.core.quiet();
        let state = &mut *state;
        let mut functions = state.bus.functions.iter();
        let found = functions.find(|known| known.address == function);
        let unit = found.map(|known| known.unit);
        if let Some(unit) = unit.and_then(|unit| state.units.get_mut(unit)) {
            let (own, page) = (function.requester(), frame_of(at.as_u64()));
            unit.ask_for_page(&mut state.bus, own, page, (group, last));
        }
    }

    /// What a device was told about the pages that it asked for: group and response, in the vendor's numbers.
    pub fn page_answers(&self, function: PciAddress) -> Vec<(u16, u8)> {
        let state = self.core.quiet();
        let mut functions = state.bus.functions.iter();
        let found = functions.find(|known| known.address == function);
        let unit = found.and_then(|known| state.units.get(known.unit));
        unit.map_or_else(Vec::new, |unit| unit.page_answers(function.requester()))
    }

    /// Whether a unit translates.
    pub fn translates(&self, unit: usize) -> bool {
        let state = self.core.quiet();
        state.units.get(unit).is_some_and(|unit| unit.is_on())
    }

    /// How many requests stand still in a unit.
    pub fn stalled(&self, unit: usize) -> usize {
        let state = self.core.quiet();
        state.units.get(unit).map_or(0, |unit| unit.stalled())
    }

    /// Whether a function is set to ask for translations.
    pub fn asks(&self, function: PciAddress) -> bool {
        let state = self.core.quiet();
        let mut functions = state.bus.functions.iter();
        functions.any(|known| known.address == function && known.asks())
    }

    /// The driver of a function turns its cache on, or locks it as well.
    pub fn cache(&self, function: PciAddress, model: CxlCacheModel) {
        let mut state = self.core.quiet();
        let mut functions = state.bus.functions.iter_mut();
        if let Some(known) = functions.find(|known| known.address == function) {
            known.cxl_cache = known.cxl_cache.map(|_| CxlCache::new(model, true));
        }
    }

    /// Whether a function keeps memory in a cache of its own, at which no unit looks (CXL.cache): it reaches all of it.
    pub fn caches(&self, function: PciAddress) -> bool {
        let state = self.core.quiet();
        let mut functions = state.bus.functions.iter();
        functions.any(|known| known.address == function && known.caches())
    }

    /// A device answers no invalidation from now on, or does again.
    pub fn mute(&self, function: PciAddress, mute: bool) {
        self.answer(
            function,
            if mute {
                Answering::Not
            } else {
                Answering::AtOnce
            },
        );
    }

    /// How a device answers invalidations from now on.
    pub fn answer(&self, function: PciAddress, answering: Answering) {
        let mut state = self.core.quiet();
        let mut functions = state.bus.functions.iter_mut();
        let found = functions.find(|known| known.address == function);
        let unit = found.map(|known| {
            known.silent |= !matches!(answering, Answering::AtOnce | Answering::Late(_));
            known.unit
        });
        if let Some(unit) = unit.and_then(|unit| state.units.get_mut(unit)) {
            unit.answers(function.requester(), answering);
        }
    }
}
