//! Units that let a request that they cannot translate stand still until software answers (IDR0.STALL_MODEL 2): it blocks
//! its stream meanwhile, and [`STALL_MAX`] of them block everybody.

use super::Unit;
use super::spec::event::{self, At};
use crate::bus::Bus;
use crate::request::{Progress, Request, Says, Step};

/// How many requests may stand still at once (IDR5.STALL_MAX).
pub(crate) const STALL_MAX: u16 = 4;

/// A request that stands still.
struct Stalled {
    stream: u32,
    tag: u16,
    request: Request,
    code: u8,
    at: At,
    /// Whether its event was written. One that found no room is written when there is some.
    told: bool,
}

/// The requests that stand still.
#[derive(Default)]
pub(crate) struct Stalls {
    waiting: Vec<Stalled>,
    tags: u16,
}

impl Stalls {
    /// How many stand still.
    pub(crate) fn count(&self) -> usize {
        self.waiting.len()
    }

    /// All are over: the unit is off.
    pub(crate) fn end_all(&mut self) {
        self.waiting.clear();
    }

    /// Whether a stream's requests wait behind another one.
    fn block(&self, stream: u32) -> bool {
        self.count() >= STALL_MAX.into() || self.waiting.iter().any(|one| one.stream == stream)
    }
}

impl Unit {
    /// What becomes of a request behind one that stands still.
    pub(super) fn behind_stalled(&self, request: &Request) -> Option<Step> {
        let stream = self.stream_of(request.requester);
        let waits = request.says == Says::Untranslated && self.stalls.block(stream);
        waits.then_some(Step::Stalled)
    }

    /// Lets a request stand still, if faults like that do.
    pub(super) fn stall(
        &mut self,
        bus: &mut Bus,
        request: &Request,
        code: u8,
        at: At,
    ) -> Option<Step> {
        let forced = self.identity.stall_model == 2;
        if !forced || request.says != Says::Untranslated || !event::is_of_translation(code) {
            return None;
        }
        self.stalls.tags = self.stalls.tags.wrapping_add(0x101);
        let tag = self.stalls.tags;
        let told = self.record(bus, request, code, at, Some(tag));
        let mut request = request.clone();
        request.progress = Progress::New;
        self.stalls.waiting.push(Stalled {
            stream: self.stream_of(request.requester),
            tag,
            request,
            code,
            at,
            told,
        });
        Some(Step::Stalled)
    }

    /// Writes the events that found no room.
    pub(super) fn work_stalls(&mut self, bus: &mut Bus) {
        let mut waiting = std::mem::take(&mut self.stalls.waiting);
        for one in waiting.iter_mut().filter(|one| !one.told) {
            one.told = self.record(bus, &one.request, one.code, one.at, Some(one.tag));
        }
        self.stalls.waiting = waiting;
    }

    /// Software answered: the request is over.
    pub(super) fn resumed(&mut self, stream: u32, tag: u16) {
        self.stalls
            .waiting
            .retain(|one| one.stream != stream || one.tag != tag);
    }

    /// Software ended all requests of a stream that stand still.
    pub(super) fn stalls_ended(&mut self, stream: u32) {
        self.stalls.waiting.retain(|one| one.stream != stream);
    }
}
