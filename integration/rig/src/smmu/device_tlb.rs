//! Devices that keep translations themselves (ATS): they forget what an ATC_INV names and nothing else, and use what they
//! have whatever they were told otherwise.
//!
//! A completion says of how much it is: up to the leaf (IHI 0070, 13.6.3), and no less than the smallest unit that the
//! function was set to, a page. Its device keeps all of that as one entry, which goes with any page of it.

use std::collections::BTreeMap;

use hv_core::Access;

use super::Unit;
use super::spec::event::{self, At};
use super::spec::registers;
use super::spec::stream::Stream;
use super::walk::untagged;
use crate::bus::Bus;
use crate::devices::Answering;
use crate::memory::{FRAME_BYTES, frame_of};
use crate::pci::Function;
use crate::request::{Progress, Reach, Request, Says, Step};
use crate::rng::Rng;

/// Log2 bytes of the smallest entry, and of the largest, which no leaf is above.
const SMALLEST: u8 = 12;
const LARGEST: u8 = 39;

/// What an entry of a device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    stream: u32,
    writes: bool,
    /// Log2 bytes.
    span: u8,
    /// The address bits from there up.
    index: u64,
}

impl Key {
    const fn of(stream: u32, writes: bool, span: u8, address: u64) -> Self {
        let index = address >> span;
        Self {
            stream,
            writes,
            span,
            index,
        }
    }

    const fn first(&self) -> u64 {
        self.index << self.span
    }

    /// Whether one of the bytes from `first` to `last` is in it.
    const fn overlaps(&self, first: u64, last: u64) -> bool {
        self.first() <= last && first >> self.span <= self.index
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stream, span, first) = (self.stream, self.span, self.first());
        write!(
            f,
            "what the device of stream {stream:#x} keeps for 2^{span} bytes at {first:#x}"
        )
    }
}

/// What devices keep.
#[derive(Default)]
pub(crate) struct Devices {
    /// Where entries lead.
    kept: BTreeMap<Key, u64>,
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
    /// A device keeps where an address leads: all of the leaf, or as much of it as it was answered.
    pub(crate) fn keep(&mut self, stream: u32, request: &Request, reach: &Reach) {
        // Of its own, so that what else happens does not depend on it.
        let mut rng = Rng::new(request.number ^ 0x6174_7320_7369_7a65);
        let whole = reach.span.clamp(SMALLEST, LARGEST);
        let span = match rng.one_in(2) {
            true => whole,
            false => SMALLEST + rng.below(u64::from(whole - SMALLEST) + 1) as u8,
        };
        let key = Key::of(stream, writes(request), span, request.address);
        self.kept.insert(key, reach.to >> span << span);
    }

    /// Where it leads by what the device keeps.
    pub(crate) fn kept(&self, stream: u32, request: &Request) -> Option<u64> {
        (SMALLEST..=LARGEST).find_map(|span| {
            let key = Key::of(stream, writes(request), span, request.address);
            let to = self.kept.get(&key)?;
            Some(to + (request.address - key.first()))
        })
    }

    /// A device makes up where a page leads.
    pub(crate) fn forge(&mut self, stream: u32, page: u64, frame: u64) {
        for writes in [false, true] {
            let key = Key::of(stream, writes, SMALLEST, page * FRAME_BYTES);
            self.kept.insert(key, frame * FRAME_BYTES);
        }
    }

    /// A device forgets what has one of these bytes in it. Gives a page that it had kept.
    pub(super) fn forget(&mut self, stream: u32, first: u64, last: u64) -> Option<u64> {
        let goes = |key: &Key| key.stream == stream && key.overlaps(first, last);
        let forgotten = self.kept.keys().find(|key| goes(key));
        let page = forgotten.map(|key| frame_of(key.first().max(first)));
        self.kept.retain(|key, _| !goes(key));
        page
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
    fn silent(&mut self, bus: &mut Bus, how: Answering) {
        let given = match (how, bus.temper.slow, bus.rng.one_in(16)) {
            (Answering::NotEvenInTime, ..) => u64::MAX,
            (Answering::NotWithin(time), ..) => time.as_nanos() as u64,
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

    /// Whoever had the unit before asked a device that does not answer; the unit gives it up then.
    pub(super) fn left_over(&mut self, given_up: u64) {
        self.given_up = Some(given_up);
    }

    /// The queue was turned off: what it waited for may go on, and whoever waits next waits for that too (IHI 0070, 6.3.9.3).
    /// One that waits for ever would never come on again.
    pub(super) fn queue_off(&mut self, bus: &mut Bus) {
        let goes_on = bus.rng.one_in(2);
        self.given_up = self.given_up.filter(|due| *due != u64::MAX && goes_on);
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
        (!checks).then(|| untagged(request, to))
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
            (Says::Translated { to }, _) if asks => Some(untagged(request, to)),
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
        let answering = self.devices.answering.get(&stream).copied();
        match answering.unwrap_or(Answering::AtOnce) {
            how @ (Answering::Not | Answering::NotWithin(_) | Answering::NotEvenInTime) => {
                return self.devices.silent(bus, how);
            }
            _ if gone => return self.devices.silent(bus, Answering::Not),
            Answering::NotForPages if (first, last) != (0, u64::MAX) => {
                return self.devices.silent(bus, Answering::Not);
            }
            Answering::AtOnce | Answering::Late(_) | Answering::NotForPages => {}
        }
        // It asks for that again at once.
        let forgotten = self.devices.forget(stream, first, last);
        bus.wanted = forgotten.map(|page| (requester, page));
        for request in &bus.requests {
            let mine = request.unit == self.index && request.requester == requester;
            let under_way = matches!(request.progress, Progress::Translated(_));
            if mine && under_way && request.says != Says::Untranslated {
                self.queue.drains.push(request.number);
            }
        }
    }

    /// What a device that gets through keeps of these frames, in words.
    pub(super) fn device_naming(&self, first: u64, pages: u64) -> Option<String> {
        let (from, end) = (first * FRAME_BYTES, (first + pages) * FRAME_BYTES);
        let mut kept = self.devices.kept.iter();
        let (key, to) = kept.find(|(key, to)| {
            **to < end && from < **to + (1 << key.span) && self.lets_through(key.stream)
        })?;
        Some(format!("{key}: {to:#x}"))
    }

    /// What a device of these streams that gets through keeps of the leaf of 2^`span` bytes at `at` and is not that leaf
    /// or a part of it, in words.
    pub(super) fn device_differing(
        &self,
        streams: &[(u32, Option<u32>)],
        (span, at, to): (u8, u64, u64),
        (read, write): (bool, bool),
    ) -> Option<String> {
        let last = at + ((1 << span) - 1);
        let mut kept = self.devices.kept.iter();
        let (key, found) = kept.find(|(key, found)| {
            let part = key.span <= span && **found == to + (key.first().saturating_sub(at));
            let allowed = if key.writes { write } else { read };
            streams.contains(&(key.stream, None))
                && key.overlaps(at, last)
                && self.lets_through(key.stream)
                && !(part && allowed)
        })?;
        Some(format!("{key}: {found:#x}"))
    }

    /// What a device of these streams that gets through keeps of these pages, in words.
    pub(super) fn device_holding(
        &self,
        streams: &[(u32, Option<u32>)],
        first: u64,
        pages: u64,
    ) -> Option<String> {
        let (first, last) = (first * FRAME_BYTES, (first + pages) * FRAME_BYTES - 1);
        let mut kept = self.devices.kept.keys();
        let key = kept.find(|key| {
            streams.contains(&(key.stream, None))
                && key.overlaps(first, last)
                && self.lets_through(key.stream)
        })?;
        Some(key.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::super::caches::Tag;
    use std::collections::BTreeSet;

    use super::*;

    fn asks(number: u64, address: u64) -> Request {
        Request {
            number,
            device: 0,
            requester: 0,
            substream: None,
            unit: 0,
            address,
            access: Access::Read,
            began: 0,
            progress: Progress::New,
            says: Says::Asks,
            no_snoop: false,
            event: None,
        }
    }

    #[test]
    fn an_entry_is_as_large_as_its_answer_and_goes_with_any_page_of_it() {
        let mut sizes = BTreeSet::new();
        for number in 0..400 {
            let mut devices = Devices::default();
            let request = asks(number, 0x4012_3456);
            let reach = Reach {
                to: 0x1_0012_3456,
                tag: Tag::Untagged.into(),
                span: 21,
                past_caches: false,
            };
            devices.keep(1, &request, &reach);
            let span = devices.kept.keys().next().unwrap().span;
            sizes.insert(span);
            let leads = |devices: &Devices, at| devices.kept(1, &asks(0, at));
            let first = 0x4012_3456 >> span << span;
            let last = first + (1 << span) - 1;
            assert_eq!(
                leads(&devices, last),
                Some(last - 0x4000_0000 + 0x1_0000_0000)
            );
            assert_eq!(leads(&devices, first - 1), None);
            assert_eq!(leads(&devices, last + 1), None);
            assert_eq!(devices.kept(2, &request), None);
            assert_eq!(devices.forget(1, last + 1, u64::MAX), None);
            assert_eq!(devices.forget(2, 0, u64::MAX), None);
            let page = last & !0xfff;
            assert_eq!(devices.forget(1, page, page + 0xfff), Some(page >> 12));
            assert!(devices.kept.is_empty());
        }
        assert_eq!(sizes, (12..=21).collect());
    }
}
