//! The rig as a test holds it: a machine to bring up, devices to play, and the verdict.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use hv_core::{Access, PciAddress};
use hv_iommu::{PciFunction, RawFault};

use crate::bus::Counts;
use crate::core::Core;
use crate::interrupt::{Interrupt, Trouble};
use crate::machine::{Impossible, Machine};
use crate::pci::CxlCache;
use crate::rng::Rng;
use crate::rule::{Rule, Violation};
use crate::trace::Event;

/// A software machine with IOMMUs. Cheap to clone; clones are the same machine.
///
/// It implements every platform trait, so a backend runs on it unmodified.
#[derive(Clone)]
pub struct Rig {
    pub(crate) core: Arc<Core>,
    machine: Arc<Machine>,
}

/// A broken rule, with what it takes to see it again. Shown the same for people and by `{:?}`, which a failing
/// `main` prints.
#[derive(Clone)]
pub struct Failure {
    /// The seed of the machine.
    pub seed: u64,
    /// The rule, and how it was broken.
    pub violation: Violation,
    /// What happened last, oldest first.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.violation)?;
        writeln!(f, "seed {:#x}", self.seed)?;
        writeln!(f, "what happened last:")?;
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failure {}

/// How many lines of the trace a failure shows.
const TRACE_LINES: usize = 60;

impl Rig {
    /// Plays this machine, after power-on.
    ///
    /// # Errors
    /// [`Impossible`]: no hardware can be like that; the error names the rule.
    pub fn new(machine: Machine) -> Result<Self, Impossible> {
        machine.check()?;
        let core = Arc::new(Core::new(&machine));
        Ok(Self {
            core,
            machine: Arc::new(machine),
        })
    }

    /// The machine that is played.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The functions, as an embedder enumerates them.
    pub fn functions(&self) -> Vec<PciFunction> {
        let functions = self.machine.all_functions();
        functions.map(|(function, _)| function.facts()).collect()
    }

    /// Whether all rules were kept so far, as far as the rig can tell: before [`watch`](Self::watch) it knows
    /// registers, queues, entries and what is free, but not who owns what, so it judges no reach of memory that
    /// is in use, and no fault.
    ///
    /// # Errors
    /// The first [`Failure`].
    pub fn verdict(&self) -> Result<(), Box<Failure>> {
        let state = self.core.quiet();
        match &state.bus.violation {
            None => Ok(()),
            Some(violation) => Err(Box::new(Failure {
                seed: self.machine.seed,
                violation: violation.clone(),
                trace: state.bus.trace.tail(TRACE_LINES),
            })),
        }
    }

    /// Whether a rule was broken.
    pub fn is_broken(&self) -> bool {
        self.core.quiet().bus.violation.is_some()
    }

    /// Frames that units hold as tables that bind devices: a driver may keep those for ever. At most so many.
    pub fn binding_tables(&self) -> u64 {
        *self.binding_frames().end()
    }

    /// The same, from the fewest to the most: units cannot tell where a driver keeps descriptors that nothing leads to
    /// yet.
    pub(crate) fn binding_frames(&self) -> RangeInclusive<u64> {
        let state = self.core.quiet();
        let each = state.units.iter().map(|unit| unit.binding_tables());
        let (least, most) = each.fold((0, 0), |(least, most), tables| {
            (least + tables.start(), most + tables.end())
        });
        least..=most
    }

    /// Whether a unit recorded this fault lately: page, stage, and reason code in the vendor's numbers.
    pub fn recorded_fault(&self, unit: usize, fault: &RawFault) -> bool {
        let state = self.core.quiet();
        let (requester, read) = (fault.requester.requester(), fault.access == Access::Read);
        let Ok(reason) = u8::try_from(fault.code) else {
            return false;
        };
        let unit = state.units.get(unit);
        unit.is_some_and(|unit| {
            unit.recorded(requester, fault.address.as_u64(), read, reason, fault.stage)
        })
    }

    /// The functions that do DMA of their own.
    pub fn endpoints(&self) -> Vec<PciAddress> {
        let state = self.core.quiet();
        let endpoints = state
            .bus
            .functions
            .iter()
            .filter(|function| function.is_endpoint());
        endpoints.map(|function| function.address).collect()
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.core.quiet().bus.counts
    }

    /// An event that no unit sent: every CPU that waits for one goes on, or does not wait the next time.
    pub fn wake_cpus(&self) {
        self.core.quiet().bus.waiting.set();
    }

    /// The rig's clock, in nanoseconds, without moving it.
    pub fn nanos(&self) -> u64 {
        self.core.quiet().bus.nanos
    }

    /// Frames that are out.
    pub fn frames_out(&self) -> u64 {
        self.core.quiet().bus.frames.out
    }

    /// How many allocations were asked for.
    pub fn allocations(&self) -> u64 {
        self.core.quiet().bus.frames.allocations
    }

    /// Makes the one allocation fail that comes after `successes` more.
    pub fn fail_allocation_after(&self, successes: Option<u64>) {
        self.core.quiet().bus.frames.fail_in = successes;
    }

    /// What is decided from now on follows from this number, whatever was before.
    pub fn reseed(&self, seed: u64) {
        self.core.quiet().bus.rng = Rng::new(seed);
    }

    /// Notes in the trace what the test does next.
    pub fn say(&self, what: impl Into<String>) {
        let what = what.into();
        self.core.quiet().bus.note(Event::Step(what));
    }

    /// The test found that a rule was broken that only it can know of.
    pub fn broken(&self, rule: Rule, what: impl Into<String>) {
        self.core.quiet().bus.broken(rule, what.into());
    }

    /// Lets go of all that the machine takes, for who is done with it and cannot drop every clone: a driver whose devices
    /// are attached when it is dropped keeps its platform for ever. Whatever still reaches the machine reaches nothing.
    pub fn retire(&self) {
        self.core.quiet().retire();
    }

    /// The rule that was broken first, of a machine that is done.
    pub(crate) fn judged(&self) -> Option<Violation> {
        let violation = self.core.quiet().bus.violation.clone();
        self.retire();
        violation
    }

    /// Lets time pass, in which anything may happen that happens by itself.
    pub fn idle(&self, steps: u32) {
        for _ in 0..steps {
            drop(self.core.step());
        }
    }

    /// A unit does nothing for this long, and then goes on as if nothing had been.
    pub fn hang(&self, unit: usize, time: Duration) {
        let mut state = self.core.quiet();
        let now = state.bus.nanos;
        if let Some(unit) = state.units.get_mut(unit) {
            unit.health_mut().hang(now, time.as_nanos() as u64);
        }
    }

    /// Runs `act`, and after so many steps of it, in the middle of something, what another CPU does: `other` itself does
    /// it, or holds this CPU up until a thread has. Says whether it came to that.
    pub fn between(
        &self,
        steps: u64,
        other: impl FnOnce() + Send + 'static,
        act: impl FnOnce(),
    ) -> bool {
        self.core.meanwhile(Some((steps, Box::new(other))));
        act();
        self.core.meanwhile(None).is_none()
    }

    /// After so many steps of what this CPU does next, another CPU does something in the middle of it. For `other` of
    /// [`between`](Self::between), where yet another one comes.
    pub fn later(&self, steps: u64, other: impl FnOnce() + Send + 'static) {
        self.core.meanwhile(Some((steps, Box::new(other))));
    }

    /// From now on `watch` is called where the driver reads registers of a unit, of that number, again and again and does nothing
    /// else: where it waits for the unit. It is what this CPU does in the middle of that. `None`: no more.
    pub fn watch_waits(&self, watch: Option<Arc<dyn Fn(usize) + Send + Sync>>) {
        self.core.watch_waits(watch);
    }

    /// From now on threads take turns at their steps, whatever the machine that this runs on likes.
    pub fn take_turns(&self) {
        self.core.take_turns();
    }

    /// A unit hangs like that after this many more steps of the driver: in the middle of something.
    pub fn hang_after(&self, unit: usize, steps: u32, time: Duration) {
        if let Some(unit) = self.core.quiet().units.get_mut(unit) {
            unit.health_mut().hangs_in = Some((steps, time.as_nanos() as u64));
        }
    }

    /// A unit's invalidation queue stops at an error of the unit's own.
    pub fn fail_queue(&self, unit: usize) {
        let mut state = self.core.quiet();
        let state = &mut *state;
        if let Some(unit) = state.units.get_mut(unit) {
            unit.health_mut().was_ill = true;
            unit.fail(&mut state.bus);
        }
    }

    /// A unit suffers something that its kind can suffer.
    pub fn suffer(&self, unit: usize, trouble: Trouble) {
        let mut state = self.core.quiet();
        let state = &mut *state;
        if let Some(unit) = state.units.get_mut(unit) {
            unit.health_mut().was_ill |= trouble == Trouble::Fails;
            unit.suffer(&mut state.bus, trouble);
        }
    }

    /// The interrupts that came since the last call.
    pub fn take_interrupts(&self) -> Vec<Interrupt> {
        std::mem::take(&mut self.core.quiet().bus.interrupts)
    }

    /// Whether a unit was made to hang for long, to fail, or was lost, since the driver last brought it back.
    pub fn was_ill(&self, unit: usize) -> bool {
        let state = self.core.quiet();
        let unit = state.units.get(unit);
        unit.is_some_and(|unit| unit.health().was_ill || unit.health().gone)
    }

    /// Whether a unit was lost.
    pub fn is_lost(&self, unit: usize) -> bool {
        let state = self.core.quiet();
        state.units.get(unit).is_some_and(|unit| unit.health().gone)
    }

    /// A hanging unit goes on at once, and does not hang later.
    pub fn wake(&self, unit: usize) {
        if let Some(unit) = self.core.quiet().units.get_mut(unit) {
            let health = unit.health_mut();
            (health.stuck_until, health.hangs_in) = (0, None);
        }
    }

    /// A unit stops answering for good: its registers read as all ones.
    pub fn lose_unit(&self, unit: usize) {
        let mut state = self.core.quiet();
        state.bus.lost |= 1 << unit;
        if let Some(unit) = state.units.get_mut(unit) {
            unit.health_mut().gone = true;
        }
    }

    /// A unit that was lost answers again, in the state that it was in.
    pub fn find_unit(&self, unit: usize) {
        let mut state = self.core.quiet();
        state.bus.lost &= !(1 << unit);
        if let Some(unit) = state.units.get_mut(unit) {
            let health = unit.health_mut();
            (health.gone, health.was_ill) = (false, true);
        }
    }

    /// A function is pulled out, or plugged in again as it is after a reset.
    pub fn plug(&self, function: PciAddress, present: bool) {
        let mut state = self.core.quiet();
        let state = &mut *state;
        let mut functions = state.bus.functions.iter_mut();
        if let Some(known) = functions.find(|known| known.address == function) {
            known.present = present;
            known.command = 0;
            known.ats = known.ats.map(|_| 0);
            known.cxl_cache = known.cxl_cache.map(CxlCache::after_reset);
            let (requesters, unit) = (known.requesters.clone(), known.unit);
            if let Some(unit) = state.units.get_mut(unit) {
                unit.was_plugged(&requesters);
            }
        }
    }

    /// Whether a function's requests would leave it: its bus mastering and that of its bridges is on.
    pub fn may_send(&self, function: PciAddress) -> bool {
        let state = self.core.quiet();
        let index = state
            .bus
            .functions
            .iter()
            .position(|known| known.address == function);
        index.is_some_and(|index| state.bus.may_send(index))
    }
}
