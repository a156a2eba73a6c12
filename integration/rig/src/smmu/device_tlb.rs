//! Devices that keep translations themselves (ATS): they forget what an ATC_INV names and nothing else, and use what they
//! have whatever they were told otherwise.

use std::collections::BTreeMap;

use hv_core::Access;

use super::Unit;
use super::caches::Tag;
use super::spec::event::{self, At};
use super::spec::registers;
use super::spec::stream::Stream;
use crate::bus::Bus;
use crate::devices::Answering;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::pci::Function;
use crate::request::{Progress, Request, Says, Step};

/// What devices keep.
#[derive(Default)]
pub(crate) struct Devices {
    /// By stream, page and whether it is for writing: the frame.
    kept: BTreeMap<(u32, u64, bool), u64>,
    /// How those answer that do not at once.
    answering: BTreeMap<u32, Answering>,
    /// When the unit, or the bus, gives up one that does not answer; `u64::MAX` for never.
    given_up: Option<u64>,
}

/// How much time the bus gives a device, in nanoseconds, mostly and rarely.
const GIVEN: [u64; 2] = [100_000_000, 2_000_000_000];

fn writes(request: &Request) -> bool {
    request.access == Access::Write
}

/// Whether a refusal of this kind of request is no event: only what configuration forbids is (IHI 0070, 3.9.1.2).
pub(super) fn is_silent(request: &Request, code: u8) -> bool {
    let forbidden = matches!(code, event::BAD_ASK | event::TRANSLATED_FORBIDDEN);
    request.says != Says::Untranslated && !forbidden
}

impl Devices {
    /// A device keeps where an address leads.
    pub(crate) fn keep(&mut self, stream: u32, request: &Request, to: u64) {
        let key = (stream, frame_of(request.address), writes(request));
        self.kept.insert(key, frame_of(to));
    }

    /// Where it leads by what the device keeps.
    pub(crate) fn kept(&self, stream: u32, request: &Request) -> Option<u64> {
        let key = (stream, frame_of(request.address), writes(request));
        let frame = self.kept.get(&key)?;
        Some(frame * FRAME_BYTES + request.address % FRAME_BYTES)
    }

    /// A device makes up where a page leads.
    pub(crate) fn forge(&mut self, stream: u32, page: u64, frame: u64) {
        for writes in [false, true] {
            self.kept.insert((stream, page, writes), frame);
        }
    }

    /// How a device answers invalidations from now on.
    pub(crate) fn answer(&mut self, stream: u32, answering: Answering) {
        self.answering.insert(stream, answering);
    }

    /// How long a device takes, in nanoseconds.
    pub(super) fn takes(&self, stream: u32) -> u64 {
        match self.answering.get(&stream) {
            Some(Answering::Late(time)) => time.as_nanos() as u64,
            _ => 0,
        }
    }

    /// A device does not answer. In what time that is known differs.
    fn silent(&mut self, bus: &mut Bus, never: bool) {
        let given = match (never, bus.temper.slow, bus.rng.one_in(16)) {
            (true, ..) => u64::MAX,
            (_, false, _) => 0,
            (_, true, false) => bus.rng.below(GIVEN[0]),
            (_, true, true) => GIVEN[1],
        };
        let due = bus.nanos.saturating_add(given);
        self.given_up = Some(self.given_up.map_or(due, |earlier| earlier.max(due)));
    }

    /// Whether one was waited for too long. Whoever goes on behind that may find the same once more.
    pub(super) fn is_given_up(&mut self, bus: &mut Bus) -> bool {
        let now = bus.nanos;
        if self.given_up.is_none_or(|due| due > now) {
            return false;
        }
        self.given_up = bus.rng.one_in(4).then_some(now + 1000);
        true
    }

    /// Whether one is waited for.
    pub(super) fn is_awaited(&self) -> bool {
        self.given_up.is_some()
    }

    /// Nobody waits for any of them any more.
    pub(super) fn nobody_waits(&mut self) {
        self.given_up = None;
    }
}

impl Unit {
    /// Whether a stream's device gets through with translations of its own, now or by what the unit keeps of its entry.
    fn lets_through(&self, stream: u32) -> bool {
        if self.control & registers::ATSCHK == 0 {
            return true;
        }
        let asks = |entry: &Stream| matches!(entry, Stream::Translates(stages) if stages.asks);
        let mut kept = self.caches.configuration.entries_of(stream);
        self.structures.asks(stream) || kept.any(asks)
    }

    /// What becomes of a translated request that nobody looks at.
    pub(super) fn unchecked(&self, request: &Request) -> Option<Step> {
        let Says::Translated { to } = request.says else {
            return None;
        };
        let checks = self.control & registers::ATSCHK != 0;
        (!checks).then_some(Step::Translated {
            to,
            tag: Tag::Untagged.into(),
        })
    }

    /// What a stream's entry says about a request of a device that keeps translations; `None` where it is to be translated.
    pub(super) fn says(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        entry: &Stream,
    ) -> Option<Step> {
        let asks = match entry {
            Stream::Translates(stages) => stages.asks,
            Stream::Bypass | Stream::Abort | Stream::Invalid => false,
        };
        let silent = Step::Lost {
            why: "the stream's entry, which aborts",
        };
        match (request.says, entry) {
            (Says::Untranslated, _) => None,
            (_, Stream::Abort | Stream::Invalid) => Some(silent),
            (Says::Asks, _) if asks => None,
            (Says::Asks, _) => Some(self.refuse(bus, request, event::BAD_ASK, true, At::First)),
            (Says::Translated { to }, _) if asks => Some(Step::Translated {
                to,
                tag: Tag::Untagged.into(),
            }),
            (Says::Translated { .. }, _) => {
                let code = event::TRANSLATED_FORBIDDEN;
                Some(self.refuse(bus, request, code, true, At::First))
            }
        }
    }

    /// A device was told to forget. What it sent by that is to arrive before the next sync is done.
    pub(super) fn device_told(&mut self, bus: &mut Bus, stream: u32, first: u64, last: u64) {
        let requester = stream.wrapping_sub(self.identity.first_stream) as u16;
        let is_it = |function: &&mut Function| {
            function.unit == self.index && function.requesters.contains(&requester)
        };
        let one = bus.functions.iter_mut().find(is_it);
        let gone = one.is_some_and(|one| {
            one.silent |= !one.present;
            !one.present
        });
        let answering = self.devices.answering.get(&stream);
        let never = answering == Some(&Answering::NotEvenInTime);
        if gone || never || answering == Some(&Answering::Not) {
            self.devices.silent(bus, never);
            return;
        }
        let covered = |page: u64| (first..=last).contains(&(page * FRAME_BYTES));
        let kept = &mut self.devices.kept;
        let forgotten = kept
            .keys()
            .find(|(own, page, _)| *own == stream && covered(*page));
        // It asks for that again at once.
        bus.wanted = forgotten.map(|(_, page, _)| (requester, *page));
        kept.retain(|(own, page, _), _| *own != stream || !covered(*page));
        for request in &bus.requests {
            let mine = request.unit == self.index && request.requester == requester;
            let under_way = matches!(request.progress, Progress::Translated { .. });
            if mine && under_way && request.says != Says::Untranslated {
                self.queue.drains.push(request.number);
            }
        }
    }

    /// What a device that gets through keeps of these frames, in words.
    pub(super) fn device_naming(&self, first: u64, pages: u64) -> Option<String> {
        let frames = first..first + pages;
        let mut kept = self.devices.kept.iter();
        let ((stream, page, _), frame) = kept
            .find(|((stream, ..), frame)| frames.contains(frame) && self.lets_through(*stream))?;
        Some(format!(
            "what the device of stream {stream:#x} keeps for page {page:#x}: frame {frame:#x}"
        ))
    }

    /// What a device of these streams that gets through keeps of these pages, in words.
    pub(super) fn device_holding(
        &self,
        streams: &[(u32, Option<u32>)],
        first: u64,
        pages: u64,
    ) -> Option<String> {
        let range = first..first + pages;
        let mut kept = self.devices.kept.keys();
        let (stream, page, _) = kept.find(|(stream, page, _)| {
            streams.contains(&(*stream, None)) && range.contains(page) && self.lets_through(*stream)
        })?;
        Some(format!(
            "what the device of stream {stream:#x} keeps for page {page:#x}"
        ))
    }
}
