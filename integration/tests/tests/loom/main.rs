//! Loom models of the lock-free second-stage table, and of what else several CPUs do at once: the code itself, not
//! a copy of it.
//!
//! Everything here needs loom in place of the machine's atomics and is empty without it. `cargo xtask loom`
//! runs it with the flags that it needs; by hand:
//!
//! ```text
//! RUSTFLAGS="--cfg hv_loom" cargo test --release -p hv-tests --test loom
//! RUSTFLAGS="--cfg hv_loom --cfg hv_fault" \
//!     cargo test --release -p hv-tests --test loom      # deliberate faults; each must be noticed
//! ```
//!
//! Tables have two words here. The models say what each actor does; loom runs every order of their
//! steps, and every value that the memory model lets a load return, up to the preemption bound that the
//! model names. Each prints how many executions it explored; "exhaustive" means all that loom tells apart.
//! `HV_LOOM_DEEP=SECONDS` lifts the bounds and sets a time limit for each model.

#![cfg(hv_loom)]
#![cfg_attr(
    hv_fault,
    expect(
        dead_code,
        reason = "some models are for no fault, and what only tests use is not there"
    )
)]

/// By how many preemptions models stay below the bound that they name.
const SHALLOWER: usize = 0;

mod allocating;
mod arena;
mod board;
mod claiming;
mod detaching;
mod dirty;
mod ending;
mod explore;
mod faulting;
#[cfg(hv_fault)]
mod faults;
mod flushing;
mod hardware;
mod ids;
mod lending;
mod mapping;
mod parking;
mod queueing;
mod quiescence;
mod reclaiming;
mod resizing;
mod short_way;
mod unmapping;
mod words;
mod world;
