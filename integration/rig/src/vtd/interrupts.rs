//! The fault event of a VT-d unit: one message, sent when a condition comes up while none was, and kept while it is masked.

use super::Unit;
use super::spec::registers as spec;
use crate::bus::Bus;
use crate::interrupt::{Cause, Interrupt, Signal};
use crate::rule::Rule;

/// Where a write is an interrupt: the page of the first local APIC, and how far the ids of others reach.
const APICS: std::ops::Range<u64> = 0xfee0_0000..0xfef0_0000;

/// The registers of the event.
pub(super) struct FaultEvent {
    /// FECTL.IM, set after reset.
    masked: bool,
    /// FECTL.IP: a message is kept.
    pending: bool,
    data: u32,
    address: u32,
    upper: u32,
}

impl FaultEvent {
    /// After reset.
    pub(super) const fn new() -> Self {
        Self {
            masked: true,
            pending: false,
            data: 0,
            address: 0,
            upper: 0,
        }
    }

    /// What the driver reads.
    pub(super) const fn read(&self, offset: u32) -> u32 {
        match offset {
            spec::FECTL => {
                let masked = if self.masked { spec::FECTL_IM } else { 0 };
                let pending = if self.pending { spec::FECTL_IP } else { 0 };
                masked | pending
            }
            spec::FEDATA => self.data,
            spec::FEADDR => self.address,
            _ => self.upper,
        }
    }
}

impl Unit {
    /// A condition came up: FSTS was `before`. It is none if software has not dealt with an earlier one.
    pub(super) fn condition(&mut self, bus: &mut Bus, before: u32) {
        let is_new = before & spec::FSTS_CONDITIONS == 0;
        if is_new && self.fault_status() & spec::FSTS_CONDITIONS != 0 {
            self.event.pending = true;
            self.send_event(bus);
        }
    }

    /// Software has dealt with something. With everything, a message that is kept is of nothing any more.
    pub(super) fn dealt_with(&mut self) {
        if self.fault_status() & spec::FSTS_CONDITIONS == 0 {
            self.event.pending = false;
        }
    }

    /// The driver writes a register of the event: where it goes only while it goes nowhere.
    pub(super) fn event_written(&mut self, bus: &mut Bus, offset: u32, value: u32) {
        let upper = if self.ecap.eim {
            spec::FEUADDR_KNOWN
        } else {
            0
        };
        let known = match offset {
            spec::FECTL => spec::FECTL_IM,
            spec::FEDATA => spec::FEDATA_KNOWN,
            spec::FEADDR => spec::FEADDR_KNOWN,
            _ => upper,
        };
        if value & !known != 0 {
            let what = format!(
                "unit {}: register {offset:#x} was written with {value:#x}, reserved bits set",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
        if offset == spec::FECTL {
            self.event.masked = value & spec::FECTL_IM != 0;
            self.send_event(bus);
            return;
        }
        if !self.event.masked {
            let what = format!(
                "unit {}: register {offset:#x} was written while the fault event is not masked",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
        match offset {
            spec::FEDATA => self.event.data = value,
            spec::FEADDR => self.event.address = value,
            _ => self.event.upper = value,
        }
    }

    /// Sends what is kept, if that is not masked.
    fn send_event(&mut self, bus: &mut Bus) {
        if self.event.masked || !self.event.pending {
            return;
        }
        self.event.pending = false;
        let FaultEvent {
            data,
            address,
            upper,
            ..
        } = self.event;
        if !APICS.contains(&address.into()) {
            let what = format!(
                "unit {} wrote an interrupt message to {upper:#x}:{address:#010x}, where nobody takes any",
                self.index
            );
            bus.broken(Rule::ForeignMemory, what);
            return;
        }
        let (unit, cause) = (self.index, Cause::Faults);
        let signal = Signal::Message(data);
        bus.note_unit(unit, || format!("interrupts: {cause:?}, {signal:?}"));
        bus.interrupts.push(Interrupt {
            unit,
            cause,
            signal,
        });
    }
}
