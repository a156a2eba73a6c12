//! Random life: operations drawn from a seed, done on a machine drawn from the same seed.
//!
//! Each [`Life`] brings a machine up, claims, attaches, maps, unmaps, reassigns, lets units hang and devices
//! vanish, and takes all of it apart again. Its invariants are the rig's rules; a life that broke one can be
//! lived again from its seed, and [`shrink`] makes it short first.

mod acts;
mod addresses;
mod ats;
mod granule;
mod groups;
mod guest;
mod lend;
mod nests;
mod op;
mod run;
mod shared;
mod shrink;
mod sizes;
mod space;
mod tables;
mod world;
mod written;

pub(crate) use world::bring_up;

pub use granule::LifeTables;
pub use op::{Kind, Op, ops};
pub use run::{Life, Lived};
pub use shrink::{LIMIT, shrink};
