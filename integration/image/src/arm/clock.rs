//! The monotonic clock: the generic timer's physical counter, which all CPUs share, and its events, which wake CPUs.
#![expect(
    unsafe_code,
    reason = "keeps reads of the counter in program order, and waits for events"
)]

use core::arch::asm;
use core::time::Duration;

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntpct_el0};
use arm_sysregs::el2::accessors::write_cnthctl_el2;
use arm_sysregs::el2::registers::CnthctlEl2;
use hv_core::platform::Instant;
use spin::Once;
use thiserror::Error;

/// The clock cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClockError {
    /// Firmware did not say how fast the counter is.
    #[error("the generic timer's frequency register reads 0: firmware has to set CNTFRQ_EL0")]
    NoFrequency,
}

/// How often in a second the counter wakes a CPU that waits for an event, at least. As in Linux.
const EVENTS_PER_SECOND: u64 = 10_000;
/// The last bit of the counter whose changes can be events.
const LAST_EVENT_BIT: u32 = 15;

/// Nanoseconds per tick, with 32 binary places.
static NANOS_PER_TICK: Once<u64> = Once::new();

/// The counter, read in program order with what is around it: a time taken before a wait must not slip behind it.
fn counter() -> u64 {
    // SAFETY: a barrier changes nothing but order. Without `nomem` the compiler keeps memory accesses on their side.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    read_cntpct_el0().bits()
}

fn frequency() -> u64 {
    read_cntfrq_el0().bits() & u64::from(u32::MAX)
}

/// Has the counter wake the CPU that calls out of every [`pause`] (Arm ARM, CNTHCTL_EL2). Call on each CPU before it pauses.
pub(super) fn start_events() {
    // An event each time when the bit becomes 1, which is once in twice as many ticks as it stands for.
    let ticks = (frequency() / EVENTS_PER_SECOND).max(2);
    let bit = (ticks.ilog2() - 1).min(LAST_EVENT_BIT);
    // Whatever reset left: EL1 may read the counter (bit 0 is for EL1 while HCR_EL2.E2H is 0) and use its timer.
    let mut control = CnthctlEl2::EL0PCTEN | CnthctlEl2::EL1PCEN | CnthctlEl2::EVNTEN;
    control.set_evnti(bit as u8);
    write_cnthctl_el2(control);
    // SAFETY: a barrier changes nothing but order: from here on there are events.
    unsafe { asm!("isb", options(nomem, nostack, preserves_flags)) };
}

/// Waits for an event: one that a device or another CPU sends, an interrupt, or the counter's.
pub fn pause() {
    // SAFETY: waiting changes nothing, and the counter's events end it.
    unsafe { asm!("wfe", options(nostack, preserves_flags)) };
}

/// Starts the clock. Call once, at boot, on the CPU that boots; others call [`start_events`].
///
/// # Errors
/// [`ClockError`] when the counter's frequency is not known.
pub fn init() -> Result<(), ClockError> {
    let hz = frequency();
    let scale = (1_000_000_000u64 << 32)
        .checked_div(hz)
        .ok_or(ClockError::NoFrequency)?;
    NANOS_PER_TICK.call_once(|| scale);
    start_events();
    Ok(())
}

/// Time since the counter started. Zero before [`init`].
pub fn now() -> Instant {
    let scale = NANOS_PER_TICK.get().copied().unwrap_or(0);
    let nanos = (u128::from(counter()) * u128::from(scale)) >> 32;
    Instant::from_nanos(nanos as u64)
}

/// Waits without doing anything else.
pub fn delay(time: Duration) {
    let end = now().after(time);
    while now() < end {
        core::hint::spin_loop();
    }
}
