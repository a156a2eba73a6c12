//! The monotonic clock: the time stamp counter, measured once against the programmable interval
//! timer.
#![expect(unsafe_code, reason = "programs the interval timer through its ports")]

use core::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use core::time::Duration;

use hv_core::platform::Instant;
use spin::Once;
use thiserror::Error;
use x86_64::instructions::port::Port;

/// Ticks of the interval timer per second.
const PIT_HZ: u64 = 1_193_182;
/// Ticks that one measurement takes: about 10 ms.
const PIT_TICKS: u16 = 11_932;
/// Measurements; the shortest one was disturbed least.
const MEASUREMENTS: usize = 3;
/// Polls of the timer's output after which it is taken for dead: a port read takes a microsecond or
/// so.
const POLL_LIMIT: u32 = 10_000_000;

const PIT_COMMAND: u16 = 0x43;
const PIT_CHANNEL_2: u16 = 0x42;
/// Channel 2, low byte then high byte, mode 0 (output rises when the count ends), binary.
const PIT_ONE_SHOT: u8 = 0b1011_0000;
const GATE_PORT: u16 = 0x61;
/// Gate port bit 0: channel 2 counts.
const GATE: u8 = 1 << 0;
/// Gate port bit 1: channel 2 drives the speaker.
const SPEAKER: u8 = 1 << 1;
/// Gate port bit 5: the output of channel 2.
const OUTPUT: u8 = 1 << 5;

/// CPUID leaf and EDX bit that promise a time stamp counter of constant rate.
const INVARIANT_TSC: (u32, u32) = (0x8000_0007, 1 << 8);

/// The clock cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClockError {
    /// The interval timer never ran out.
    #[error("the interval timer did not run out within {POLL_LIMIT} polls")]
    TimerDead,
    /// The time stamp counter stood still while the timer ran.
    #[error("the time stamp counter advanced by {ticks} in 10 ms")]
    CounterDead {
        /// Counter ticks seen.
        ticks: u64,
    },
}

/// How counter ticks become nanoseconds.
struct Scale {
    /// The counter when the clock started.
    start: u64,
    /// Nanoseconds per tick, with 32 binary places.
    nanos_per_tick: u64,
    hz: u64,
}

impl Scale {
    /// `ticks` counter ticks took `pit_ticks` timer ticks.
    fn new(start: u64, ticks: u64, pit_ticks: u64) -> Option<Self> {
        if ticks == 0 || pit_ticks == 0 {
            return None;
        }
        let nanos = u128::from(pit_ticks) * 1_000_000_000 / u128::from(PIT_HZ);
        let nanos_per_tick = u64::try_from((nanos << 32) / u128::from(ticks)).ok()?;
        let hz =
            u64::try_from(u128::from(ticks) * u128::from(PIT_HZ) / u128::from(pit_ticks)).ok()?;
        Some(Self {
            start,
            nanos_per_tick,
            hz,
        })
    }

    fn nanos(&self, counter: u64) -> u64 {
        let ticks = counter.saturating_sub(self.start);
        ((u128::from(ticks) * u128::from(self.nanos_per_tick)) >> 32) as u64
    }
}

static SCALE: Once<Scale> = Once::new();

/// The counter, read after all earlier loads: a time taken before a wait must not slip behind it.
fn counter() -> u64 {
    // SAFETY: every x86_64 CPU has `lfence`.
    unsafe { _mm_lfence() };
    // SAFETY: every x86_64 CPU has a time stamp counter, and nothing here forbids its use.
    unsafe { _rdtsc() }
}

fn read_port(number: u16) -> u8 {
    let mut port = Port::<u8>::new(number);
    // SAFETY: only the gate port is read, which has no side effect.
    unsafe { port.read() }
}

fn write_port(number: u16, value: u8) {
    let mut port = Port::<u8>::new(number);
    // SAFETY: only the interval timer's channel 2 and its gate are written; nothing else uses them,
    // and no memory depends on them.
    unsafe { port.write(value) };
}

/// Counter ticks during [`PIT_TICKS`].
fn measure() -> Result<u64, ClockError> {
    let gate = read_port(GATE_PORT) & !(SPEAKER | GATE);
    write_port(GATE_PORT, gate);
    write_port(PIT_COMMAND, PIT_ONE_SHOT);
    let [low, high] = PIT_TICKS.to_le_bytes();
    write_port(PIT_CHANNEL_2, low);
    write_port(PIT_CHANNEL_2, high);
    let start = counter();
    write_port(GATE_PORT, gate | GATE);
    let mut polls = 0;
    while read_port(GATE_PORT) & OUTPUT == 0 {
        polls += 1;
        if polls > POLL_LIMIT {
            return Err(ClockError::TimerDead);
        }
    }
    let end = counter();
    write_port(GATE_PORT, gate);
    Ok(end.saturating_sub(start))
}

/// Measures the counter and starts the clock. Call once, at boot; takes about 30 ms.
///
/// # Errors
/// [`ClockError`] when timer or counter do not run.
pub fn init() -> Result<(), ClockError> {
    let mut ticks = u64::MAX;
    for _ in 0..MEASUREMENTS {
        ticks = ticks.min(measure()?);
    }
    let scale = Scale::new(counter(), ticks, PIT_TICKS.into());
    let scale = scale.ok_or(ClockError::CounterDead { ticks })?;
    SCALE.call_once(|| scale);
    Ok(())
}

/// Time since the clock started. Zero before that.
///
/// CPUs agree on it as far as their counters do, which firmware and hypervisors keep in step.
pub fn now() -> Instant {
    let nanos = SCALE.get().map_or(0, |scale| scale.nanos(counter()));
    Instant::from_nanos(nanos)
}

/// Counter ticks per second, 0 before [`init`].
pub fn hz() -> u64 {
    SCALE.get().map_or(0, |scale| scale.hz)
}

/// Whether the CPU promises that its counter keeps its rate. Emulators often do not, though theirs
/// does.
pub fn promises_constant_rate() -> bool {
    let (leaf, bit) = INVARIANT_TSC;
    let highest = __cpuid(0x8000_0000).eax;
    highest >= leaf && __cpuid(leaf).edx & bit != 0
}

/// Waits a moment. No device sends events to CPUs that wait.
pub fn pause() {
    core::hint::spin_loop();
}

/// Waits without doing anything else.
pub fn delay(time: Duration) {
    let end = now().after(time);
    while now() < end {
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds_without_overflow() {
        // 10 ms of timer at a counter of 2.5 GHz.
        let scale = Scale::new(1000, 25_000_000, PIT_TICKS.into()).unwrap();
        assert!(scale.hz.abs_diff(2_500_000_000) < 1_000_000);
        assert_eq!(scale.nanos(1000), 0);
        assert_eq!(scale.nanos(0), 0);
        let hour = scale.nanos(1000 + 2_500_000_000 * 3600);
        assert!(hour.abs_diff(3_600_000_000_000) < 3_600_000_000_000 / 1000);
        assert!(scale.nanos(u64::MAX) > hour);
    }

    #[test]
    fn a_dead_counter_makes_no_scale() {
        assert!(Scale::new(0, 0, PIT_TICKS.into()).is_none());
    }
}
