//! The event queue of an SMMUv3: the unit fills it, software empties it, and what finds no room is lost.

use std::collections::VecDeque;

use hv_iommu::FaultStage;

use super::Unit;
use super::spec::{event, registers};
use crate::bus::Bus;
use crate::interrupt::{Cause, Log};
use crate::memory::frame_of;
use crate::request::{Request, Step};
use crate::rule::Rule;

/// How many former records are remembered, to compare with what the driver reports.
const REMEMBERED: usize = 4096;

/// An event, and the stage that refused, where its record tells.
type What = (u8, Option<FaultStage>);

/// The queue.
#[derive(Default)]
pub(crate) struct Events {
    pub(crate) base: u64,
    pub(crate) log2: u8,
    /// Whether a queue was given.
    pub(crate) given: bool,
    /// Index registers as software sees them.
    pub(crate) prod: u32,
    pub(crate) cons: u32,
    /// Whether the driver was told of something that it did not take since.
    told: bool,
    /// What was recorded lately: event and stage, requester, page, whether it read.
    recorded: VecDeque<(What, u16, u64, bool)>,
}

impl Events {
    /// Whether a record said this lately.
    pub(crate) fn recorded(&self, requester: u16, address: u64, read: bool, what: What) -> bool {
        self.recorded.contains(&(what, requester, address, read))
    }

    /// Whether the queue lies in these frames.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let bytes = event::RECORD_BYTES << self.log2;
        let mine = frame_of(self.base)..=frame_of(self.base + bytes - 1);
        let overlaps = first <= *mine.end() && *mine.start() < first + pages;
        (self.given && overlaps).then(|| format!("its event queue at {:#x}", self.base))
    }
}

impl Unit {
    /// Refuses a request, and records that where the stream wants it and there is room.
    pub(super) fn refuse(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        code: u8,
        records: bool,
        at: event::At,
    ) -> Step {
        bus.note_unit(self.index, || {
            format!(
                "refuses {} of {:#06x} at {:#x}: event {code:#x}",
                request.access, request.requester, request.address
            )
        });
        // What passes the first stage over and is too wide is over at once (IHI 0070, 3.12).
        if at != event::At::Neither
            && let Some(step) = self.stall(bus, request, code, at)
        {
            return step;
        }
        let wanted = match code {
            event::BAD_STREAM => self.cr2 & registers::CR2_RECINVSID != 0,
            _ => records || !event::is_of_translation(code),
        };
        if wanted && !super::device_tlb::is_silent(request, code) {
            self.record(bus, request, code, at, None);
        }
        Step::Fault { reason: code }
    }

    /// Records an event, of a request that stands still if it has a `tag`. Whether it is over with: written, or lost in the
    /// writing, where that is noticed too late to try again.
    pub(super) fn record(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        code: u8,
        stage: event::At,
        tag: Option<u16>,
    ) -> bool {
        if self.control & registers::EVENTQEN == 0 || !self.events.given {
            return false;
        }
        // Nothing is written until somebody has seen that something could not be.
        if (self.errors ^ self.errors_seen) & registers::GERROR_EVENTQ_ABT != 0 {
            return false;
        }
        let log2 = self.events.log2;
        let prod = registers::position(self.events.prod, log2);
        let cons = registers::position(self.events.cons, log2);
        if registers::distance(cons, prod, log2) >= 1 << log2 {
            // An overflow that nobody has seen yet says so already; what stands still is not lost.
            let unseen = (self.events.prod ^ self.events.cons) & registers::OVERFLOW != 0;
            if !unseen && tag.is_none() {
                self.events.prod ^= registers::OVERFLOW;
            }
            return false;
        }
        let stream = self.stream_of(request.requester);
        let read = request.access == hv_core::Access::Read;
        let at = self.events.base + (prod & ((1 << log2) - 1)) * event::RECORD_BYTES;
        if !bus.frames.is_out(frame_of(at)) {
            let what = format!(
                "unit {} wrote an event to {at:#x}, which is free",
                self.index
            );
            bus.broken(Rule::FreedMemory, what);
            return false;
        }
        let next = (prod + 1) & ((2 << log2) - 1);
        let was_empty = cons == prod;
        if let Some(index_moves) = self.ills.record.take() {
            if index_moves {
                self.events.prod = self.events.prod & registers::OVERFLOW | next as u32;
                if was_empty {
                    self.interrupt(bus, Cause::Faults);
                }
            }
            self.error(bus, registers::GERROR_EVENTQ_ABT);
            return index_moves;
        }
        let who = (stream, request.substream);
        let lies = event::has_stage(code) && std::mem::take(&mut self.ills.says_stalled);
        let tag = tag.or(lies.then_some(!0));
        let words = event::record(code, who, (request.address, read), stage, tag);
        for (at, word) in (at..).step_by(8).zip(words) {
            bus.memory.write_bytes(at, &word.to_le_bytes());
        }
        self.events.prod = self.events.prod & registers::OVERFLOW | next as u32;
        if was_empty {
            self.interrupt(bus, Cause::Faults);
        }
        let told = event::has_address(code);
        let page = if told { request.address >> 12 << 12 } else { 0 };
        if self.events.recorded.len() == REMEMBERED {
            self.events.recorded.pop_front();
        }
        let refused_by = match stage {
            event::At::Neither => None,
            event::At::First => Some(FaultStage::First),
            event::At::Second { .. } => Some(FaultStage::Second),
        };
        let what = (code, refused_by.filter(|_| event::has_stage(code)));
        let entry = (what, request.requester, page, read || !told);
        self.events.recorded.push_back(entry);
        true
    }

    /// The driver stored into the queue. Where the unit does not snoop, that line comes back over records later.
    pub(super) fn events_stored(&mut self, bus: &mut Bus, at: u64) {
        let bytes = event::RECORD_BYTES << self.events.log2;
        let is_in = (self.events.base..self.events.base + bytes).contains(&at);
        let is_on = self.control & registers::EVENTQEN != 0 && self.events.given;
        if is_in && is_on && !self.identity.coherent {
            let what = format!(
                "unit {} does not snoop, and the driver wrote to its event queue at {at:#x}: the line is written back \
                 over records beside it",
                self.index
            );
            bus.broken(Rule::Queue, what);
        }
    }

    /// EVENTQ_PROD, for a driver that is to take what that tells it of before it looks again.
    pub(super) fn events_told(&mut self, bus: &mut Bus) -> u32 {
        if let Some(lie) = self.ills.lie(Log::Faults) {
            self.events.told = false;
            return lie;
        }
        let (prod, cons) = (self.events.prod, self.events.cons);
        let is_on = self.control & registers::EVENTQEN != 0;
        if is_on && self.events.told {
            let what = format!(
                "unit {}: EVENTQ_PROD {prod:#x} was read again, and EVENTQ_CONS stays at {cons:#x}",
                self.index
            );
            bus.broken(Rule::Queue, what);
        }
        self.events.told = is_on && prod != cons;
        prod
    }

    /// Software took records, or saw an overflow.
    pub(super) fn events_taken(&mut self, bus: &mut Bus, value: u32) {
        let log2 = self.events.log2;
        let known = registers::OVERFLOW | ((2_u32 << log2) - 1);
        if value & !known != 0 {
            let what = format!(
                "unit {}: EVENTQ_CONS {value:#x} has bits that are none",
                self.index
            );
            bus.broken(Rule::Queue, what);
        }
        let before = registers::position(self.events.cons, log2);
        let prod = registers::position(self.events.prod, log2);
        let now = registers::position(value, log2);
        let on = self.control & registers::EVENTQEN != 0;
        let past = registers::distance(before, now, log2) > registers::distance(before, prod, log2);
        let lied = self.ills.lied.take().filter(|(log, _)| *log == Log::Faults);
        let to_lie = lied.is_some_and(|(_, lie)| registers::position(lie, log2) == now);
        if on && past && !to_lie {
            let what = format!(
                "unit {}: EVENTQ_CONS went from {before:#x} to {now:#x}, past EVENTQ_PROD {prod:#x}",
                self.index
            );
            bus.broken(Rule::Queue, what);
        }
        self.events.cons = value & known;
        self.events.told = false;
    }
}
