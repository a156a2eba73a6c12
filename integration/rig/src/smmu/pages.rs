//! The queue of requests for pages (PRI): the unit fills it, and software answers each group.

use super::Unit;
use super::spec::registers;
use crate::bus::Bus;
use crate::interrupt::Log;
use crate::memory::frame_of;
use crate::rule::Rule;

/// Bytes of a request.
const REQUEST_BYTES: u64 = 16;
/// Log2 of the most entries (IDR1.PRIQS).
pub(crate) const LOG2_MOST: u8 = 3;

/// The queue.
#[derive(Default)]
pub(crate) struct Pages {
    base: u64,
    log2: u8,
    given: bool,
    prod: u32,
    cons: u32,
    /// What devices were told, by software or by the unit itself: stream, group, response.
    answers: Vec<(u32, u16, u8)>,
}

impl Pages {
    /// Whether the queue lies in these frames.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let bytes = REQUEST_BYTES << self.log2;
        let mine = frame_of(self.base)..=frame_of(self.base + bytes - 1);
        let overlaps = first <= *mine.end() && *mine.start() < first + pages;
        (self.given && overlaps).then(|| format!("its page request queue at {:#x}", self.base))
    }

    /// What a stream was told so far.
    pub(crate) fn answers(&self, stream: u32) -> Vec<(u16, u8)> {
        let mine = self.answers.iter().filter(|(own, ..)| *own == stream);
        mine.map(|(_, group, code)| (*group, *code)).collect()
    }

    /// Its indices, and how large it is.
    pub(super) fn indices(&mut self) -> (&mut u32, u32, u8) {
        (&mut self.prod, self.cons, self.log2)
    }

    /// Whether it has a place in memory.
    pub(crate) fn is_given(&self) -> bool {
        self.given
    }
}

impl Unit {
    /// A device asks for a page.
    pub(super) fn page_asked(&mut self, bus: &mut Bus, stream: u32, page: u64, tail: (u16, bool)) {
        let (group, last) = tail;
        let on = self.control & registers::PRIQEN != 0 && self.translates();
        if !on || !self.pages.given {
            if last {
                self.pages.answers.push((stream, group, 0));
            }
            return;
        }
        let log2 = self.pages.log2;
        let prod = registers::position(self.pages.prod, log2);
        let cons = registers::position(self.pages.cons, log2);
        let overflows = (self.pages.prod ^ self.pages.cons) & registers::OVERFLOW != 0;
        if overflows || registers::distance(cons, prod, log2) >= 1 << log2 {
            if !overflows {
                self.pages.prod ^= registers::OVERFLOW;
            }
            if last {
                // The unit answers by itself: success.
                self.pages.answers.push((stream, group, 2));
            }
            return;
        }
        let at = self.pages.base + (prod & ((1 << log2) - 1)) * REQUEST_BYTES;
        let words = [
            u64::from(stream) | 1 << 60 | u64::from(last) << 62,
            page << 12 | u64::from(group),
        ];
        for (at, word) in (at..).step_by(8).zip(words) {
            bus.memory.write_bytes(at, &word.to_le_bytes());
        }
        let next = (prod + 1) & ((2 << log2) - 1);
        self.pages.prod = self.pages.prod & registers::OVERFLOW | next as u32;
    }

    /// Software answered a group.
    pub(super) fn page_answered(&mut self, stream: u32, group: u16, code: u8) {
        self.pages.answers.push((stream, group, code));
    }

    /// PRIQ_PROD or PRIQ_CONS.
    pub(super) fn page_index(&mut self, offset: u32) -> u32 {
        match offset {
            registers::PRIQ_PROD => self.ills.lie(Log::Pages).unwrap_or(self.pages.prod),
            _ => self.pages.cons,
        }
    }

    /// Software wrote a register of the queue.
    pub(super) fn page_register_written(&mut self, bus: &mut Bus, offset: u32, value: u64) {
        let on = (self.control | self.wanted) & registers::PRIQEN != 0;
        let mut wrong = |what: String| {
            let what = format!("unit {}: {what}", self.index);
            bus.broken(Rule::Queue, what);
        };
        let (low, log2) = (value as u32, self.pages.log2);
        match offset {
            registers::PRIQ_CONS => {
                let before = registers::position(self.pages.cons, log2);
                let prod = registers::position(self.pages.prod, log2);
                let now = registers::position(low, log2);
                let past = registers::distance(before, now, log2)
                    > registers::distance(before, prod, log2);
                let lied = self.ills.lied.take().filter(|(log, _)| *log == Log::Pages);
                let to_lie = lied.is_some_and(|(_, lie)| registers::position(lie, log2) == now);
                if on && past && !to_lie {
                    wrong(format!(
                        "PRIQ_CONS went from {before:#x} to {now:#x}, past PRIQ_PROD"
                    ));
                }
                self.pages.cons = low;
            }
            _ if on => wrong("the page request queue was given anew while it is on".to_owned()),
            registers::PRIQ_PROD => self.pages.prod = low,
            _ => {
                let bits = self.identity.address_bits();
                match registers::queue_base(value, REQUEST_BYTES, LOG2_MOST, bits) {
                    Ok(queue) => {
                        (self.pages.base, self.pages.log2) = (queue.base, queue.log2);
                        self.pages.given = true;
                    }
                    Err(why) => wrong(format!("PRIQ_BASE {value:#x}: {why}")),
                }
            }
        }
    }
}
