//! The invalidation queue of a VT-d unit: fetched late, done in any order that the manual allows.
//!
//! Descriptors may overtake each other, except that a wait completes after all before it, and that nothing
//! behind a fencing wait is begun before that has completed. Its status is written later still.

use std::collections::VecDeque;

use super::Unit;
use super::spec::descriptor::{self, Descriptor};
use super::spec::registers;
use crate::bus::Bus;
use crate::memory::frame_of;
use crate::refusing::{Kind, Refusing};
use crate::request::{Mark, Progress};
use crate::rule::Rule;

/// Bytes of a descriptor in legacy mode.
pub(crate) const DESCRIPTOR_BYTES: u64 = 16;
/// How many descriptors a unit works on at once.
const WINDOW: usize = 16;

/// A descriptor that was fetched and not completed.
#[derive(Clone, Debug)]
struct Pending {
    descriptor: Descriptor,
    /// When it is done at the latest.
    due: u64,
    done: bool,
}

/// A status that is to be written.
#[derive(Clone, Debug)]
struct Status {
    at: u64,
    data: u32,
    due: u64,
    /// Whether the unit goes on only after it.
    fence: bool,
}

/// The queue of one unit.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) base: u64,
    /// Entries; zero before one was given.
    pub(crate) entries: u64,
    pub(crate) head: u64,
    pub(crate) tail: u64,
    /// Whether it is on.
    pub(crate) on: bool,
    /// Whether an error stopped it.
    pub(crate) stopped: bool,
    /// Whether that was cleared, and the tail not written since: the unit goes on then (as in QEMU, `intel_iommu.c`; no
    /// manual's sentence says that clearing is enough).
    pub(crate) awaits_tail: bool,
    /// Which legal descriptors it calls illegal.
    pub(super) refusing: Refusing,
    pending: VecDeque<Pending>,
    statuses: VecDeque<Status>,
}

/// What a descriptor is to a unit that refuses some.
const fn kind(descriptor: &Descriptor) -> Kind {
    match descriptor {
        Descriptor::IotlbPages { .. } => Kind::Pages,
        Descriptor::IotlbGlobal { .. } | Descriptor::IotlbDomain { .. } => Kind::Translations,
        Descriptor::ContextGlobal
        | Descriptor::ContextDomain { .. }
        | Descriptor::ContextDevice { .. } => Kind::Configuration,
        Descriptor::Wait { .. } => Kind::Other,
    }
}

impl Queue {
    /// Whether nothing is left to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.head == self.tail && self.pending.is_empty() && self.statuses.is_empty()
    }

    /// Whether it can be turned off now.
    pub(crate) fn may_go_off(&self) -> bool {
        self.is_idle() || self.stopped && self.statuses.is_empty()
    }

    /// Whether the queue's own page, or a status to be written, lies in these frames.
    pub(crate) fn naming(&self, first: u64, pages: u64) -> Option<String> {
        let inside = |at: u64| (first..first + pages).contains(&frame_of(at));
        if self.on && inside(self.base) {
            return Some(format!("its queue at {:#x}", self.base));
        }
        let status = self.statuses.iter().find(|status| inside(status.at));
        status.map(|status| format!("a status to be written at {:#x}", status.at))
    }

    /// Everything that was fetched is forgotten: the queue was turned off or given anew.
    pub(crate) fn restart(&mut self) {
        self.head = 0;
        (self.stopped, self.awaits_tail) = (false, false);
        self.pending.clear();
    }
}

impl Unit {
    /// The driver moved the tail.
    pub(crate) fn tail_moved(&mut self, bus: &mut Bus, value: u64) {
        let offset = match registers::queue_tail(value) {
            Ok(offset) => offset,
            Err(why) => {
                bus.broken(
                    Rule::Queue,
                    format!("unit {}: tail {value:#x}: {why}", self.index),
                );
                return;
            }
        };
        let place = offset / DESCRIPTOR_BYTES;
        let entries = self.queue.entries;
        if self.queue.on {
            if place >= entries {
                let what = format!(
                    "unit {}: tail {value:#x} lies outside a queue of {entries} entries",
                    self.index
                );
                bus.broken(Rule::Queue, what);
                self.stop(bus);
                return;
            }
            let used = (self.queue.tail + entries - self.queue.head) % entries;
            let added = (place + entries - self.queue.tail) % entries;
            if used + added >= entries {
                let what = format!(
                    "unit {}: {added} entries were added to a queue in which {used} of {entries} were not read yet",
                    self.index
                );
                bus.broken(Rule::Queue, what);
            }
        }
        self.queue.tail = place;
        self.queue.awaits_tail = false;
    }

    /// An error of the unit's own, at the descriptor that it would read next.
    pub(crate) fn queue_fails(&mut self, bus: &mut Bus) {
        if self.queue.on {
            self.queue_error = registers::IQEI_FETCH;
            self.stop(bus);
        }
    }

    fn stop(&mut self, bus: &mut Bus) {
        self.queue.stopped = true;
        let before = self.fault_status();
        self.status_of_faults |= registers::FSTS_IQE;
        self.condition(bus, before);
        bus.note_unit(self.index, || "invalidation queue error".to_owned());
    }

    /// Does some of what is due.
    pub(crate) fn work_queue(&mut self, bus: &mut Bus) {
        if !self.queue.on {
            return;
        }
        let slow = bus.temper.slow;
        loop {
            let mut moved = self.write_status(bus, slow);
            moved |= self.fetch(bus, slow);
            moved |= self.execute(bus, slow);
            if !moved || slow {
                return;
            }
        }
    }

    fn write_status(&mut self, bus: &mut Bus, slow: bool) -> bool {
        let Some(status) = self.queue.statuses.front() else {
            return false;
        };
        if slow && status.due > bus.nanos {
            return false;
        }
        let Some(status) = self.queue.statuses.pop_front() else {
            return false;
        };
        if !bus.frames.is_out(frame_of(status.at)) {
            let what = format!(
                "unit {} wrote a status to {:#x}, which is free",
                self.index, status.at
            );
            bus.broken(Rule::FreedMemory, what);
            return true;
        }
        bus.memory
            .write_bytes(status.at, &status.data.to_le_bytes());
        bus.note_unit(self.index, || {
            format!("wait complete: {:#x} to {:#x}", status.data, status.at)
        });
        true
    }

    fn fetch(&mut self, bus: &mut Bus, slow: bool) -> bool {
        let queue = &self.queue;
        let room = queue.pending.len() < WINDOW;
        // What was fetched before an error goes on; nothing more is fetched.
        if queue.stopped
            || queue.awaits_tail
            || queue.head == queue.tail
            || !room
            || slow && bus.rng.one_in(3)
        {
            return false;
        }
        let at = queue.base + queue.head * DESCRIPTOR_BYTES;
        // Queue reads snoop, as Linux and Xen rely on.
        let view = crate::memory::View {
            coherent: true,
            buffer: None,
        };
        let (low, high) = (bus.fetch(view, at), bus.fetch(view, at + 8));
        let descriptor = match descriptor::decode(low, high, &self.descriptor_limits) {
            Ok(descriptor) => descriptor,
            Err(why) => {
                let what = format!("unit {}: descriptor {low:#x} {high:#x}: {why}", self.index);
                bus.broken(Rule::Queue, what);
                self.queue_error = why.code();
                self.stop(bus);
                return false;
            }
        };
        if self.queue.refusing.refuses(kind(&descriptor)) {
            self.queue_error = registers::IQEI_TYPE;
            self.stop(bus);
            return false;
        }
        let due = bus.nanos + if slow { bus.rng.below(3000) } else { 0 };
        self.queue.head = (self.queue.head + 1) % self.queue.entries;
        self.queue.pending.push_back(Pending {
            descriptor,
            due,
            done: false,
        });
        true
    }

    /// Carries out one descriptor that may be carried out now.
    fn execute(&mut self, bus: &mut Bus, slow: bool) -> bool {
        while self.queue.pending.front().is_some_and(|first| first.done) {
            self.queue.pending.pop_front();
        }
        if self.queue.statuses.iter().any(|status| status.fence) {
            return false;
        }
        let mut ready = arrayvec::ArrayVec::<usize, WINDOW>::new();
        let mut all_done = true;
        for (index, pending) in self.queue.pending.iter().enumerate() {
            if let Descriptor::Wait { fence, .. } = pending.descriptor {
                if !pending.done && all_done {
                    ready.push(index);
                }
                if fence && !pending.done {
                    break;
                }
            } else if !pending.done {
                ready.push(index);
            }
            all_done &= pending.done;
        }
        let Some(&chosen) = bus.rng.pick(&ready) else {
            return false;
        };
        let overdue = ready.iter().copied().find(|index| {
            self.queue
                .pending
                .get(*index)
                .is_some_and(|pending| pending.due <= bus.nanos)
        });
        let chosen = if slow && bus.rng.one_in(4) {
            chosen
        } else {
            match overdue {
                Some(index) => index,
                None => return false,
            }
        };
        let Some(pending) = self.queue.pending.get_mut(chosen) else {
            return false;
        };
        pending.done = true;
        let descriptor = pending.descriptor.clone();
        self.carry_out(bus, &descriptor, slow);
        true
    }

    fn carry_out(&mut self, bus: &mut Bus, descriptor: &Descriptor, slow: bool) {
        if let Descriptor::Wait { status, fence, .. } = descriptor {
            if let Some((at, data)) = *status {
                let due = bus.nanos + if slow { bus.rng.below(2000) } else { 0 };
                self.queue.statuses.push_back(Status {
                    at,
                    data,
                    due,
                    fence: *fence,
                });
            }
            return;
        }
        bus.counts.invalidations += 1;
        bus.provoked = true;
        bus.note_unit(self.index, || format!("does {descriptor:?}"));
        // Any invalidation empties the write buffer too.
        bus.memory.flush_write_buffer(self.index);
        if bus.temper.widening && bus.rng.one_in(16) {
            self.caches.forget_translations();
        }
        let everything = |_: u16| true;
        match *descriptor {
            Descriptor::ContextGlobal => {
                self.caches.forget_contexts();
                self.flushed.0 = true;
                self.restart_walks(bus, |_, _| true);
            }
            Descriptor::ContextDomain { domain } => {
                self.caches.forget_contexts_of(domain);
                self.restart_walks(bus, |_, found| found.is_none_or(|found| found == domain));
            }
            Descriptor::ContextDevice {
                domain,
                source,
                function_mask,
            } => {
                // The mask leaves out the upper function bits first: 0, bit 2, bits 2:1, bits 2:0.
                let mask = match function_mask {
                    0 => 0,
                    1 => 0b100,
                    2 => 0b110,
                    _ => 0b111,
                };
                self.caches.forget_context(domain, source, mask);
                self.restart_walks(bus, |requester, _| requester & !mask == source & !mask);
            }
            Descriptor::IotlbGlobal {
                drain_reads,
                drain_writes,
            } => {
                self.caches.forget_translations();
                self.flushed.1 = self.flushed.0;
                self.restart_walks(bus, |_, _| true);
                self.drain(bus, drain_reads, drain_writes, everything);
            }
            Descriptor::IotlbDomain {
                domain,
                drain_reads,
                drain_writes,
            } => {
                self.caches.forget_domain(domain);
                self.restart_walks(bus, |_, found| found == Some(domain));
                self.drain(bus, drain_reads, drain_writes, |tag| tag == domain);
            }
            Descriptor::IotlbPages {
                domain,
                page,
                mask,
                leaf_hint,
                drain_reads,
                drain_writes,
            } => {
                self.caches.forget_pages(domain, page, mask, leaf_hint);
                self.restart_walks(bus, |_, found| found == Some(domain));
                self.drain(bus, drain_reads, drain_writes, |tag| tag == domain);
            }
            Descriptor::Wait { .. } => {}
        }
    }

    /// Walks that may have read what is forgotten begin anew. A walk may always do that.
    fn restart_walks(&self, bus: &mut Bus, concerns: impl Fn(u16, Option<u16>) -> bool) {
        for request in &mut bus.requests {
            if let Progress::Vtd(walk) = &request.progress
                && request.unit == self.index
                && concerns(request.requester, walk.domain())
            {
                request.progress = Progress::New;
            }
        }
    }

    /// Requests that were translated before reach memory now, as far as draining was asked for and is
    /// possible.
    fn drain(&self, bus: &mut Bus, reads: bool, writes: bool, concerns: impl Fn(u16) -> bool) {
        let (reads, writes) = (reads && self.cap.drd, writes && self.cap.dwd);
        let mut index = 0;
        while let Some(request) = bus.requests.get(index) {
            let drained = match request.access {
                hv_core::Access::Read => reads,
                hv_core::Access::Write => writes,
            };
            if let Progress::Translated(reach) = request.progress
                && let Mark::Vtd(tag) = reach.tag
                && request.unit == self.index
                && drained
                && concerns(tag)
            {
                let request = bus.requests.swap_remove(index);
                bus.landed(&request, &reach);
            } else {
                index += 1;
            }
        }
    }
}
