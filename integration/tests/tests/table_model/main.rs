//! Property tests of the second-stage table: random operations on the engine with the VT-d format and
//! 512 entries per table, against a model that is a map of pages and knows each table: linked, marked by a
//! reclaimer, unlinked, detached, replaced by a merge, or given back.
//!
//! After every operation, `translate`, the model and a walker of its own that reads raw words must agree;
//! for walkers that do not snoop it reads what was written back; where walkers note writes, hardware does so
//! also in the middle of an operation. Runs are the same each time;
//! `PROPTEST_RNG_SEED` chooses others. `RUSTFLAGS="--cfg hv_fault"` runs the
//! deliberate faults instead, each of which must be noticed.

#![cfg(not(hv_loom))]
#![cfg_attr(
    hv_fault,
    expect(
        dead_code,
        reason = "a fault stays on, so only the test of the faults runs"
    )
)]

mod change;
#[cfg(hv_fault)]
mod faults;
mod frames;
mod random;
mod reclaimer;
mod subject;
