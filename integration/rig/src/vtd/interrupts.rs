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
    /// Which of these three were written since the event was let through last, and whether it ever was.
    written: [bool; 3],
    was_on: bool,
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
            written: [false; 3],
            was_on: false,
        }
    }

    /// Whether all of a message is there, of which units that know wide APIC ids have an upper half: all of a new one, or
    /// nothing of one beside that of before.
    fn is_whole(&self, eim: bool) -> bool {
        match self.written {
            [false, false, false] => self.was_on,
            [data, address, upper] => data && address && (upper || !eim),
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
            let masked = value & spec::FECTL_IM != 0;
            if !masked && !self.event.is_whole(self.ecap.eim) {
                let what = format!(
                    "unit {}: the fault event was let through with a part of its message (data, address, upper address: \
                     {:?})",
                    self.index, self.event.written
                );
                bus.broken(Rule::Register, what);
            }
            if !masked {
                (self.event.written, self.event.was_on) = ([false; 3], true);
            }
            self.event.masked = masked;
            self.send_event(bus);
            return;
        }
        if offset == spec::FEADDR && value & spec::FEADDR_REMAPPABLE != 0 {
            let what = format!(
                "unit {}: the fault event's address is {value:#x}, of the format that is remapped, which nothing of a \
                 unit's own is",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
        if !self.event.masked {
            let what = format!(
                "unit {}: register {offset:#x} was written while the fault event is not masked",
                self.index
            );
            bus.broken(Rule::Register, what);
        }
        let (register, which) = match offset {
            spec::FEDATA => (&mut self.event.data, 0),
            spec::FEADDR => (&mut self.event.address, 1),
            _ => (&mut self.event.upper, 2),
        };
        *register = value;
        self.event.written[which] = true;
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
            let address = u64::from(upper) << u32::BITS | u64::from(address);
            bus.message_astray(self.index, address);
            return;
        }
        bus.interrupted(Interrupt {
            unit: self.index,
            cause: Cause::Faults,
            signal: Signal::Message(data),
        });
    }
}
