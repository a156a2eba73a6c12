//! The rig's state behind its lock, and what happens between any two steps of the driver.

mod others;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hv_core::{Access, PciAddress};
use hv_iommu::table::Mapping;

use crate::bus::{Bus, Counts, Frames, Gap};
use crate::cell::Sheets;
use crate::dma::Asks;
use crate::frontend::FrontEnd;
use crate::ledger::{Ledger, Tenant};
use crate::machine::{Capabilities, Machine, UnitModel, UnitRegisters};
use crate::memory::{FRAME_BYTES, FRAMES, Memory, frame_of};
use crate::pci::{ATS_ENABLE, BUS_MASTER, CxlCache, Function, Pasids};
use crate::request::{Outcome, Progress, Request, Says, Sender, Step};
use crate::rng::Rng;
use crate::rule::Rule;
use crate::services::Services;
use crate::trace::{Event, Trace};
use crate::waking::EventRegisters;
use crate::{smmu, vtd};

use others::Other;
pub(crate) use others::Watch;

/// How much the clock moves at each step of the driver, in nanoseconds.
pub(crate) const STEP_NANOS: u64 = 20;
/// How much it moves at the first of several looks at it in a row; it doubles with each.
const LOOK_NANOS: u64 = 100;
/// How much it moves at most.
const LOOK_NANOS_MOST: u64 = 20_000_000;
/// In how much time a unit gets something done.
const ROUND_NANOS: u64 = 2_000;
/// How often it does at once, at most: more than its queue can hold.
const MOST_ROUNDS: u64 = 256;
/// Steps after which a walk must have ended.
const STEPS: usize = 4096;
/// Every how many steps a thread gives way to another, on average.
const GIVE_WAY: u64 = 6;
/// How many requests of devices are under way at once.
const REQUESTS: usize = 8;

/// Units and everything else.
pub(crate) struct State {
    pub(crate) units: Vec<Box<dyn FrontEnd>>,
    pub(crate) bus: Bus,
    /// The words that the driver has.
    pub(crate) sheets: Sheets,
    looks: u32,
}

/// The lock around the state.
pub(crate) struct Core {
    state: Mutex<State>,
    /// Whether threads take turns at their steps, and not only when the machine that this runs on likes.
    turns: AtomicBool,
    steps: AtomicU64,
    /// What another CPU does in the middle of what this one does, after so many steps.
    meanwhile: Mutex<Option<(u64, Other)>>,
    /// Who looks on where the driver waits for a unit.
    waits: Mutex<Option<Watch>>,
}

impl Core {
    /// The machine, after reset, with the mess that firmware left.
    pub(crate) fn new(machine: &Machine) -> Self {
        let mut rng = Rng::new(machine.seed);
        let temper = machine.temper;
        let sides: Vec<_> = machine
            .units
            .iter()
            .map(|unit| match &unit.registers {
                UnitRegisters::Vtd(known) => (known.ecap.c, known.cap.rwbf),
                UnitRegisters::Smmu(identity) => (identity.coherent, false),
            })
            .collect();
        // In memory a fresh frame looks like an entry that leads to the last frame, which nobody has.
        let base = machine.memory_base();
        let poison = (base + (FRAMES - 1) * FRAME_BYTES) | 0b11;
        let functions = functions(machine, &mut rng);
        let mut units: Vec<Box<dyn FrontEnd>> = (machine.units.iter().enumerate())
            .map(|(index, model)| -> Box<dyn FrontEnd> {
                match &model.registers {
                    UnitRegisters::Vtd(Capabilities { cap, ecap }) => {
                        let bits = machine.host_address_bits;
                        Box::new(vtd::Unit::new(index, *cap, *ecap, bits))
                    }
                    UnitRegisters::Smmu(identity) => Box::new(smmu::Unit::new(index, identity)),
                }
            })
            .collect();
        if temper.leftovers {
            for unit in &mut units {
                let mine = functions
                    .iter()
                    .filter(|function| function.unit == unit.index());
                let requesters: Vec<u16> = mine
                    .flat_map(|function| function.requesters.clone())
                    .collect();
                unit.leave_over(&requesters, &mut rng);
            }
        }
        let mut frames = Frames::from_base(base);
        for region in &machine.regions {
            let first = frame_of(region.memory.start().as_u64());
            frames.keep(first, region.memory.pages().get());
        }
        let bus = Bus {
            memory: Memory::new(&sides, temper.weak_stores, poison).starting_at(base),
            frames,
            functions,
            ledger: Ledger::default(),
            requests: Vec::new(),
            rng,
            temper,
            trace: Trace::default(),
            violation: None,
            nanos: 0,
            tick: 0,
            counts: Counts::default(),
            watching: false,
            kept: Vec::new(),
            gap: Gap::default(),
            wedged: 0,
            provoked: false,
            lending: None,
            lent: Vec::new(),
            wanted: None,
            lost: 0,
            next_request: 0,
            services: Services::of(machine),
            interrupts: Vec::new(),
            substreams: machine.units.iter().any(UnitModel::knows_substreams),
            waiting: EventRegisters::default(),
            past_caches: false,
        };
        Self {
            state: Mutex::new(State {
                units,
                bus,
                sheets: Sheets::default(),
                looks: 0,
            }),
            turns: AtomicBool::new(false),
            steps: AtomicU64::new(machine.seed),
            meanwhile: Mutex::new(None),
            waits: Mutex::new(None),
        }
    }

    /// The state, as it is.
    pub(crate) fn quiet(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, at a moment between two steps of the driver: something may happen first.
    pub(crate) fn step(&self) -> MutexGuard<'_, State> {
        self.give_way();
        let mut state = self.quiet();
        state.happen(STEP_NANOS);
        state
    }

    /// From now on threads take turns.
    pub(crate) fn take_turns(&self) {
        // ORDERING: Relaxed, as below.
        self.turns.store(true, Ordering::Relaxed);
    }

    /// Lets another thread in now and then: who holds the lock of the state mostly gets it again.
    pub(crate) fn give_way(&self) {
        self.let_in();
        // ORDERING: Relaxed, both: a choice made before there are threads, and a source of chance.
        if self.turns.load(Ordering::Relaxed) {
            let step = self.steps.fetch_add(1, Ordering::Relaxed);
            if Rng::new(step).one_in(GIVE_WAY) {
                std::thread::sleep(Duration::from_micros(1));
            }
        }
    }

    /// As [`step`](Self::step), where the driver does more than look: it is not just waiting.
    pub(crate) fn act(&self) -> MutexGuard<'_, State> {
        let mut state = self.step();
        state.acted();
        state
    }

    /// A look at the clock. Looks in a row are a driver that waits: time goes faster and faster, so that
    /// deadlines pass in little of it.
    pub(crate) fn look(&self) -> u64 {
        self.give_way();
        let mut state = self.quiet();
        let nanos = (LOOK_NANOS << state.looks.min(24)).min(LOOK_NANOS_MOST);
        if !state.bus.temper.steady_clock {
            state.looks += 1;
        }
        state.happen(nanos);
        state.bus.nanos
    }
}

/// The functions, with what their requests pass and carry.
fn functions(machine: &Machine, rng: &mut Rng) -> Vec<Function> {
    let mut functions = Vec::new();
    for (model, bridge) in machine.all_functions() {
        let bridges = machine.bridges_above(model.address);
        let mut requesters = vec![model.address.requester()];
        let phantoms = model.facts().phantom_ids();
        requesters.extend(phantoms.map(PciAddress::requester));
        for bridge in bridges
            .iter()
            .filter_map(|index| machine.functions.get(*index))
        {
            // Behind a conventional bridge a request carries the bridge's id, or that of the first
            // function of the bus behind it, or the device's own.
            if let hv_iommu::FunctionKind::ConventionalBridge(buses) = bridge.kind {
                requesters.push(bridge.address.requester());
                requesters.push(u16::from(buses.secondary) << 8);
            }
        }
        functions.push(Function {
            address: model.address,
            kind: model.kind,
            bridge,
            command: if model.left_on { BUS_MASTER } else { 0 },
            pasids: Pasids::of(machine.pasid_bits),
            present: true,
            silent: false,
            rogue: machine.temper.rogues && rng.one_in(4),
            unit: machine.unit_of(model.address).unwrap_or(0),
            heeds_no_snoop: machine.heeds_no_snoop(model.address.segment()),
            ats: model
                .ats
                .then_some(if model.left_on { ATS_ENABLE } else { 0 }),
            cxl_cache: model
                .cxl_cache
                .map(|cache| CxlCache::new(cache, model.left_on)),
            requesters,
            bridges,
        });
    }
    functions
}

impl State {
    /// Nobody asks about this machine any more: nothing of it is kept.
    pub(crate) fn retire(&mut self) {
        self.units = Vec::new();
        self.sheets.retire();
        let bus = &mut self.bus;
        bus.memory = Memory::new(&[], false, 0);
        bus.trace = Trace::default();
        bus.ledger = Ledger::default();
        bus.frames = Frames::default();
        (bus.functions, bus.requests) = (Vec::new(), Vec::new());
        (bus.lent, bus.interrupts) = (Vec::new(), Vec::new());
        bus.watching = false;
    }

    /// The driver did something.
    pub(crate) fn acted(&mut self) {
        self.looks = 0;
    }

    /// Time passes, and what may happen meanwhile does.
    pub(crate) fn happen(&mut self, nanos: u64) {
        self.bus.nanos += nanos;
        self.bus.tick += 1;
        for unit in &mut self.units {
            let health = unit.health_mut();
            health.hangs_in = match health.hangs_in.take() {
                Some((0, time)) => {
                    health.hang(self.bus.nanos, time);
                    None
                }
                Some((steps, time)) => Some((steps - 1, time)),
                None => None,
            };
        }
        // In more time more is done.
        let rounds = 1 + (nanos / ROUND_NANOS).min(MOST_ROUNDS);
        for _ in 0..rounds {
            for unit in &mut self.units {
                unit.work(&mut self.bus);
            }
        }
        if self.bus.provoked && self.bus.temper.background {
            self.bus.provoked = false;
            self.provoke();
        }
        let chance = self.bus.rng.next();
        let temper = self.bus.temper;
        if temper.background && chance & 0x3 == 0 {
            self.advance_one();
            if chance & 0x3c == 0 {
                self.start_one();
            }
        }
        if temper.early && chance & 0x1f00 == 0 {
            self.bus.memory.leak_one(&mut self.bus.rng);
        }
        if temper.evictions && chance & 0xff_0000 == 0 {
            for unit in &mut self.units {
                unit.evict(&mut self.bus.rng);
            }
        }
    }

    /// Something just changed that devices may notice: some send now, from beginning to end.
    fn provoke(&mut self) {
        self.devices_ask();
        for _ in 0..3 {
            let Some(device) = self.bus.some_sender() else {
                continue;
            };
            if !self.bus.watching {
                return;
            }
            let substream = self.bus.some_substream(device);
            let address = self.bus.somewhere(device, substream);
            let access = if self.bus.rng.one_in(2) {
                Access::Read
            } else {
                Access::Write
            };
            let Some(mut request) = self.bus.request(device, substream, address, access) else {
                continue;
            };
            for _ in 0..STEPS {
                if self.advance(&mut request).is_some() {
                    break;
                }
            }
        }
    }

    /// Some device begins a request.
    fn start_one(&mut self) {
        let bus = &mut self.bus;
        if bus.requests.len() >= REQUESTS {
            return;
        }
        let Some(device) = bus.some_sender() else {
            return;
        };
        // What devices do before any unit translates is firmware's business, and nobody judges it; but for those that are
        // kept running.
        let judged = bus.watching || bus.kept.contains(&device);
        if !judged && !self.units.iter().any(|unit| unit.is_on()) {
            return;
        }
        let substream = bus.some_substream(device);
        let address = bus.somewhere(device, substream);
        let access = if bus.rng.one_in(2) {
            Access::Read
        } else {
            Access::Write
        };
        if let Some(request) = bus.request(device, substream, address, access) {
            bus.requests.push(request);
        }
    }

    /// Some request gets a step further.
    fn advance_one(&mut self) {
        let count = self.bus.requests.len() as u64;
        if count == 0 {
            return;
        }
        let index = self.bus.rng.below(count) as usize;
        let under_way = self.bus.requests.get(index);
        let translated = |request: &Request| matches!(request.progress, Progress::Translated(_));
        if under_way.is_some_and(translated) && !self.bus.rng.one_in(16) {
            // On its way through the fabric, where nothing but a drain hurries it.
            return;
        }
        let mut request = self.bus.requests.swap_remove(index);
        if self.advance(&mut request).is_none() {
            self.bus.requests.push(request);
        }
    }

    /// Does one step of a request; gives what became of it when it ended.
    fn advance(&mut self, request: &mut Request) -> Option<Outcome> {
        if let Progress::Translated(reach) = request.progress {
            return Some(self.bus.landed(request, &reach));
        }
        let Some(unit) = self.units.get_mut(request.unit) else {
            return Some(Outcome::Lost);
        };
        let bus = &mut self.bus;
        match unit.advance(bus, request) {
            Step::Again => None,
            Step::Translated(reach) if request.says == Says::Asks => {
                unit.keep_in_device(request, &reach);
                Some(Outcome::Reached { at: reach.to })
            }
            Step::Translated(reach) => {
                request.progress = Progress::Translated(reach);
                None
            }
            Step::Untranslated => Some(bus.landed_untranslated(request)),
            Step::Fault { reason } => {
                let why = format!("reason {reason:#x}: {}", unit.reason(reason));
                Some(bus.refused(request, &why, Outcome::Faulted { reason }))
            }
            Step::Stalled => Some(Outcome::Lost),
            Step::InGap => Some(bus.lost_in_gap()),
            Step::Lost { why } => Some(bus.refused(request, why, Outcome::Lost)),
        }
    }

    /// A device's request from beginning to end, now.
    pub(crate) fn send(
        &mut self,
        device: usize,
        substream: Option<u32>,
        address: u64,
        access: Access,
        asks: Asks,
    ) -> Outcome {
        self.bus.tick += 1;
        if !self.bus.may_send(device) {
            return Outcome::Lost;
        }
        let Some(mut request) = self.bus.request(device, substream, address, access) else {
            return Outcome::Lost;
        };
        let heeds = self.bus.functions.get(device);
        let heeds = heeds.is_some_and(|function| function.heeds_no_snoop);
        match asks {
            Asks::Snooping => request.no_snoop = false,
            Asks::NoSnoop => request.no_snoop = heeds,
            Asks::Either => {}
        }
        self.finish(&mut request)
    }

    /// The same for a request that is made already.
    pub(crate) fn finish(&mut self, request: &mut Request) -> Outcome {
        let (address, access) = (request.address, request.access);
        for _ in 0..STEPS {
            if let Some(outcome) = self.advance(request) {
                if self.bus.violation.is_none() {
                    let number = request.number;
                    let what = format!("{access} {address:#x}: {outcome:?}");
                    self.bus.note(Event::Request { number, what });
                }
                return outcome;
            }
        }
        Outcome::Lost
    }

    /// The driver stores a word that walkers may read.
    pub(crate) fn store(&mut self, at: u64, word: u64) -> u64 {
        self.judge_memory(at);
        let bus = &mut self.bus;
        let old = bus.memory.store(at, word, &mut bus.rng);
        bus.note(Event::Store { at, old, new: word });
        // Devices notice at once, now and then, that what they use has changed.
        bus.provoked |= old != 0 && old != word && bus.rng.one_in(4);
        for unit in &mut self.units {
            unit.stored(&mut self.bus, at, old, word);
        }
        old
    }

    /// The driver may touch only what it was given.
    pub(crate) fn judge_memory(&mut self, at: u64) {
        if !self.bus.frames.is_out(frame_of(at)) {
            let what = format!("the driver reached {at:#x}, which is no frame that it has");
            self.bus.broken(Rule::DriverMemory, what);
        }
    }

    /// As whom devices behind a unit send that are a tenant's.
    fn senders_of(&self, unit: usize, tenant: Tenant) -> Vec<Sender> {
        let functions = self.bus.functions.iter().enumerate();
        let behind = functions.filter(|(_, function)| function.unit == unit);
        let mut senders = Vec::new();
        for (index, function) in behind {
            for (substream, holding) in self.bus.ledger.holdings(index) {
                if holding.tenant == tenant {
                    senders.extend(function.requesters.iter().map(|requester| Sender {
                        requester: *requester,
                        substream,
                    }));
                }
            }
        }
        senders
    }

    /// A tenant's leaves are settled: no unit that its devices are bound on has anything else there.
    pub(crate) fn judge_settled(&mut self, tenant: Tenant, leaves: &[Mapping]) {
        for index in 0..self.units.len() {
            let senders = self.senders_of(index, tenant);
            let unit = &self.units[index];
            let other = leaves
                .iter()
                .find_map(|leaf| unit.differing(&senders, leaf));
            if let Some(other) = other {
                let what =
                    format!("{tenant:?} has a receipt, and unit {index} still holds {other}");
                self.bus.broken(Rule::StaleTranslation, what);
                return;
            }
        }
    }

    /// Pages of a tenant came back with a receipt: no unit that the tenant's devices are bound on holds a
    /// translation of them. That the frames are mapped elsewhere as well is no excuse.
    pub(crate) fn judge_pages(&mut self, tenant: Tenant, page: u64, pages: u64) {
        for index in 0..self.units.len() {
            let senders = self.senders_of(index, tenant);
            let (unit, bus) = (&self.units[index], &mut self.bus);
            if let Some(name) = unit.holding(&senders, page, pages) {
                let what = format!(
                    "{pages} pages from page {page:#x} of {tenant:?} came back, and unit {} still holds {name}",
                    unit.index()
                );
                bus.broken(Rule::StillCached, what);
                return;
            }
        }
    }

    /// Frames come back, to the platform or to their owner: nothing may name them any more.
    pub(crate) fn judge_return(&mut self, first: u64, pages: u64, what: &str) {
        let at = first * FRAME_BYTES;
        self.bus.ledger.left_with(first, pages);
        let overlaps = |lent: u64, count: u64| lent < first + pages && first < lent + count;
        self.bus
            .lent
            .retain(|(_, lent, count)| !overlaps(*lent, *count));
        if self.bus.watching
            && let Some((tenant, page)) = self.bus.ledger.holder(first, pages)
        {
            let what = format!(
                "{pages} frames at {at:#x} were {what}, and {tenant:?} has them mapped from page {page:#x} on"
            );
            self.bus.broken(Rule::StillMapped, what);
        }
        for unit in &self.units {
            if let Some(name) = unit.naming(&self.bus, first, pages) {
                let what = format!(
                    "{pages} frames at {at:#x} were {what}, and unit {} still holds {name}",
                    unit.index()
                );
                self.bus.broken(Rule::StillCached, what);
                return;
            }
        }
    }
}
