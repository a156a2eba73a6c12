//! The state of the rig but for its units: memory, functions, the ledger, the watcher, time.

use std::collections::BTreeMap;

use hv_core::Access;

use crate::interrupt::Interrupt;
use crate::ledger::{Entitled, Ledger, Tenant};
use crate::machine::Temper;
use crate::memory::{FRAME_BYTES, FRAMES, Memory, View, frame_of};
use crate::pci::{BUS_MASTER, Function};
use crate::request::{Outcome, Progress, Reach, Request, Says};
use crate::rng::Rng;
use crate::rule::{Rule, Violation};
use crate::services::Services;
use crate::trace::{Event, Trace};
use crate::waking::EventRegisters;

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of devices that ended, whatever became of them.
    pub requests: u64,
    /// Those that were translated and reached memory.
    pub translated: u64,
    /// Those that were refused.
    pub faulted: u64,
    /// Invalidations that units carried out.
    pub invalidations: u64,
    /// Entries that walkers fetched.
    pub fetches: u64,
    /// Events that units sent to waiting CPUs, with those that were lost.
    pub events: u64,
    /// Registers of units that the driver wrote.
    pub register_writes: u64,
    /// Interrupt messages that came to services, with those that raised nothing.
    pub messages: u64,
}

/// The moments between firmware's stream tables and others, in which devices that are kept running are aborted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gap {
    /// How many units had one.
    pub units: u64,
    /// The longest, in nanoseconds of the rig's clock.
    pub nanos: u64,
    /// Requests that were lost.
    pub requests: u64,
}

/// Frames that were given out: runs by first frame.
#[derive(Default)]
pub(crate) struct Frames {
    /// The first there is.
    base: u64,
    taken: BTreeMap<u64, u64>,
    /// Those of them that firmware keeps.
    firmwares: Vec<(u64, u64)>,
    /// Allocations to let through before one fails.
    pub(crate) fail_in: Option<u64>,
    pub(crate) allocations: u64,
    pub(crate) out: u64,
}

impl Frames {
    /// Those of memory that begins there.
    pub(crate) fn from_base(base: u64) -> Self {
        Self {
            base: frame_of(base),
            ..Self::default()
        }
    }

    /// Whether this frame is given out.
    pub(crate) fn is_out(&self, frame: u64) -> bool {
        let run = self.taken.range(..=frame).next_back();
        run.is_some_and(|(first, pages)| frame - first < *pages)
    }

    /// These frames are firmware's from the beginning: nobody is given them, and nobody gives them back.
    pub(crate) fn keep(&mut self, first: u64, pages: u64) {
        self.taken.insert(first, pages);
        self.firmwares.push((first, pages));
    }

    /// Takes the lowest free run, so that what just came back is used again at once.
    pub(crate) fn take(&mut self, pages: u64, align: u64) -> Option<u64> {
        self.allocations += 1;
        match self.fail_in {
            Some(0) => {
                self.fail_in = None;
                return None;
            }
            Some(left) => self.fail_in = Some(left - 1),
            None => {}
        }
        let end = self.base + FRAMES;
        let mut start = self.base.next_multiple_of(align);
        for (first, taken) in &self.taken {
            if start + pages <= *first {
                break;
            }
            start = start.max(first + taken).next_multiple_of(align);
        }
        if start + pages > end {
            return None;
        }
        self.taken.insert(start, pages);
        self.out += pages;
        Some(start)
    }

    /// Takes frames back, in other pieces than they were given if need be. Says whether all were out.
    pub(crate) fn give_back(&mut self, first: u64, pages: u64) -> bool {
        let kept = |(kept, count): &(u64, u64)| *kept < first + pages && first < kept + count;
        if self.firmwares.iter().any(kept) {
            return false;
        }
        let mut left = first;
        while left < first + pages {
            let Some((&start, &count)) = self.taken.range(..=left).next_back() else {
                return false;
            };
            let end = start + count;
            if end <= left {
                return false;
            }
            let stop = end.min(first + pages);
            self.taken.remove(&start);
            if start < left {
                self.taken.insert(start, left - start);
            }
            if stop < end {
                self.taken.insert(stop, end - stop);
            }
            self.out -= stop - left;
            left = stop;
        }
        true
    }
}

/// Everything but the units.
pub(crate) struct Bus {
    pub(crate) memory: Memory,
    pub(crate) frames: Frames,
    pub(crate) functions: Vec<Function>,
    pub(crate) ledger: Ledger,
    pub(crate) requests: Vec<Request>,
    pub(crate) rng: Rng,
    pub(crate) temper: Temper,
    pub(crate) trace: Trace,
    pub(crate) violation: Option<Violation>,
    /// The clock, in nanoseconds.
    pub(crate) nanos: u64,
    /// Counts everything that happens; orders requests against the ledger.
    pub(crate) tick: u64,
    pub(crate) counts: Counts,
    /// Whether who owns what is in the ledger, so that every request can be judged.
    pub(crate) watching: bool,
    /// Devices that run on through bring-up, who are judged from before it on.
    pub(crate) kept: Vec<usize>,
    pub(crate) gap: Gap,
    /// Units that the driver declared wedged: what is mapped there may fault.
    pub(crate) wedged: u64,
    /// Whether something just changed that devices may notice.
    pub(crate) provoked: bool,
    /// Whose domain the driver takes frames for by itself, with the next allocation.
    pub(crate) lending: Option<Tenant>,
    /// Frames that the driver took and mapped by itself: tenant, first frame, pages.
    pub(crate) lent: Vec<(Tenant, u64, u64)>,
    /// What a device was just told to forget, and asks for again: requester and page.
    pub(crate) wanted: Option<(u16, u64)>,
    /// Units that stopped answering: what is mapped there faults.
    pub(crate) lost: u64,
    pub(crate) next_request: u64,
    /// Interrupt translation services.
    pub(crate) services: Services,
    /// Interrupts that nobody took yet.
    pub(crate) interrupts: Vec<Interrupt>,
    /// Whether devices send with PASIDs by themselves: where a unit knows some.
    pub(crate) substreams: bool,
    /// Events for CPUs that wait for one.
    pub(crate) waiting: EventRegisters,
    /// Whether the request that reached memory last went past the CPU's caches.
    pub(crate) past_caches: bool,
}

impl Bus {
    /// Notes an event.
    pub(crate) fn note(&mut self, event: Event) {
        let nanos = self.nanos;
        self.trace.note(nanos, event);
    }

    /// A unit did something; `what` is made only while somebody may read it.
    pub(crate) fn note_unit(&mut self, unit: usize, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.note(Event::Unit { unit, what });
        }
    }

    /// A rule was broken. The first one counts.
    pub(crate) fn broken(&mut self, rule: Rule, what: String) {
        if self.violation.is_none() {
            let nanos = self.nanos;
            self.note(Event::Step(format!("BROKEN: {rule}: {what}")));
            self.trace.stop();
            self.violation = Some(Violation { rule, what, nanos });
        }
    }

    /// What a unit's walker reads at `at`.
    pub(crate) fn fetch(&mut self, view: View, at: u64) -> u64 {
        self.counts.fetches += 1;
        self.memory.walk(view, at)
    }

    /// Whether a function's requests leave it and pass its bridges.
    pub(crate) fn may_send(&self, device: usize) -> bool {
        let Some(function) = self.functions.get(device) else {
            return false;
        };
        if !function.present {
            return false;
        }
        let masters = |index: &usize| {
            let function = self.functions.get(*index);
            function.is_some_and(|function| function.command & BUS_MASTER != 0)
        };
        function.rogue || masters(&device) && function.bridges.iter().all(masters)
    }

    /// Whether a function has bus mastering: one that sends all the same may be refused.
    fn has_bus_mastering(&self, device: usize) -> bool {
        let function = self.functions.get(device);
        function.is_some_and(|function| function.command & BUS_MASTER != 0)
    }

    /// A request of a device: where it goes is its unit's business.
    pub(crate) fn request(
        &mut self,
        device: usize,
        substream: Option<u32>,
        address: u64,
        access: Access,
    ) -> Option<Request> {
        let function = self.functions.get(device)?;
        let (unit, heeds) = (function.unit, function.heeds_no_snoop);
        let requester = match function.requesters.as_slice() {
            [only] => *only,
            several => several[self.rng.below(several.len() as u64) as usize],
        };
        self.next_request += 1;
        // Of its own, so that what else happens does not depend on it.
        let asks_past = Rng::new(self.next_request ^ 0x6e6f_736e_6f6f_7021).one_in(4);
        Some(Request {
            number: self.next_request,
            device,
            requester,
            substream,
            unit,
            address,
            access,
            began: self.tick,
            progress: Progress::New,
            says: Says::Untranslated,
            no_snoop: asks_past && heeds,
            event: None,
        })
    }

    fn name(&self, request: &Request) -> String {
        let function = self.functions.get(request.device);
        let who = function.map_or_else(String::new, |function| function.address.to_string());
        let substream = match request.substream {
            Some(substream) => format!(" with PASID {substream:#x}"),
            None => String::new(),
        };
        format!("{who} {} {:#x}{substream}", request.access, request.address)
    }

    /// A request reached memory: was it entitled to?
    pub(crate) fn landed(&mut self, request: &Request, reach: &Reach) -> Outcome {
        self.counts.requests += 1;
        self.counts.translated += 1;
        self.judge(request, reach.to);
        if reach.past_caches
            && let Some(holding) = self.ledger.holding(request.device, request.substream)
            && self.ledger.snoops(holding.tenant)
        {
            let what = format!(
                "{} went past the CPU's caches, and {:?} was to have what devices send snoop them",
                self.name(request),
                holding.tenant
            );
            self.broken(Rule::NotSnooped, what);
        }
        self.past_caches = reach.past_caches;
        self.message_arrived(request, reach.to);
        Outcome::Reached { at: reach.to }
    }

    fn judge(&mut self, request: &Request, to: u64) {
        let frame = frame_of(to);
        let page = frame_of(request.address);
        let inside = self.memory.is_there(to);
        // Services are there as devices' writes go.
        let out = inside && self.frames.is_out(frame) || self.services.at(to).is_some();
        if !self.watching {
            if inside && !out {
                let what = format!("{} reached free frame {frame:#x}", self.name(request));
                self.broken(Rule::FreedMemory, what);
            }
            return;
        }
        let (device, substream) = (request.device, request.substream);
        let entitled = self
            .ledger
            .entitled(device, substream, page, request.access, request.began);
        let entitled = match entitled {
            Entitled::Nothing => None,
            Entitled::Maybe { frame } | Entitled::Surely { frame } => Some(frame),
        };
        if entitled == Some(frame) && out {
            return;
        }
        let mine = self.ledger.holding(device, substream);
        let mine = mine.map(|holding| holding.tenant);
        let lent = |(tenant, first, pages): &(Tenant, u64, u64)| {
            Some(*tenant) == mine && (*first..first + pages).contains(&frame)
        };
        if out && self.lent.iter().any(lent) {
            return;
        }
        let held = self.ledger.holder(frame, 1);
        let rule = match held {
            _ if !out => Rule::FreedMemory,
            Some((tenant, _)) if Some(tenant) == mine => Rule::StaleTranslation,
            _ => Rule::ForeignMemory,
        };
        let held = match held {
            Some((tenant, page)) => format!("mapped by {tenant:?} from page {page:#x} on"),
            None if out => "the driver's or nobody's".to_owned(),
            None => "free".to_owned(),
        };
        let entitled = match entitled {
            Some(frame) => format!("frame {frame:#x}"),
            None => "nothing".to_owned(),
        };
        let what = format!(
            "{} of {mine:?} reached frame {frame:#x}, which is {held}; entitled to {entitled}",
            self.name(request)
        );
        self.broken(rule, what);
    }

    /// A request went to memory without translation.
    pub(crate) fn landed_untranslated(&mut self, request: &Request) -> Outcome {
        self.counts.requests += 1;
        if self.watching {
            let what = format!("{} went past its unit untranslated", self.name(request));
            self.broken(Rule::Untranslated, what);
        }
        Outcome::Reached {
            at: request.address,
        }
    }

    /// A request was refused, or went nowhere: should it have worked?
    pub(crate) fn refused(&mut self, request: &Request, why: &str, outcome: Outcome) -> Outcome {
        self.counts.requests += 1;
        self.counts.faulted += 1;
        let page = frame_of(request.address);
        let (device, substream, access) = (request.device, request.substream, request.access);
        let entitled = self
            .ledger
            .entitled(device, substream, page, access, request.began);
        // Who asks without being let, or uses what it was given before, is a device that does not do what it is told.
        let function = self.functions.get(device);
        let obeys = (request.says == Says::Untranslated || function.is_some_and(Function::asks))
            // Of one that does not answer nothing has to be let through any more.
            && function.is_none_or(|function| !function.silent);
        if let Entitled::Surely { frame } = entitled
            && (self.watching || self.kept.contains(&device))
            && obeys
            && self.has_bus_mastering(device)
            && (self.wedged | self.lost) & (1 << request.unit) == 0
        {
            let what = format!(
                "{} was refused ({why}), though frame {frame:#x} is mapped there",
                self.name(request)
            );
            self.broken(Rule::MappedFaulted, what);
        }
        outcome
    }

    /// A request of a device that is kept running was aborted in the moment that is put up with.
    pub(crate) fn lost_in_gap(&mut self) -> Outcome {
        self.counts.requests += 1;
        self.gap.requests += 1;
        Outcome::Lost
    }

    /// Whether a request is one of firmware's own, by a device that is kept running.
    pub(crate) fn is_kept(&self, request: &Request) -> bool {
        let page = frame_of(request.address);
        let (device, access) = (request.device, request.access);
        let entitled = self
            .ledger
            .entitled(device, None, page, access, request.began);
        self.kept.contains(&device) && request.substream.is_none() && entitled != Entitled::Nothing
    }

    /// Whether a device behind a unit is kept running.
    pub(crate) fn keeps_behind(&self, unit: usize) -> bool {
        let mut kept = self.kept.iter();
        kept.any(|device| {
            self.functions
                .get(*device)
                .is_some_and(|known| known.unit == unit)
        })
    }

    /// Judges who may send, after the driver changed a command register or cut a unit off.
    pub(crate) fn judge_cut_off(&mut self) {
        if !self.watching {
            return;
        }
        for index in 0..self.functions.len() {
            let function = &self.functions[index];
            if function.caches() && self.ledger.holdings(index).next().is_none() {
                let what = format!(
                    "{} belongs to nobody and reaches memory past its unit (CXL.cache)",
                    function.address
                );
                self.broken(Rule::NotCutOff, what);
                return;
            }
            if !function.is_endpoint() || !function.present || function.command & BUS_MASTER == 0 {
                continue;
            }
            let address = function.address;
            let what = match self.ledger.holdings(index).next() {
                None => format!("{address} belongs to nobody and has bus mastering"),
                Some(_) if self.wedged & (1 << function.unit) != 0 => {
                    format!(
                        "{address} has bus mastering, and its unit {} is wedged",
                        function.unit
                    )
                }
                Some(_) => continue,
            };
            self.broken(Rule::NotCutOff, what);
        }
    }

    /// Somewhere for a device to go by itself: mostly near what it has, or had, or what others have.
    pub(crate) fn somewhere(&mut self, device: usize, substream: Option<u32>) -> u64 {
        let offset = self.rng.below(FRAME_BYTES / 8) * 8;
        let choice = self.rng.next();
        let tenant = self.ledger.holding(device, substream);
        let tenant = tenant.map(|holding| holding.tenant);
        let page = match self.rng.below(8) {
            0..4 => tenant.and_then(|tenant| {
                let (page, run) = self.ledger.some_run(tenant, choice)?;
                Some(page + self.rng.below(run.pages))
            }),
            4 => tenant.and_then(|tenant| {
                // Right behind a mapping: what is mapped next is often there.
                let (page, run) = self.ledger.some_run(tenant, choice)?;
                Some(page + run.pages + self.rng.below(4))
            }),
            5 | 6 => self.ledger.some_ghost(choice),
            _ => None,
        };
        let page = page.unwrap_or(match choice % 8 {
            0 => choice >> 16 & 0xf_ffff_ffff,
            _ => choice >> 16 & 0xff,
        });
        page * FRAME_BYTES + offset
    }

    /// With which PASID a device sends by itself, if with any: mostly with one that it has.
    pub(crate) fn some_substream(&mut self, device: usize) -> Option<u32> {
        if !self.substreams || !self.rng.one_in(3) {
            return None;
        }
        let choice = self.rng.next();
        let theirs: Vec<_> = self.ledger.holdings(device).collect();
        match self.rng.pick(&theirs) {
            Some((substream, _)) if choice & 3 != 0 => *substream,
            _ => Some((choice >> 8) as u32 & if choice & 4 == 0 { 0x7 } else { 0xf_ffff }),
        }
    }

    /// Some device, if there is one that may send.
    pub(crate) fn some_sender(&mut self) -> Option<usize> {
        let device = self.rng.below(self.functions.len() as u64) as usize;
        let endpoint = self.functions.get(device)?.is_endpoint();
        (endpoint && self.may_send(device)).then_some(device)
    }
}
