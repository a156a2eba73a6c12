//! Loom models of the lock-free second-stage table: the engine itself, not a copy of it.
//!
//! Everything here needs loom in place of the machine's atomics and is empty without it:
//!
//! ```text
//! RUSTFLAGS="--cfg hv_loom" LOOM_MAX_PREEMPTIONS=3 \
//!     cargo test --release -p hv-tests --test loom
//! RUSTFLAGS="--cfg hv_loom --cfg hv_fault" LOOM_MAX_PREEMPTIONS=3 \
//!     cargo test --release -p hv-tests --test loom      # deliberate faults; each must be noticed
//! ```
//!
//! Tables have two words here. The models say what each actor does; loom runs every order of their
//! steps, and every value that the memory model lets a load return, up to the preemption bound.
//! Each model prints how many executions it explored. "Exhaustive" means all that loom tells apart; for
//! models of three actors the bound is one less than the variable says.

#![cfg(hv_loom)]
#![cfg_attr(
    hv_fault,
    expect(
        dead_code,
        reason = "a fault stays on, so only the models that must fail run"
    )
)]

mod arena;
mod explore;
#[cfg(hv_fault)]
mod faults;
mod flushing;
mod hardware;
mod mapping;
mod quiescence;
mod unmapping;
mod world;
