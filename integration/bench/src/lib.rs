//! Benchmark of the second-stage table engine: what it costs beside hand-written floors and published crates.
//!
//! `cargo xtask bench` builds and runs it. Floor, engine and peers run in the same process, in interleaved rounds, over
//! the same kind of memory; a row is judged by the engine's quiet median divided by its floor's. Linux on x86-64 only.

pub mod arena;
pub mod clock;
pub mod code;
pub mod crew;
pub mod embedder;
pub mod engine;
pub mod floor;
pub mod format;
pub mod lane;
pub mod micro;
pub mod order;
pub mod peers;
pub mod platform;
pub mod results;
pub mod rows;
pub mod stats;
pub mod window;
