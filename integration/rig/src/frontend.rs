//! What the rig's core asks of a front end: one kind of IOMMU unit, whoever built it.
//!
//! The core has memory, devices, the ledger and time, and knows no vendor's bits. A front end has registers,
//! queues, caches and walkers, and touches the rest through the [`Bus`] that it is handed.

use std::ops::RangeInclusive;

use hv_iommu::FaultStage;
use hv_iommu::table::Mapping;

use crate::bus::Bus;
use crate::devices::Answering;
use crate::interrupt::Trouble;
use crate::refusing::Refusing;
use crate::request::{Reach, Request, Sender, Step};
use crate::rng::Rng;

/// How a unit is: what a test does to it from outside.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    /// Until when the unit does nothing, on the rig's clock.
    pub(crate) stuck_until: u64,
    /// Whether it hung for longer than a driver need wait, or failed, since it was last known to be well.
    pub(crate) was_ill: bool,
    /// After how many steps of the driver it is to hang, and for how long in nanoseconds.
    pub(crate) hangs_in: Option<(u32, u64)>,
    /// Whether the unit stopped answering at all: its registers read as all ones. Its walkers go on.
    pub(crate) gone: bool,
}

/// The longest that a unit may hang and still count as well, in nanoseconds.
const SHORT: u64 = 50_000_000;

impl Health {
    /// The unit does nothing for this many nanoseconds from now on.
    pub(crate) fn hang(&mut self, now: u64, nanos: u64) {
        self.stuck_until = now.saturating_add(nanos);
        self.was_ill |= nanos > SHORT;
    }

    /// The driver brought the unit back: from now on it counts as well, unless it hangs or is gone.
    pub(crate) fn recovered(&mut self, now: u64) {
        self.was_ill =
            self.stuck_until > now + SHORT || self.hangs_in.is_some_and(|(_, time)| time > SHORT);
    }
}

/// One unit.
pub(crate) trait FrontEnd: Send {
    /// Its number.
    fn index(&self) -> usize;

    /// How it is.
    fn health(&self) -> Health;

    /// The same, to change it.
    fn health_mut(&mut self) -> &mut Health;

    /// Whether it translates.
    fn is_on(&self) -> bool;

    /// The driver reads a register.
    fn read(&mut self, bus: &mut Bus, offset: u32, bits: u32) -> u64;

    /// The driver writes a register.
    fn write(&mut self, bus: &mut Bus, offset: u32, bits: u32, value: u64);

    /// The driver stored `new` over `old` in memory that the unit may walk.
    fn stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64);

    /// The driver says that bring-up is over.
    fn brought_up(&mut self, _bus: &mut Bus) {}

    /// Does some of what it has to do, at a moment between two steps of the driver.
    fn work(&mut self, bus: &mut Bus);

    /// Does one step of a request.
    fn advance(&mut self, bus: &mut Bus, request: &mut Request) -> Step;

    /// A device was given the translation that it asked for.
    fn keep_in_device(&mut self, _request: &Request, _reach: &Reach) {}

    /// A device makes up a translation: where a page leads.
    fn forge_in_device(&mut self, _requester: u16, _page: u64, _frame: u64) {}

    /// Where a device's own TLB leads for this request, whatever it was told since.
    fn kept_in_device(&self, _request: &Request) -> Option<u64> {
        None
    }

    /// A device with these requester ids is another one from now on: it keeps nothing.
    fn was_plugged(&mut self, _requesters: &[u16]) {}

    /// How many requests stand still.
    fn stalled(&self) -> usize {
        0
    }

    /// A device asks for a page: which, in which group, and whether that is the group's last.
    fn ask_for_page(&mut self, _bus: &mut Bus, _requester: u16, _page: u64, _tail: (u16, bool)) {}

    /// What a device was told about groups of pages: the group and the response.
    fn page_answers(&self, _requester: u16) -> Vec<(u16, u8)> {
        Vec::new()
    }

    /// How a device answers invalidations from now on.
    fn answers(&mut self, _requester: u16, _answering: Answering) {}

    /// A reason for a fault in words.
    fn reason(&self, code: u8) -> &'static str;

    /// Its queue stops at an error of its own.
    fn fail(&mut self, bus: &mut Bus);

    /// Which legal commands it calls illegal from now on.
    fn refuses(&mut self, refusing: Refusing);

    /// It suffers something, where its kind can.
    fn suffer(&mut self, bus: &mut Bus, trouble: Trouble) {
        let _ = (bus, trouble);
    }

    /// Drops something from its caches by itself.
    fn evict(&mut self, rng: &mut Rng);

    /// Fills its caches with what firmware's tables said about these requesters.
    fn leave_over(&mut self, requesters: &[u16], rng: &mut Rng);

    /// What of the unit still names one of these frames, in words.
    fn naming(&self, bus: &Bus, first: u64, pages: u64) -> Option<String>;

    /// What translation of one of these pages the unit still holds for a domain that one of these senders is
    /// bound to, in words.
    fn holding(&self, senders: &[Sender], page: u64, pages: u64) -> Option<String>;

    /// What the unit holds of this leaf's addresses, for a domain that one of these senders is bound to, that is
    /// not this leaf, in words.
    fn differing(&self, senders: &[Sender], leaf: &Mapping) -> Option<String>;

    /// How many frames of tables that bind devices the driver linked: how many at least and at most, as far as a unit
    /// can tell.
    fn binding_tables(&self) -> RangeInclusive<u64>;

    /// Whether the unit recorded such a fault lately.
    fn recorded(
        &self,
        requester: u16,
        address: u64,
        read: bool,
        reason: u8,
        stage: Option<FaultStage>,
    ) -> bool;
}
