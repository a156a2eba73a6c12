//! The monotonic clock: the generic timer's physical counter, which all CPUs share.
#![expect(unsafe_code, reason = "keeps reads of the counter in program order")]

use core::arch::asm;
use core::time::Duration;

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntpct_el0};
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

/// Nanoseconds per tick, with 32 binary places.
static NANOS_PER_TICK: Once<u64> = Once::new();

/// The counter, read in program order with what is around it: a time taken before a wait must not slip behind it.
fn counter() -> u64 {
    // SAFETY: a barrier changes nothing but order. Without `nomem` the compiler keeps memory accesses on their side.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
    read_cntpct_el0().bits()
}

/// Starts the clock. Call once, at boot.
///
/// # Errors
/// [`ClockError`] when the counter's frequency is not known.
pub fn init() -> Result<(), ClockError> {
    let hz = read_cntfrq_el0().bits() & u64::from(u32::MAX);
    let scale = (1_000_000_000u64 << 32)
        .checked_div(hz)
        .ok_or(ClockError::NoFrequency)?;
    NANOS_PER_TICK.call_once(|| scale);
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
