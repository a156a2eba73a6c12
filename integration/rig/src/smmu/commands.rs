//! The command queue of an SMMUv3: consumed early, done late, in any order between two syncs.
//!
//! That the index is past a command says that it was read. A sync is consumed when all before it was done and
//! nothing that was under way by what it forgot is left.

use std::collections::VecDeque;

use super::Unit;
use super::caches::Tag;
use super::spec::command::{self, Command, Signal, Whose};
use super::spec::registers;
use crate::bus::Bus;
use crate::memory::frame_of;
use crate::refusing::{Kind, Refusing};
use crate::request::{Mark, Progress};
use crate::rule::Rule;

/// Bytes of a command.
pub(crate) const COMMAND_BYTES: u64 = 16;
/// How many commands a unit works on at once.
const WINDOW: usize = 16;

/// A command that was consumed and is not done.
#[derive(Clone, Debug)]
struct Pending {
    command: Command,
    /// When it is done at the latest; `None` for when a sync asks.
    due: Option<u64>,
    /// When it is done at the earliest: a device takes its time.
    earliest: u64,
}

/// The queue of one unit.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) base: u64,
    pub(crate) log2: u8,
    /// Whether a queue was given.
    pub(crate) given: bool,
    /// Positions: place and wrap bit, counted together.
    pub(crate) prod: u64,
    pub(crate) cons: u64,
    /// Why it stopped.
    pub(crate) error: u32,
    /// Which legal commands it calls illegal.
    pub(super) refusing: Refusing,
    pending: VecDeque<Pending>,
    /// Since when a sync is next.
    sync_since: Option<u64>,
    /// The kind of the last command that was read since a sync.
    pub(super) since_sync: Option<u64>,
    /// Requests that went by what was forgotten since: a sync waits for them.
    pub(super) drains: Vec<u64>,
    /// Whether all configuration, and all translations, were forgotten since the last sync.
    forgot: (bool, bool),
}

/// What a command is to a unit that refuses some.
const fn kind(command: &Command) -> Kind {
    match command {
        Command::Range(_) => Kind::Pages,
        Command::Guest { .. } | Command::First { .. } | Command::Asid { .. } | Command::All => {
            Kind::Translations
        }
        Command::Stream { .. }
        | Command::Streams { .. }
        | Command::AllStreams
        | Command::Context { .. }
        | Command::Contexts { .. } => Kind::Configuration,
        Command::Resume { .. } | Command::PageAnswer { .. } => Kind::Answer,
        Command::Prefetch
        | Command::Elsewhere
        | Command::Device { .. }
        | Command::EndStalls { .. }
        | Command::Sync(_) => Kind::Other,
    }
}

impl Queue {
    /// Whether nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.prod == self.cons && self.pending.is_empty()
    }

    /// CMDQ_CONS.
    pub(crate) fn consumed(&self) -> u32 {
        self.cons as u32 | self.error << registers::ERROR_SHIFT
    }

    /// Whether the queue lies in these frames.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let bytes = COMMAND_BYTES << self.log2;
        let mine = frame_of(self.base)..=frame_of(self.base + bytes - 1);
        let overlaps = first <= *mine.end() && *mine.start() < first + pages;
        (self.given && overlaps).then(|| format!("its command queue at {:#x}", self.base))
    }
}

impl Unit {
    /// The driver moved CMDQ_PROD.
    pub(super) fn commands_given(&mut self, bus: &mut Bus, value: u32) {
        let log2 = self.queue.log2;
        if u64::from(value) >> (log2 + 1) != 0 {
            let what = format!(
                "unit {}: CMDQ_PROD {value:#x} has bits above the wrap bit {log2}",
                self.index
            );
            bus.broken(Rule::Queue, what);
        }
        let prod = registers::position(value, log2);
        if self.control & registers::CMDQEN != 0 {
            let used = registers::distance(self.queue.cons, self.queue.prod, log2);
            let added = registers::distance(self.queue.prod, prod, log2);
            if used + added > 1 << log2 {
                let what = format!(
                    "unit {}: {added} commands were added to a queue in which {used} of {} were not read yet",
                    self.index,
                    1 << log2
                );
                bus.broken(Rule::Queue, what);
            }
        }
        self.queue.prod = prod;
        self.judge_tail(bus);
    }

    /// An error of the unit's own, at the command that it would read next.
    pub(super) fn queue_fails(&mut self, bus: &mut Bus) {
        if self.control & registers::CMDQEN != 0 {
            self.stop(bus, registers::ERROR_ABORT);
        }
    }

    fn stop(&mut self, bus: &mut Bus, error: u32) {
        self.queue.error = error;
        self.error(bus, registers::GERROR_CMDQ);
        bus.note_unit(self.index, || format!("command queue error {error}"));
    }

    /// Whether an error that nobody has acknowledged stops the queue.
    fn is_stopped(&self) -> bool {
        (self.errors ^ self.errors_seen) & registers::GERROR_CMDQ != 0
    }

    /// Does some of what is due.
    pub(crate) fn work_queue(&mut self, bus: &mut Bus) {
        let slow = bus.temper.slow;
        loop {
            let mut moved = self.execute(bus, slow);
            moved |= self.consume(bus, slow);
            if !moved || slow {
                return;
            }
        }
    }

    /// Reads the next command.
    fn consume(&mut self, bus: &mut Bus, slow: bool) -> bool {
        let on = self.control & registers::CMDQEN != 0;
        let empty = self.queue.cons == self.queue.prod;
        let full = self.queue.pending.len() >= WINDOW;
        if !on || empty || full || self.is_stopped() || slow && bus.rng.one_in(3) {
            return false;
        }
        let place = self.queue.cons & ((1 << self.queue.log2) - 1);
        let at = self.queue.base + place * COMMAND_BYTES;
        let view = self.queue_view;
        let (low, high) = (bus.fetch(view, at), bus.fetch(view, at + 8));
        let limits = self.identity.command_limits();
        let decoded = command::decode(low, high, &limits);
        self.judge_command(bus, low, decoded.as_ref().ok());
        let command = match decoded {
            Ok(command) => command,
            Err(why) => {
                let what = format!("unit {}: command {low:#x} {high:#x}: {why}", self.index);
                bus.broken(Rule::Queue, what);
                self.stop(bus, registers::ERROR_ILLEGAL);
                return false;
            }
        };
        // Not of a sync that is waited for already.
        if self.queue.sync_since.is_none() && self.queue.refusing.refuses(kind(&command)) {
            self.stop(bus, registers::ERROR_ILLEGAL);
            return false;
        }
        if let Command::Sync(signal) = command {
            return self.sync(bus, signal, slow);
        }
        let due = match (slow, bus.rng.below(3)) {
            (false, _) => Some(bus.nanos),
            (true, 0) => None,
            _ => Some(bus.nanos + bus.rng.below(3000)),
        };
        let earliest = match command {
            Command::Device { stream, .. } => bus.nanos + self.devices.takes(stream),
            _ => 0,
        };
        self.queue.pending.push_back(Pending {
            command,
            due,
            earliest,
        });
        self.step_past();
        true
    }

    fn step_past(&mut self) {
        self.queue.cons = (self.queue.cons + 1) & ((2 << self.queue.log2) - 1);
    }

    /// The next command is a sync: it is consumed when it is complete.
    fn sync(&mut self, bus: &mut Bus, signal: Signal, slow: bool) -> bool {
        let since = *self.queue.sync_since.get_or_insert(bus.nanos);
        // Software may have it done all the same, by acknowledging the error: nothing was forgotten. Others who were told to
        // forget may not have answered yet; who carries the sync out once more waits for those.
        let others = self.queue.pending.is_empty() || bus.rng.one_in(2);
        if others && self.devices.is_given_up(bus) {
            self.stop(bus, registers::ERROR_DEVICE);
            return false;
        }
        if !self.queue.pending.is_empty() || self.devices.is_awaited() {
            return false;
        }
        if slow && bus.nanos < since + 1000 && !bus.rng.one_in(4) {
            return false;
        }
        self.drain(bus);
        let (configuration, translations) = std::mem::take(&mut self.queue.forgot);
        self.flushed.0 |= configuration;
        self.flushed.1 |= translations;
        if let Signal::Message { at, data } = signal
            && at != 0
        {
            if !bus.frames.is_out(frame_of(at)) {
                let what = format!(
                    "unit {} wrote a message to {at:#x}, which is free",
                    self.index
                );
                bus.broken(Rule::FreedMemory, what);
                return false;
            }
            bus.memory.write_bytes(at, &data.to_le_bytes());
        }
        self.queue.sync_since = None;
        self.step_past();
        bus.note_unit(self.index, || "sync complete".to_owned());
        // What the index says can be seen before the event is.
        if signal == Signal::Event {
            self.tell_waiters(bus);
        }
        true
    }

    /// Carries out one command that may be carried out now: any, before a sync.
    fn execute(&mut self, bus: &mut Bus, slow: bool) -> bool {
        let count = self.queue.pending.len();
        if count == 0 {
            return false;
        }
        let asked = self.queue.sync_since.is_some();
        let now = bus.nanos;
        let due = |pending: &Pending| match pending.due {
            _ if pending.earliest > now => false,
            Some(due) => due <= now,
            None => asked,
        };
        let some = bus.rng.below(count as u64) as usize;
        let may = |pending: &Pending| pending.earliest <= now;
        let is_free = self.queue.pending.get(some).is_some_and(may);
        let chosen = if is_free && (!slow || bus.rng.one_in(4)) {
            some
        } else {
            match self.queue.pending.iter().position(due) {
                Some(index) => index,
                None => return false,
            }
        };
        let Some(pending) = self.queue.pending.remove(chosen) else {
            return false;
        };
        self.carry_out(bus, pending.command);
        true
    }

    fn carry_out(&mut self, bus: &mut Bus, command: Command) {
        bus.counts.invalidations += 1;
        bus.provoked = true;
        bus.note_unit(self.index, || format!("does {command:x?}"));
        if bus.temper.widening && bus.rng.one_in(16) {
            self.caches.forget_translations();
        }
        let split = self.table.map_or(0, |table| table.split);
        let kept = &mut self.caches.configuration;
        match command {
            Command::Stream { stream, leaf } => {
                kept.forget_streams(stream, stream, leaf, split);
                self.reconfigured(bus, |other| other == stream);
            }
            Command::Streams { first, log2 } => {
                let last = first | ((1_u64 << log2.min(32)) - 1) as u32;
                kept.forget_streams(first, last, false, split);
                self.reconfigured(bus, |other| (first..=last).contains(&other));
            }
            Command::AllStreams => {
                kept.forget_all();
                self.queue.forgot.0 = true;
                self.reconfigured(bus, |_| true);
            }
            Command::Context {
                stream,
                substream,
                leaf,
            } => {
                kept.forget_context(stream, substream, leaf);
                self.reconfigured(bus, |other| other == stream);
            }
            Command::Contexts { stream } => {
                kept.forget_contexts(stream);
                self.reconfigured(bus, |other| other == stream);
            }
            Command::Guest { vmid } => {
                self.caches.forget_guest(vmid);
                self.retranslated(bus, vmid, |tag| tag.vmid() == Some(vmid));
            }
            Command::First { vmid } if self.knows(vmid) => {
                self.caches.forget_first(vmid, None);
                self.retranslated(bus, vmid, |tag| tag.is_meant(Whose::First { vmid }));
            }
            Command::Asid { vmid, asid } if self.knows(vmid) => {
                self.caches.forget_first(vmid, Some(asid));
                self.retranslated(bus, vmid, |tag| tag == Tag::First { vmid, asid });
            }
            Command::Range(range) if self.knows(range.whose.vmid()) => {
                self.caches.forget_range(&range);
                self.retranslated(bus, range.whose.vmid(), |tag| tag.is_meant(range.whose));
            }
            Command::All => {
                self.caches.forget_translations();
                self.queue.forgot.1 = true;
                self.affected(bus, |_, _| true, |_, _| true);
            }
            Command::Device {
                stream,
                first,
                last,
            } => self.device_told(bus, stream, first, last),
            Command::Resume { stream, tag } => self.resumed(stream, tag),
            Command::EndStalls { stream } => self.stalls_ended(stream),
            Command::PageAnswer {
                stream,
                group,
                code,
            } => self.page_answered(stream, group, code),
            // Hints, what is for caches that the rig's units do not have, and what names a guest that is none.
            Command::First { .. }
            | Command::Asid { .. }
            | Command::Range(_)
            | Command::Prefetch
            | Command::Elsewhere
            | Command::Sync(_) => {}
        }
    }

    /// Without second stages there is one guest, 0: what names another may be carried out for any, or for none (IHI 0070,
    /// 4.4.2).
    const fn knows(&self, vmid: u16) -> bool {
        self.identity.second_stage || vmid == 0
    }

    /// Configuration of streams was forgotten.
    fn reconfigured(&mut self, bus: &mut Bus, concerns: impl Fn(u32) -> bool) {
        let ahead = self.structures.ahead.as_ref();
        if ahead.is_some_and(|ahead| concerns(ahead.what.stream())) {
            self.structures.ahead = None;
        }
        self.affected(
            bus,
            |stream, _| concerns(stream),
            |stream, _| concerns(stream),
        );
    }

    /// Translations of a guest were forgotten.
    fn retranslated(&mut self, bus: &mut Bus, vmid: u16, gone: impl Fn(Tag) -> bool) {
        self.affected(bus, |_, other| other == Some(vmid), |_, tag| gone(tag));
    }

    /// Walks by what is forgotten begin anew, which a walk may always do; requests that were translated by it have to
    /// be over when the next sync is.
    fn affected(
        &mut self,
        bus: &mut Bus,
        walks: impl Fn(u32, Option<u16>) -> bool,
        ends: impl Fn(u32, Tag) -> bool,
    ) {
        for index in 0..bus.requests.len() {
            let Some(request) = bus.requests.get_mut(index) else {
                break;
            };
            if request.unit != self.index {
                continue;
            }
            let stream = self.identity.first_stream + u32::from(request.requester);
            match &request.progress {
                Progress::Smmu(walk) if walks(stream, walk.vmid()) => {
                    request.progress = Progress::New;
                }
                Progress::Translated(reach) => {
                    if let Mark::Smmu(tag) = reach.tag
                        && ends(stream, tag)
                    {
                        self.queue.drains.push(request.number);
                    }
                }
                _ => {}
            }
        }
    }

    fn drain(&mut self, bus: &mut Bus) {
        for number in std::mem::take(&mut self.queue.drains) {
            let mut requests = bus.requests.iter();
            let index = requests.position(|request| request.number == number);
            let Some(request) = index.map(|index| bus.requests.swap_remove(index)) else {
                continue;
            };
            match request.progress {
                Progress::Translated(reach) => {
                    bus.landed(&request, &reach);
                }
                _ => bus.requests.push(request),
            }
        }
    }

    /// The queue was turned off: what was consumed is done, but for what devices may still be at; the rest stays where it is.
    pub(super) fn queue_off(&mut self, bus: &mut Bus) {
        for pending in std::mem::take(&mut self.queue.pending) {
            let is_for_device = matches!(pending.command, Command::Device { .. });
            match is_for_device && bus.rng.one_in(2) {
                true => self.queue.pending.push_back(pending),
                false => self.carry_out(bus, pending.command),
            }
        }
        (self.queue.sync_since, self.queue.since_sync) = (None, None);
        self.devices.queue_off(bus);
    }
}
