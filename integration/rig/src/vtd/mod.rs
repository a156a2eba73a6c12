//! A VT-d remapping unit, played at its worst: legacy mode, second stage, queued invalidation, faults.
//!
//! Its bits stand in [`spec`], written apart from the driver's, so that a mistake there shows here.

mod caches;
mod commands;
mod faults;
mod interrupts;
mod queue;
mod registers;
pub(crate) mod spec;
mod structures;
mod walk;

use std::ops::RangeInclusive;

use hv_iommu::FaultStage;
use hv_iommu::table::Mapping;

use caches::{Cached, CachedContext, Caches};
use commands::Command;
use faults::FaultLog;
use interrupts::FaultEvent;
use queue::Queue;
use spec::descriptor::DescriptorLimits;
use spec::entries::{Context, ContextKind, Limits};
use structures::Structures;

pub use spec::capability::{Cap, Ecap};
pub(crate) use spec::capability::{check, draw};
pub(crate) use walk::Walk;

use crate::bus::Bus;
use crate::frontend::{FrontEnd, Health};
use crate::memory::{BASE, FRAME_BYTES, FRAMES, View};
use crate::refusing::Refusing;
use crate::request::{Progress, Request, Sender, Step};
use crate::rng::Rng;

/// Where the first unit's registers are; each takes [`REGISTER_BYTES`].
const REGISTERS: u64 = 0xfed9_0000;
/// Bytes of a unit's registers: enough for wherever a drawn unit has its fault records.
pub(crate) const REGISTER_BYTES: u64 = 0x4000;
/// Pages of a unit's registers, as a power of two (DRHD size field).
pub(crate) const REGISTER_PAGES_LOG2: u8 = 2;

/// Where the registers of a unit are.
pub(crate) const fn registers_at(unit: usize) -> u64 {
    REGISTERS + unit as u64 * REGISTER_BYTES
}

/// The registers of a unit that can do all that a driver in legacy mode may ask for.
pub(crate) fn plain() -> (Cap, Ecap) {
    let mut chosen = draw(&mut |_| 0, 39);
    let (cap, ecap) = (&mut chosen.0, &mut chosen.1);
    cap.nd = 2;
    cap.rwbf = false;
    cap.cm = false;
    cap.sagaw = 0b00110;
    cap.mgaw = 48;
    cap.zlr = true;
    cap.sslps = 0b11;
    cap.psi = true;
    cap.mamv = 18;
    cap.nfr = 4;
    cap.plmr = false;
    cap.phmr = false;
    ecap.c = true;
    chosen
}

/// One unit.
pub(crate) struct Unit {
    index: usize,
    cap: Cap,
    ecap: Ecap,
    limits: Limits,
    descriptor_limits: DescriptorLimits,
    view: View,
    /// GSTS.
    status: u32,
    /// The command that was given and is not done.
    command: Option<Command>,
    /// RTADDR as it was written.
    root_written: u64,
    /// The root table that is in force.
    root: Option<u64>,
    /// Whether context cache and IOTLB were flushed wholly since the root table was set.
    flushed: (bool, bool),
    queue: Queue,
    queue_error: u8,
    /// FSTS but for what follows from the records.
    status_of_faults: u32,
    faults: FaultLog,
    event: FaultEvent,
    /// Registers without an effect on the rig, by offset: the invalidation event and the like.
    plain: hashbrown::HashMap<u32, u64>,
    protection: bool,
    /// When protected memory goes off, if that was asked for.
    protection_ends: Option<u64>,
    caches: Caches,
    structures: Structures,
    health: Health,
}

impl Unit {
    /// A unit after reset, with what firmware left in its caches if the temper says so.
    pub(crate) fn new(index: usize, cap: Cap, ecap: Ecap, host_address_bits: u8) -> Self {
        let domain_id_bits = 4 + 2 * cap.nd;
        Self {
            index,
            cap,
            ecap,
            limits: Limits {
                haw: host_address_bits,
                sagaw: cap.sagaw,
                domain_id_bits,
                caching_mode: cap.cm,
                pass_through: ecap.pt,
                device_tlb: ecap.dt,
                snoop_control: ecap.sc,
                superpages: cap.sslps,
            },
            descriptor_limits: DescriptorLimits {
                domain_id_bits,
                psi: cap.psi,
                mamv: cap.mamv,
            },
            view: View {
                coherent: ecap.c,
                buffer: cap.rwbf.then_some(index),
            },
            status: 0,
            command: None,
            root_written: 0,
            root: None,
            flushed: (false, false),
            queue: Queue::default(),
            queue_error: 0,
            status_of_faults: 0,
            faults: FaultLog::new(cap.nfr.into()),
            event: FaultEvent::new(),
            plain: hashbrown::HashMap::new(),
            protection: cap.plmr || cap.phmr,
            protection_ends: None,
            caches: Caches::default(),
            structures: Structures::default(),
            health: Health::default(),
        }
    }

    /// Refuses a request, and records that where there is room.
    fn fault(&mut self, bus: &mut Bus, request: &Request, reason: u8) -> Step {
        let read = request.access == hv_core::Access::Read;
        let (low, high) = spec::fault::record(request.requester, request.address, read, reason);
        let before = self.fault_status();
        // Once one was lost, none is recorded until software has seen that (VT-d manual, primary fault logging).
        let is_told = !walk::is_quiet(request) && before & spec::registers::FSTS_PFO == 0;
        if is_told && !self.faults.record(low, high) {
            self.status_of_faults |= spec::registers::FSTS_PFO;
        }
        self.condition(bus, before);
        bus.note_unit(self.index, || {
            format!(
                "faults {} of {:#06x} at {:#x}: reason {reason:#x}",
                request.access, request.requester, request.address
            )
        });
        Step::Fault { reason }
    }

    fn translates(&self) -> bool {
        self.status & spec::registers::TE != 0
    }

    /// Whether protected memory is in the way: firmware protected all of it.
    fn protects(&self) -> bool {
        self.protection
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

    fn read(&mut self, bus: &mut Bus, offset: u32, bits: u32) -> u64 {
        self.register_read(bus, offset, bits)
    }

    fn write(&mut self, bus: &mut Bus, offset: u32, bits: u32, value: u64) {
        self.register_written(bus, offset, bits, value);
    }

    fn stored(&mut self, bus: &mut Bus, at: u64, old: u64, new: u64) {
        self.structure_stored(bus, at, old, new);
    }

    fn advance(&mut self, bus: &mut Bus, request: &mut Request) -> Step {
        self.walk(bus, request)
    }

    fn leave_over(&mut self, requesters: &[u16], rng: &mut Rng) {
        let astray = BASE + (FRAMES - 1) * FRAME_BYTES;
        for &requester in requesters {
            let domain = rng.below(4) as u16;
            let entry = Context {
                fault_processing_disabled: false,
                kind: ContextKind::Tables,
                table: astray,
                levels: 3,
                domain,
            };
            let entry = (!rng.one_in(3)).then_some(entry);
            let left = CachedContext {
                domain,
                entry,
                is_quiet: false,
            };
            self.caches.keep_context(requester, left);
        }
        for domain in 0..4 {
            for page in 0..32 {
                let leaf = Cached {
                    root: astray,
                    to: Some(BASE + rng.below(256) * FRAME_BYTES),
                    read: true,
                    write: true,
                    snoops: false,
                };
                self.caches.keep_leaf(domain, 1, page * FRAME_BYTES, leaf);
            }
            let link = Cached {
                root: astray,
                to: Some(astray),
                read: true,
                write: true,
                snoops: false,
            };
            self.caches.keep_link(domain, 2, 0, link);
            self.caches.keep_link(domain, 3, 0, link);
        }
    }

    fn work(&mut self, bus: &mut Bus) {
        if self.health.gone || bus.nanos < self.health.stuck_until {
            return;
        }
        if self.command.is_some() {
            self.work_command(bus);
        }
        if self.protection_ends.is_some_and(|end| end <= bus.nanos) {
            (self.protection, self.protection_ends) = (false, None);
        }
        if self.queue.on && !self.queue.is_idle() {
            self.work_queue(bus);
        }
    }

    fn reason(&self, code: u8) -> &'static str {
        spec::fault::name(code)
    }

    fn fail(&mut self, bus: &mut Bus) {
        self.queue_fails(bus);
    }

    fn refuses(&mut self, refusing: Refusing) {
        self.queue.refusing = refusing;
    }

    fn evict(&mut self, rng: &mut Rng) {
        self.caches.evict_one(rng);
    }

    fn naming(&self, bus: &Bus, first: u64, pages: u64) -> Option<String> {
        let inside = |at: u64| (first..first + pages).contains(&(at / FRAME_BYTES));
        if self.root.is_some_and(inside) {
            return Some("its root table".to_owned());
        }
        if self.structures.has_table(first, pages) {
            return Some("its root table, which names it as a context table".to_owned());
        }
        if let Some(root) = self.structures.roots().find(|root| inside(*root)) {
            return Some(format!("a live context entry, whose table is at {root:#x}"));
        }
        let mine = bus
            .requests
            .iter()
            .filter(|request| request.unit == self.index);
        for request in mine {
            let named = match &request.progress {
                Progress::Vtd(walk) => Some(walk.frame()),
                Progress::Translated(reach) => Some(reach.to / FRAME_BYTES),
                _ => None,
            };
            if let Some(frame) = named
                && (first..first + pages).contains(&frame)
            {
                return Some(format!(
                    "request #{}, which is under way to it",
                    request.number
                ));
            }
        }
        let queue = || self.queue.naming(first, pages);
        let contexts = || self.caches.context_naming(first, pages);
        self.caches
            .naming(first, pages)
            .or_else(contexts)
            .or_else(queue)
    }

    fn holding(&self, senders: &[Sender], page: u64, pages: u64) -> Option<String> {
        let mut domains = self.structures.domains_of(senders);
        domains.find_map(|domain| self.caches.holding(domain, page, pages))
    }

    fn differing(&self, senders: &[Sender], leaf: &Mapping) -> Option<String> {
        let mut domains = self.structures.domains_of(senders);
        let level = leaf.level.number();
        let (read, write) = (leaf.perms.readable(), leaf.perms.writable());
        domains.find_map(|domain| {
            let at = leaf.at.as_u64();
            let to = leaf.to.as_u64();
            self.caches.differing(domain, level, at, to, (read, write))
        })
    }

    fn is_on(&self) -> bool {
        self.translates()
    }

    fn binding_tables(&self) -> RangeInclusive<u64> {
        let tables = self.structures.count();
        tables..=tables
    }

    fn recorded(
        &self,
        requester: u16,
        address: u64,
        read: bool,
        reason: u8,
        stage: Option<FaultStage>,
    ) -> bool {
        let (low, high) = spec::fault::record(requester, address, read, reason);
        // Its records do not tell of stages.
        stage.is_none() && self.faults.recorded(low, high)
    }
}
