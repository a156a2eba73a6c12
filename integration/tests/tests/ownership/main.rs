//! Who may use what, and when: groups, domains, ranges, frames, receipts and witnesses at run time.
//!
//! The hardware is `hv_tests::fake`: it caches what it reads and forgets only what it is told to,
//! and a device that reaches memory which was given back ends the test. A test named `bcNN` stands
//! for the bug class of that number.
//!
//! With `--cfg hv_fault` the variable `HV_FAULT` switches one deliberate fault on; the suite must
//! fail then:
//!
//! ```text
//! HV_FAULT=skip_iotlb_flush RUSTFLAGS="--cfg hv_fault" cargo test -p hv-tests --test ownership
//! ```

#![cfg(not(hv_loom))]

mod addresses;
mod attach;
mod buffers;
mod claims;
mod debts;
mod detach;
mod dma;
mod domain_end;
mod doorbells;
mod failing;
mod faults;
mod groups;
mod guest;
mod heap;
mod hotplug;
mod isolation;
mod kept;
mod machine;
mod mapping;
mod pending;
mod pinned;
mod receipts;
mod reclaim;
mod recover;
mod refusals;
mod resets;
mod resize;
mod rollback;
mod shared;
mod threads;
mod told;
mod visibility;
mod waits;
mod wedge;
mod wide_root;
mod witness;
