//! Memory of the image: which of it is usable, frames, the heap, and access through the identity
//! map.

pub mod frames;
pub mod heap;
pub mod physical;
pub mod usable;

mod bitmap;
mod lines;

pub use lines::line_starts;
