//! Events for CPUs that wait for one: lost, late, or nobody's, and each a hint at most.

use hv_core::CpuId;

use crate::bus::Bus;
use crate::core::Core;

/// The longest that a CPU waits for an event, in nanoseconds: then the platform wakes it.
const PAUSE_MOST: u64 = 100_000;
/// How much time passes before it may be woken, in nanoseconds.
const PAUSE_STEP: u64 = 2_000;

/// One bit for each CPU, which an event sets and the end of a wait clears.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EventRegisters(u64);

impl EventRegisters {
    /// All CPUs that wait go on, and those that do not wait will not at the next time.
    pub(crate) fn set(&mut self) {
        self.0 = u64::MAX;
    }

    /// Whether there was an event for this CPU; there is none any more.
    fn take(&mut self, cpu: CpuId) -> bool {
        let bit = 1 << cpu.index();
        let was = self.0 & bit != 0;
        self.0 &= !bit;
        was
    }
}

impl Bus {
    /// A unit sends an event to waiting CPUs, which may get lost.
    pub(crate) fn send_event(&mut self, unit: usize) {
        self.counts.events += 1;
        let lost = self.temper.slow && self.rng.one_in(4);
        if !lost {
            self.waiting.set();
        }
        self.note_unit(unit, || {
            format!("sends an event{}", if lost { ", lost" } else { "" })
        });
    }
}

impl Core {
    /// A CPU waits for an event, or for no reason no longer.
    pub(crate) fn pause(&self, cpu: CpuId) {
        self.give_way();
        let mut state = self.quiet();
        if state.bus.temper.steady_clock {
            // What others do meanwhile takes no time of this thread's.
            state.bus.waiting.take(cpu);
            return;
        }
        let end = state.bus.nanos + PAUSE_MOST;
        while !state.bus.waiting.take(cpu) && state.bus.nanos < end {
            state.happen(PAUSE_STEP);
            if state.bus.temper.slow && state.bus.rng.one_in(8) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_for_every_cpu_and_ends_one_wait_of_each() {
        let (one, other) = (CpuId::new(0), CpuId::new(63));
        let mut registers = EventRegisters::default();
        assert!(!registers.take(one));
        registers.set();
        assert!(registers.take(one) && !registers.take(one));
        assert!(registers.take(other) && !registers.take(other));
    }
}
