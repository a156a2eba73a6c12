//! Domains of every shape: what each is made from, reaches, refuses and needs to end; moving between them;
//! PASIDs; dirty tracking.
//!
//! The hardware is `hv_tests::fake`, as for the ownership tests: it caches what it reads and forgets only
//! what it is told to. A test named `bcNN` stands for the bug class of that number.

#![cfg(not(hv_loom))]

mod caching;
mod dirty;
mod dirty_gone;
mod gapless;
mod identity;
#[expect(dead_code, reason = "shared with the ownership tests")]
#[path = "../ownership/machine.rs"]
mod machine;
mod nested;
mod origin;
mod pasid;
mod pasid_devices;
mod replace;
mod replacements;
mod stages;
mod witnesses;
