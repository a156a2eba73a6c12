//! An SMMUv3, played at its worst: stream tables, second stages, commands, events.
//!
//! Its bits stand in [`spec`], written apart from the driver's, so that a mistake there shows here.

mod caches;
mod commands;
mod device_tlb;
mod events;
mod guest;
mod interrupts;
mod pages;
mod parts;
mod registers;
pub(crate) mod spec;
mod stalls;
mod structures;
mod waking;
mod walk;

use std::ops::RangeInclusive;

use hv_iommu::FaultStage;
use hv_iommu::table::Mapping;

use caches::{Cached, Caches, Kind};
use commands::Queue;
use device_tlb::Devices;
use events::Events;
use pages::Pages;
use registers::Late;
use spec::context::{Context, FirstTables, Half};
use spec::registers as bits;
use spec::stage_two::{Granule, Shape};
use spec::stream::{Contexts, Stages, Stream, StreamLimits, Tables, WithoutSubstream};
use stalls::Stalls;
use structures::Structures;

pub(crate) use caches::Tag;
pub use guest::GuestStage;
pub use spec::identity::Identity;
pub(crate) use walk::Walk;

use crate::bus::Bus;
use crate::devices::Answering;
use crate::frontend::{FrontEnd, Health};
use crate::interrupt::Trouble;
use crate::memory::{BASE, FRAME_BYTES, FRAMES, View};
use crate::refusing::Refusing;
use crate::request::{Progress, Reach, Request, Sender, Step};
use crate::rng::Rng;
use crate::rule::Rule;

/// Where the first unit's registers are; each takes [`bits::FRAME_BYTES`] at most.
const REGISTERS: u64 = 0x0900_0000;

/// Where the registers of a unit are.
pub(crate) const fn registers_at(unit: usize) -> u64 {
    REGISTERS + unit as u64 * bits::FRAME_BYTES
}

/// Bytes of a unit's registers.
pub(crate) const fn register_bytes(identity: &Identity) -> u64 {
    match identity.is_cn99xx() {
        true => bits::PAGE_BYTES,
        false => bits::FRAME_BYTES,
    }
}

/// One unit.
pub(crate) struct Unit {
    index: usize,
    identity: Identity,
    limits: StreamLimits,
    view: View,
    queue_view: View,
    /// CR0 as it was written, and as it is.
    wanted: u32,
    control: u32,
    control_due: u64,
    cr1: u32,
    cr2: u32,
    /// GBPA, and what it is to be.
    gate: u32,
    gate_late: Option<Late>,
    /// IRQ_CTRL as it was written, and as it is.
    interrupts: (u32, u32),
    interrupts_due: u64,
    ills: interrupts::Ills,
    /// GERROR and GERRORN.
    errors: u32,
    errors_seen: u32,
    /// STRTAB_BASE and STRTAB_BASE_CFG.
    table_written: (u64, u32),
    /// The stream table in force.
    table: Option<bits::StreamTable>,
    /// Whether configuration and translations were wholly forgotten since the stream table was set.
    flushed: (bool, bool),
    /// Whether it still goes by what firmware left on.
    is_firmwares: bool,
    /// Since when firmware's tables are off and no others on, where firmware left it on.
    gap_since: Option<u64>,
    queue: Queue,
    events: Events,
    /// Registers without an effect on the rig, by offset.
    plain: hashbrown::HashMap<u32, u64>,
    caches: Caches,
    structures: Structures,
    devices: Devices,
    stalls: Stalls,
    pages: Pages,
    health: Health,
}

impl Unit {
    /// A unit after reset.
    pub(crate) fn new(index: usize, identity: &Identity) -> Self {
        let view = Self::memory_view(identity.coherent);
        Self {
            index,
            identity: *identity,
            limits: identity.stream_limits(),
            view,
            queue_view: view,
            wanted: 0,
            control: 0,
            control_due: 0,
            cr1: 0,
            cr2: 0,
            gate: bits::GBPA_RESET,
            gate_late: None,
            interrupts: (0, 0),
            interrupts_due: 0,
            ills: interrupts::Ills::default(),
            errors: 0,
            errors_seen: 0,
            table_written: (0, 0),
            table: None,
            flushed: (false, false),
            is_firmwares: false,
            gap_since: None,
            queue: Queue::default(),
            events: Events::default(),
            plain: hashbrown::HashMap::new(),
            caches: Caches::default(),
            structures: Structures::default(),
            devices: Devices::default(),
            stalls: Stalls::default(),
            pages: Pages::default(),
            health: Health::default(),
        }
    }

    fn translates(&self) -> bool {
        self.control & bits::SMMUEN != 0
    }

    fn gate_is_closed(&self) -> bool {
        self.gate & bits::GBPA_ABORT != 0
    }

    /// The stream that a requester is.
    fn stream_of(&self, requester: u16) -> u32 {
        self.identity.first_stream + u32::from(requester)
    }

    fn streams_of(&self, senders: &[Sender]) -> Vec<(u32, Option<u32>)> {
        let streams = senders.iter();
        streams
            .map(|sender| (self.stream_of(sender.requester), sender.substream))
            .collect()
    }
}

impl FrontEnd for Unit {
    fn index(&self) -> usize {
        self.index
    }

    fn health(&self) -> Health {
        self.health
    }

    fn health_mut(&mut self) -> &mut Health {
        &mut self.health
    }

    fn is_on(&self) -> bool {
        self.translates()
    }

    fn read(&mut self, bus: &mut Bus, offset: u32, bits: u32) -> u64 {
        let register = self.register_at(offset);
        self.register_read(bus, register, bits)
    }

    fn write(&mut self, bus: &mut Bus, offset: u32, bits: u32, value: u64) {
        let register = self.register_at(offset);
        self.register_written(bus, register, bits, value);
    }

    fn stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        self.events_stored(bus, at);
        self.structure_stored(bus, at, old, new);
    }

    fn brought_up(&mut self, bus: &mut Bus) {
        if !self.gate_is_closed() {
            let what = format!(
                "unit {} was brought up, and lets everything pass when it is off (GBPA.ABORT is clear)",
                self.index
            );
            bus.broken(Rule::OpenGate, what);
        }
    }

    fn work(&mut self, bus: &mut Bus) {
        if self.health.gone || bus.nanos < self.health.stuck_until {
            return;
        }
        self.work_registers(bus);
        self.work_stalls(bus);
        if self.structures.ahead.is_some() && bus.rng.one_in(4) {
            self.fetch_ahead_word(bus);
        }
        if self.control & bits::CMDQEN != 0 && !self.queue.is_idle() {
            self.work_queue(bus);
        }
    }

    fn advance(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        self.walk(bus, request)
    }

    fn keep_in_device(&mut self, request: &Request, reach: &Reach) {
        let stream = self.stream_of(request.requester);
        self.devices.keep(stream, request, reach);
    }

    fn kept_in_device(&self, request: &Request) -> Option<u64> {
        let stream = self.stream_of(request.requester);
        self.devices.kept(stream, request)
    }

    fn was_plugged(&mut self, requesters: &[u16]) {
        for requester in requesters {
            let stream = self.stream_of(*requester);
            self.devices.forget(stream, 0, u64::MAX);
        }
    }

    fn stalled(&self) -> usize {
        self.stalls.count()
    }

    fn ask_for_page(&mut self, bus: &mut Bus, requester: u16, page: u64, tail: (u16, bool)) {
        let stream = self.stream_of(requester);
        self.page_asked(bus, stream, page, tail);
    }

    fn page_answers(&self, requester: u16) -> Vec<(u16, u8)> {
        self.pages.answers(self.stream_of(requester))
    }

    fn forge_in_device(&mut self, requester: u16, page: u64, frame: u64) {
        let stream = self.stream_of(requester);
        self.devices.forge(stream, page, frame);
    }

    fn answers(&mut self, requester: u16, answering: Answering) {
        let stream = self.stream_of(requester);
        self.devices.answer(stream, answering);
    }

    fn reason(&self, code: u8) -> &'static str {
        spec::event::name(code)
    }

    fn fail(&mut self, bus: &mut Bus) {
        self.queue_fails(bus);
    }

    fn refuses(&mut self, refusing: Refusing) {
        self.queue.refusing = refusing;
    }

    fn suffer(&mut self, bus: &mut Bus, trouble: Trouble) {
        self.suffers(bus, trouble);
    }

    fn evict(&mut self, rng: &mut Rng) {
        self.caches.evict_one(rng);
    }

    /// Firmware left the unit on, half of the time, with its queues and without a closed gate.
    fn leave_over(&mut self, requesters: &[u16], rng: &mut Rng) {
        let astray = BASE + (FRAMES - 1) * FRAME_BYTES;
        let shape = Shape {
            granule: Granule(12),
            input_bits: 36,
            start: 1,
            output_bits: 36,
        };
        if rng.one_in(2) {
            self.is_firmwares = true;
            self.control = bits::SMMUEN | bits::CMDQEN | bits::EVENTQEN;
            self.wanted = self.control;
            self.interrupts = (bits::IRQ_KNOWN & 0b101, bits::IRQ_KNOWN & 0b101);
            // An error that nobody looked at.
            self.errors = bits::GERROR_EVENTQ_ABT;
            if self.identity.ats && rng.one_in(2) {
                self.devices.left_over(rng.below(50_000_000));
            }
        }
        let (alone, kept) = (!self.identity.second_stage, &mut self.caches.configuration);
        let streams = requesters.iter();
        for requester in streams {
            let stream = self.identity.first_stream + u32::from(*requester);
            let tables = Tables {
                vmid: rng.below(4) as u16,
                root: astray,
                shape,
                ignores_access_flag: true,
                updates_access_flag: false,
                dirty: false,
                forced: false,
                protects_walks: false,
                records: false,
            };
            let contexts = Contexts {
                at: astray,
                split: None,
                log2: 0,
                without: WithoutSubstream::Terminate,
                no_stalls: false,
            };
            let stages = Stages {
                vmid: if alone { 0 } else { tables.vmid },
                first: alone.then_some(contexts),
                second: (!alone).then_some(tables),
                asks: false,
            };
            let entry = match rng.below(3) {
                0 => Stream::Invalid,
                1 => Stream::Bypass,
                _ => Stream::Translates(stages),
            };
            if alone {
                let root = astray;
                let context = FirstTables {
                    asid: rng.below(4) as u16,
                    set: true,
                    halves: [Some(Half { root, shape }), None],
                    output_bits: 36,
                    ignores_access_flag: true,
                    records: false,
                    attributes: u64::MAX,
                    snoops: true,
                };
                kept.keep_context(stream, 0, Context::Tables(context));
            }
            kept.keep_stream(stream, entry);
            kept.keep_level_one(stream >> 8, None);
        }
        for id in 0..4 {
            let tag = match alone {
                true => Tag::First { vmid: 0, asid: id },
                false => Tag::Second { vmid: id },
            };
            let leading = |to| Cached {
                root: astray,
                to,
                read: true,
                write: true,
                clean: None,
                size: 12,
                combined: false,
                memory: Kind::Cached,
            };
            for page in 0..32 {
                let leaf = leading(BASE + rng.below(256) * FRAME_BYTES);
                self.caches.keep_leaf(tag, 12, page * FRAME_BYTES, leaf);
            }
            self.caches.keep_link(tag, 21, 0, leading(astray));
            self.caches.keep_link(tag, 30, 0, leading(astray));
        }
    }

    fn naming(&self, bus: &Bus, first: u64, pages: u64) -> Option<String> {
        if !self.translates() || self.is_firmwares {
            // What it holds from before is forgotten before it is turned on, which is watched.
            let queues = self.queue.naming(first, pages);
            return queues
                .or_else(|| self.events.naming(first, pages))
                .or_else(|| self.pages.naming(first, pages));
        }
        let inside = |at: u64| (first..first + pages).contains(&(at / FRAME_BYTES));
        if let Some(frame) = self.structures.table_in(first, pages) {
            return Some(format!(
                "its stream table, of which frame {frame:#x} is a part"
            ));
        }
        if let Some(root) = self.structures.roots().find(|root| inside(*root)) {
            return Some(format!(
                "a live stream table entry, whose root is at {root:#x}"
            ));
        }
        let mut mine = bus
            .requests
            .iter()
            .filter(|request| request.unit == self.index);
        let under_way = mine.find(|request| match &request.progress {
            Progress::Smmu(walk) => walk.leads(inside),
            Progress::Translated(reach) => inside(reach.to),
            _ => false,
        });
        if let Some(request) = under_way {
            return Some(format!(
                "request #{}, which is under way to it",
                request.number
            ));
        }
        self.caches
            .naming(first, pages)
            .or_else(|| self.caches.configuration.naming(first, pages))
            .or_else(|| self.device_naming(first, pages))
            .or_else(|| self.queue.naming(first, pages))
            .or_else(|| self.events.naming(first, pages))
            .or_else(|| self.pages.naming(first, pages))
    }

    fn holding(&self, senders: &[Sender], page: u64, pages: u64) -> Option<String> {
        let senders = self.streams_of(senders);
        let bound = self.structures.bound(&senders);
        let tags = bound.into_iter().map(|bound| bound.tag);
        // What a guest's context says is known as far as the unit has read it.
        let theirs = senders.iter().flat_map(|(stream, substream)| {
            let vmid = self.structures.guest(*stream);
            let kept = &self.caches.configuration;
            let contexts = kept.contexts_of(*stream, substream.unwrap_or(0)).iter();
            contexts.filter_map(move |context| match (vmid, context) {
                (Some(vmid), Context::Tables(tables)) => {
                    let asid = tables.asid;
                    Some(Tag::First { vmid, asid })
                }
                _ => None,
            })
        });
        let held = tags
            .chain(theirs)
            .find_map(|tag| self.caches.holding(tag, page, pages));
        held.or_else(|| self.device_holding(&senders, page, pages))
    }

    fn differing(&self, senders: &[Sender], leaf: &Mapping) -> Option<String> {
        let streams = self.streams_of(senders);
        let bound = self.structures.bound(&streams);
        let (read, write) = (leaf.perms.readable(), leaf.perms.writable());
        bound.into_iter().find_map(|bound| {
            // Levels are counted from the leaves there, from the root here.
            let level = 4_u8.saturating_sub(leaf.level.number());
            let span = bound.granule.span(level);
            let (at, to) = (leaf.at.as_u64(), leaf.to.as_u64());
            let unit = self
                .caches
                .differing(bound.tag, span, at, to, (read, write));
            unit.or_else(|| self.device_differing(&streams, (span, at, to), (read, write)))
        })
    }

    fn binding_tables(&self) -> RangeInclusive<u64> {
        let entries = self.structures.count();
        // Of a unit that has first stages alone, descriptors too; of one with both, of those domains that tell PASIDs apart.
        let (least, most) = match (self.identity.second_stage, self.structures.descriptors()) {
            (true, (_, most)) => (0, most),
            (false, both) => both,
        };
        entries + least..=entries + most
    }

    fn recorded(
        &self,
        requester: u16,
        address: u64,
        read: bool,
        reason: u8,
        stage: Option<FaultStage>,
    ) -> bool {
        let what = (reason, stage);
        self.events.recorded(requester, address, read, what)
    }
}
