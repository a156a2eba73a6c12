//! Those loom models of the table that depend on what its words look like, with the stage-2 format of SMMUv3 in place
//! of VT-d's: installs, marks, tombstones, detached tables, pending words, and what hardware notes of writes, which is the
//! permission to write here and no bit beside it. See `loom`.

#![cfg(hv_loom)]
#![expect(dead_code, reason = "what only the other models use is not left out")]

/// By how many preemptions models stay below the bound that they name: the algorithm is the other program's, explored
/// there; what the words look like shows with fewer. A deep run goes as far here as there.
const SHALLOWER: usize = 1;

#[path = "../loom/arena.rs"]
mod arena;
#[path = "../loom/detaching.rs"]
mod detaching;
#[path = "../loom/dirty.rs"]
mod dirty;
#[path = "../loom/explore.rs"]
mod explore;
#[cfg(hv_fault)]
mod faults;
#[path = "../loom/hardware.rs"]
mod hardware;
#[path = "../loom/mapping.rs"]
mod mapping;
#[path = "../loom/reclaiming.rs"]
mod reclaiming;
#[path = "../loom/unmapping.rs"]
mod unmapping;
mod words;
#[path = "../loom/world.rs"]
mod world;
