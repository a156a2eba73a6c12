//! Those loom models of the table that depend on what its words look like, with the stage-2 format of SMMUv3 in place
//! of VT-d's: installs, marks, tombstones, detached tables, pending words. See `loom`.

#![cfg(all(hv_loom, not(hv_fault)))]
#![expect(dead_code, reason = "what only the other models use is not left out")]

#[path = "../loom/arena.rs"]
mod arena;
#[path = "../loom/detaching.rs"]
mod detaching;
#[path = "../loom/explore.rs"]
mod explore;
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
